"""What several test modules run on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretraining.training.geometry_baselines import validation_samples
from pretraining.training.run_folder import RunFolder
from tests.golden import make
from tests.known_encoders import CoordinateScan
from tests.training.geometry_reference import CASES
from tests.training.small_runs import run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with the scans of the golden run."""
    root = tmp_path_factory.mktemp("golden")
    shutil.copytree(make.GOLDEN / "nnUNet_raw", root / "nnUNet_raw")
    with make.machine(root):
        yield root


@pytest.fixture(scope="module")
def straight(folders: Path) -> RunFolder:
    """A run that nothing interrupts."""
    return run("straight")


@pytest.fixture(scope="session")
def drawn() -> dict[str, list[dict[str, Any]]]:
    """Validation pairs of each case; of one channel, which is all that their geometry needs."""
    return {
        name: validation_samples([CoordinateScan(case.scan, channels=1)], case.settings, 0, 32)
        for name, case in CASES.items()
    }
