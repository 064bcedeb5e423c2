"""What lies between the loading processes and the step: shared memory, joined units, copies beside the step before."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.errors import PGLError
from pretraining.objectives import ModelsGenesis
from pretraining.settings.config import PretrainConfig
from pretraining.training.loading import PairLoader, parts_on_device
from pretraining.training.memory import require_shared_memory
from pretraining.training.sampler import PairSampler
from pretraining.views import ViewPairBatch, ViewPairDataset, ViewSettings
from tests.training.scans import NoiseScan

MIB = 2**20


def with_free(patch: pytest.MonkeyPatch, free: int) -> None:
    patch.setattr(os.path, "isdir", lambda path: path == "/dev/shm")
    patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096), raising=False)


def test_shared_memory_that_is_too_small_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 64 * MIB)
    require_shared_memory(64 * MIB)
    with pytest.raises(PGLError) as caught:
        require_shared_memory(900 * MIB)
    message = str(caught.value)
    assert "need 900 MiB of shared memory, but /dev/shm has 64 MiB free" in message
    assert "--shm-size=2g" in message
    assert "nnUNet_n_proc_DA" in message
    assert "\n" not in message


@pytest.mark.parametrize("method", ["pgl", "models_genesis"])
@pytest.mark.parametrize(("workers", "processes", "fits"), [(0, 1, True), (1, 1, True), (2, 1, False), (1, 2, False)])
def test_a_loader_counts_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch, workers: int, processes: int, fits: bool, method: Any
) -> None:
    """Two units of each loading process and the one in use, of 16 pairs of two crops of 26 x 138 x 138 int16 voxels.

    Models Genesis draws an int16 number for each of the 16 x 96 x 96 voxels of a view, and little more.
    """
    drawn = 16 * 96 * 96 * 2 + 273 if method == "models_genesis" else 0
    unit = 16 * 2 * (26 * 138 * 138 * 2 + drawn)
    with_free(monkeypatch, 3 * unit + 4096)
    scans: Any = [NoiseScan((1, 40, 160, 160))]
    config = PretrainConfig((), method=method)
    arguments = (config, PairSampler(1, 4, 16, 1, seed=0), workers, torch.device("cpu"), processes)
    if fits:
        PairLoader(scans, *arguments)
    else:
        with pytest.raises(PGLError, match=f"need {5 * unit // MIB if workers == 2 else 6 * unit // MIB} MiB"):
            PairLoader(scans, *arguments)


def test_units_of_scans_that_are_stored_in_different_types_are_joined_as_at_once() -> None:
    scans: Any = [NoiseScan(), NoiseScan(dtype="float32")]
    dataset = ViewPairDataset(scans, ViewSettings(size=(4, 6, 6)), 0, ModelsGenesis.draw)
    samples = [dataset[draw, draw % 2] for draw in range(5)]
    whole = ViewPairBatch.collate(samples)
    units = [
        ViewPairBatch.collate(samples[:1]),
        ViewPairBatch.collate(samples[1:2]),
        ViewPairBatch.collate(samples[2:]),
    ]
    (joined,) = parts_on_device(iter(units), 3, torch.device("cpu"))
    assert {unit.crops.dtype for unit in units} == {torch.int16, torch.float32}
    values, own = vars(whole) | whole.drawn, vars(joined) | joined.drawn
    assert whole.drawn
    for name in values.keys() - {"drawn"}:
        assert torch.equal(own[name], values[name])
        assert own[name].dtype == values[name].dtype


def test_units_are_joined_part_by_part() -> None:
    samples = [ViewPairDataset([NoiseScan()], ViewSettings(size=(4, 6, 6)), 0)[draw, 0] for draw in range(6)]
    units = [ViewPairBatch.collate([sample]) for sample in samples]
    parts = list(parts_on_device(iter(units), 2, torch.device("cpu")))
    expected = [ViewPairBatch.collate(samples[i : i + 2]) for i in (0, 2, 4)]
    assert [torch.equal(part.starts, other.starts) for part, other in zip(parts, expected, strict=True)] == [True] * 3


class Copied:
    """A batch that notes what is done with it."""

    def __init__(self, calls: list[Any], name: str):
        self.calls, self.name = calls, name

    def pin_memory(self) -> Copied:
        self.calls.append(("pin", self.name))
        return self

    def to(self, device: torch.device) -> Copied:
        self.calls.append(("copy", self.name, device.type))
        return self

    def record_stream(self, stream: Any) -> None:
        self.calls.append(("used on", self.name, stream.name))


def test_on_cuda_copies_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's stream waits for it, and what was copied is kept until the step has used it."""
    calls: list[Any] = []
    own = SimpleNamespace(name="own")
    current = SimpleNamespace(name="current", wait_stream=lambda other: calls.append(("wait for", other.name)))

    @contextmanager
    def on(stream: Any) -> Any:
        calls.append(("begin", stream.name))
        yield
        calls.append(("end", stream.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    units: Any = iter([Copied(calls, "first"), Copied(calls, "second")])
    batches = parts_on_device(units, 1, torch.device("cuda", 0))
    next(batches)
    assert calls == [
        ("begin", "own"),
        ("pin", "first"),
        ("copy", "first", "cuda"),
        ("end", "own"),
        ("wait for", "own"),
        ("used on", "first", "current"),
    ]
    assert len(list(batches)) == 1
    assert np.sum([call[0] == "pin" for call in calls]) == 2


def test_no_thread_of_the_loader_is_left_to_complain_at_an_early_end() -> None:
    """torch's own pinning is a thread that reads what the loading processes write, also after they were killed."""
    scans: Any = [NoiseScan()]
    loader = PairLoader(
        scans,
        PretrainConfig((), views=ViewSettings(size=(4, 6, 6))),
        PairSampler(1, 4, 1, 1, seed=0),
        1,
        torch.device("cuda"),
    )
    assert loader._loader.pin_memory is False
