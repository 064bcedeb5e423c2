"""A machine with a few small scans, for runs of the commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pretraining.demo.datasets import write_unlabelled_dataset
from tests.machine import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("machine")
    write_unlabelled_dataset(root / "nnUNet_raw", 501, "Small", 4, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
    machine = Machine(root)
    yield machine
    machine.stop()
    for file in root.rglob("*.pth"):
        file.unlink()  # gigabytes
