"""Stored scans, nnU-Net's folders, and networks that are small, for the tests on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scans import store_scan
from nnunetv2_pgl.networks import ResNet50Encoder, segmenter
from pretraining.data import Volume
from pretraining.demo.phantoms import make_phantom
from pretraining.training import networks

NARROW = (8, 16, 32, 64)  # the encoder's layers at an eighth of their width


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    folder = tmp_path_factory.mktemp("scans")
    return [
        store_scan(make_phantom(seed, (24, 56, 56), (12, 7, 7)).image, folder / f"scan_{seed}.b2nd")
        for seed in range(3)
    ]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ResNet-50 of runs and of the segmenter."""

    def narrow_encoder(*arguments: Any, **options: Any) -> ResNet50Encoder:
        return ResNet50Encoder(*arguments, **{**options, "widths": NARROW})

    for module in (networks, segmenter):
        monkeypatch.setattr(module, "ResNet50Encoder", narrow_encoder)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nnU-Net's, empty; runs read in their own process."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    yield tmp_path
    for file in tmp_path.rglob("*.pth"):
        file.unlink()
