"""A loading process that dies, or a scan that cannot be read, ends the run with the scan's name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.errors import PGLError
from pretraining.data import DataError
from pretraining.settings.config import PretrainConfig
from pretraining.training.loading import PairLoader
from pretraining.training.sampler import PairSampler
from pretraining.views import ViewSettings

CPU = torch.device("cpu")
CONFIG = PretrainConfig(datasets=(), views=ViewSettings(size=(4, 6, 6)), batch_size=1)


@pytest.fixture(autouse=True)
def as_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch installs its handler of deaths with the first loading process, which may be another test's."""
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


@dataclass
class Scan:
    name: str
    does: str = ""
    shape: tuple[int, ...] = (1, 8, 12, 12)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "int16"

    @property
    def path(self) -> Path:
        return Path("/store") / f"{self.name}.b2nd"

    def read(self, channel: int, start: Any, stop: Any) -> np.ndarray:
        if self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "linger":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Python's own threads complain without end
            os.closerange(3, 1024)
            time.sleep(0.5)
        if self.does in ("leave", "linger"):
            os._exit(3)
        if self.does == "damaged":
            raise DataError(f"{self.path} cannot be read (damaged): delete it to redo the scan")
        if self.does == "memory":
            raise MemoryError("Unable to allocate 3 GiB")
        if self.does == "bug":
            raise KeyError("a mistake of ours")
        shape = [b - a for a, b in zip(start, stop, strict=True)]
        values = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
        return values + int(self.name[-1]) + sum(start) if self.does == "count" else values


def read_all(does: str, workers: int) -> int:
    scans: Any = [Scan(f"case_{i}", does if i == 2 else "") for i in range(4)]
    loader = PairLoader(scans, CONFIG, PairSampler(len(scans), 4, 1, 1, seed=0), workers, CPU)
    with loader.batches() as batches:
        return sum(len(batch.starts) for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_readable_scans_give_all_batches(workers: int) -> None:
    assert read_all("", workers) == 8


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with fewer cores
def test_crops_do_not_depend_on_the_number_of_workers() -> None:
    """Nor on where a run was resumed."""
    alone = crops_of_a_run(0)
    assert len(alone) == 12
    for workers in (1, 3):
        for one, other in zip(alone, crops_of_a_run(workers), strict=True):
            assert torch.equal(one, other)
    for one, other in zip(alone[4:], crops_of_a_run(1, first_step=4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_units_make_the_batch_that_is_loaded_at_once(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven pairs in units of three: two, two and three."""
    whole = crops_of_a_run(workers, pairs=7)
    monkeypatch.setattr("pretraining.training.sampler._MAX_UNIT_PAIRS", 3)
    assert PairSampler(4, 12, 7, 1, seed=0).units_per_part == 3
    for one, other in zip(whole, crops_of_a_run(workers, pairs=7), strict=True):
        assert torch.equal(one, other)


def crops_of_a_run(workers: int, first_step: int = 0, pairs: int = 2) -> list[torch.Tensor]:
    """Crops, boxes and intensity changes of each batch of twelve steps."""
    scans: Any = [Scan(f"case_{i}", "count") for i in range(4)]
    sampler = PairSampler(4, 12, pairs, 1, seed=0)
    loader = PairLoader(scans, replace(CONFIG, batch_size=pairs), sampler, workers, CPU)
    batches = []
    with loader.batches(first_step) as loaded:
        for batch in loaded:
            parts = (batch.crops, batch.starts, batch.sizes, batch.flips, batch.intensity)
            batches.append(torch.cat([part.reshape(-1).double() for part in parts]))
    return batches


@pytest.fixture
def spawning() -> Iterator[None]:
    """Processes that share nothing with their parent, as on Windows and macOS."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_spawned_workers_give_the_same_crops(spawning: None) -> None:
    for one, other in zip(crops_of_a_run(0), crops_of_a_run(1), strict=True):
        assert torch.equal(one, other)


def test_a_spawned_worker_that_died_is_told(spawning: None) -> None:
    with pytest.raises(PGLError, match="killed by SIGKILL while it read case_2"):
        read_all("die", 1)


def test_the_scan_of_a_killed_worker_is_named() -> None:
    message = r"killed by SIGKILL while it read case_2 \(/store/case_2\.b2nd\)[^\n]*--c[^\n]*\Z"
    with pytest.raises(PGLError, match=message):
        read_all("die", 1)


def test_a_worker_that_dies_between_two_steps_is_told() -> None:
    """When a batch is waited for. torch would raise at once, in the midst of whatever is done: measuring or saving."""
    scans: Any = [Scan(f"case_{i}") for i in range(4)]
    loader = PairLoader(scans, CONFIG, PairSampler(len(scans), 100, 1, 1, seed=0), 1, CPU)

    def read_after_its_death() -> int:
        with loader.batches() as batches:
            next(batches)
            (worker,) = loader._workers
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # torch looks for those that nobody waited for
            return sum(1 for _ in batches)

    with pytest.raises(PGLError, match=r"killed by SIGKILL (while|after) it read case_\d"):
        read_after_its_death()


def test_the_scan_of_a_worker_that_left_is_named() -> None:
    with pytest.raises(PGLError, match=r"ended with exit code 3 while it read case_2 \(/store/case_2\.b2nd\)"):
        read_all("leave", 1)


def test_the_scan_of_a_worker_that_lingers_is_named() -> None:
    """Its files close long before it has an exit code. Rarely, one of torch's threads misses them and aborts it."""
    how = r"(ended with exit code 3|was killed by SIGABRT)"
    with pytest.raises(PGLError, match=how + r" while it read case_2 \(/store/case_2\.b2nd\)"):
        read_all("linger", 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_scan_is_one_line(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        read_all("damaged", workers)
    assert str(caught.value) == "/store/case_2.b2nd cannot be read (damaged): delete it to redo the scan"


def test_a_run_that_ends_early_leaves_no_process() -> None:
    """Left to Python's end, they would take the 25 s that SIGTERM leaves them."""
    before = multiprocessing.active_children()
    begin = time.monotonic()
    with pytest.raises(DataError):
        read_all("damaged", 1)
    assert [child for child in multiprocessing.active_children() if child not in before] == []
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scan_too_large_to_read_is_named(workers: int) -> None:
    with pytest.raises(DataError, match=r"case_2.*cannot be read \(MemoryError: Unable to allocate 3 GiB\)"):
        read_all("memory", workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_our_own_mistakes_keep_their_traceback(workers: int) -> None:
    with pytest.raises(KeyError, match="a mistake of ours"):
        read_all("bug", workers)
