"""Writes the golden files anew; run by hand for a new format version, with `python -m tests.golden.make`.

They are a dataset of four scans, their store, and a run of two epochs on them: its state after the first one, and its
encoder. `test_golden_files.py` reads them with the code of today.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training import loop, saving
from pretraining.training.pretrain import pretrain
from pretraining.views import ViewSettings
from tests.planned_networks import small_network

GOLDEN = Path(__file__).parent
DATASET, RUN = "Dataset601_Golden", "golden"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def config() -> PretrainConfig:
    """An encoder of 1,008 weights, views of 8 x 8 x 8."""
    return PretrainConfig(
        datasets=(DATASET,),
        views=ViewSettings(size=(8, 8, 8)),
        architecture="plain",
        network=small_network(features=(4, 8)).to_dict(),
        epochs=2,
        batch_size=2,
        pairs_per_epoch=4,
        optimizer="adamw",
        learning_rate=1e-2,
        warmup_epochs=0,
        hidden_channels=8,
        out_channels=8,
        validation_scans=1,
    )


@contextmanager
def machine(root: Path) -> Iterator[None]:
    """nnU-Net's folders below a root; runs read in their own process and compute in float32."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(loop, "autocast_type", lambda device: None)
        yield


def main() -> None:
    """Entry point."""
    with tempfile.TemporaryDirectory() as temporary, machine(Path(temporary)):
        root = Path(temporary)
        images = root / "nnUNet_raw" / DATASET / "imagesTr"
        images.mkdir(parents=True)
        (images.parent / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "file_ending": ".nrrd"}\n')
        rng = np.random.default_rng(0)
        for number in range(4):
            image = sitk.GetImageFromArray(rng.normal(0, 200, (12, 14, 16)).astype(np.int16))
            image.SetSpacing((1, 1, 2))
            sitk.WriteImage(image, str(images / f"scan_{number}_0000.nrrd"), useCompression=True)
        run = root / "nnUNet_results" / "PGL" / RUN
        save = saving.atomic_save

        def keep_the_first(content: Any, path: Path) -> None:
            save(content, path)
            if len(content["history"]) == 1:
                shutil.copy(path, root / "after_one_epoch.pth")

        saving.atomic_save = keep_the_first
        pretrain(config(), RunOptions(RUN, False, "cpu", 1, 1))
        _collect(root, run)


def _collect(root: Path, run: Path) -> None:
    for name in (*FOLDERS, "expected.json"):
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
    shutil.copytree(root / "nnUNet_raw", GOLDEN / "nnUNet_raw")
    shutil.copytree(root / "nnUNet_preprocessed", GOLDEN / "nnUNet_preprocessed")
    for record in (GOLDEN / "nnUNet_preprocessed").rglob("*.json"):
        record.write_text(record.read_text().replace(str(root), "/data"))
    kept = GOLDEN / "nnUNet_results" / "PGL" / RUN
    kept.mkdir(parents=True)
    shutil.copy(root / "after_one_epoch.pth", kept / "checkpoint_latest.pth")
    for name in ("checkpoint_final.pth", "config.json", "manifest.json"):
        shutil.copy(run / name, kept / name)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {"losses": [record["loss"] for record in records]}
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
