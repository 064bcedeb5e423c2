"""nnU-Net's own plans, trainers and batches for one patch size, without any scans, for `benchmarks.finetuning`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_pgl.trainers import nnUNetTrainerPGLScratch

Triple = tuple[int, int, int]

NETWORKS: dict[str, tuple[type[nnUNetTrainer], type[ExperimentPlanner]]] = {
    "pgl": (nnUNetTrainerPGLScratch, ExperimentPlanner),
    "default": (nnUNetTrainer, ExperimentPlanner),
    "resenc_l": (nnUNetTrainer, nnUNetPlannerResEncL),
}
BATCH = 2

_DATASET = "Dataset900_Benchmark"
_SPACING = (2.5, 0.8, 0.8)
_LABELS = {"background": 0, "organ": 1, "tumour": 2}


@contextmanager
def nnunet_folders(folder: Path) -> Iterator[None]:
    """Lets nnU-Net's three variables point into the scratch folder, and nnU-Net print into the void."""
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    changes = {**folders, "nnUNet_n_proc_DA": "1"}  # threads of the planner as well, which cannot be 0
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        with open(os.devnull, "w") as void, redirect_stdout(void):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def make_plans(planner: type[ExperimentPlanner], patch: Triple) -> dict[str, Any]:
    """The plans for a dataset of CTs that are as large as the patch."""
    content = {
        "channel_names": {"0": "CT"},
        "labels": _LABELS,
        "numTraining": 10,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
    }
    intensities = {"mean": 0.0, "std": 200.0, "median": 0.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    fingerprint = {
        "spacings": [_SPACING] * 10,
        "shapes_after_crop": [patch] * 10,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": intensities | {"min": -1024.0, "max": 1500.0}},
    }
    _write_json(Path(nnUNet_raw, _DATASET, "dataset.json"), content)
    _write_json(Path(nnUNet_preprocessed, _DATASET, "dataset_fingerprint.json"), fingerprint)
    plans = planner(_DATASET).plan_experiment()
    configuration = plans["configurations"]["3d_fullres"]
    if tuple(configuration["patch_size"]) != patch:
        raise RuntimeError(f"nnU-Net plans patches of {configuration['patch_size']} here, not {patch}")
    configuration["batch_size"] = BATCH
    # A trainer looks at the names of the preprocessed files, to know their format.
    _write_json(Path(nnUNet_preprocessed, _DATASET, configuration["data_identifier"], "case.b2nd"), {})
    return plans


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_trainer(name: str, plans: dict[str, Any], device: torch.device) -> nnUNetTrainer:
    """One of `NETWORKS`, initialised by nnU-Net, with random weights."""
    torch.manual_seed(0)
    trainer_class, _ = NETWORKS[name]
    dataset_json = json.loads(Path(nnUNet_raw, _DATASET, "dataset.json").read_text())
    # The trainer takes this entry out of the plans.
    trainer = trainer_class({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, device)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return trainer


def make_batch(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Noise and blocks of labels; with deep supervision the labels at every scale, as nnU-Net's loader gives them."""
    size = tuple(trainer.configuration_manager.patch_size)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, len(_LABELS), (BATCH, 1, 4, 4, 4), generator=generator).float()
    scales = trainer._get_deep_supervision_scales() or [(1, 1, 1)]
    sizes = [[round(n * s) for n, s in zip(size, scale, strict=True)] for scale in scales]
    targets = [torch.nn.functional.interpolate(blocks, size=s, mode="nearest").short() for s in sizes]
    data = torch.randn(BATCH, 1, *size, generator=generator)
    batch = {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}
    return {key: _to_device(value, trainer.device) for key, value in batch.items()}


def _to_device(value: Any, device: torch.device) -> Any:
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
