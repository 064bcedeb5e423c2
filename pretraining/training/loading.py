"""Batches of crops from loading processes, which note what they read: when one dies, the scan can be named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pretraining.config import PretrainConfig
from pretraining.data import DataError, Volume
from pretraining.training.errors import HOW_TO_GO_ON, STOPPED, ProcessLost, TrainingError
from pretraining.training.sampler import PairSampler
from pretraining.training.stopping import outlive_signals
from pretraining.views import ViewPairBatch, ViewPairDataset

Sample = dict[str, NDArray[Any]]

_UNTIL_IT_SHOWS = 10.0  # seconds in which a process that no longer answers has died, on a busy machine too


class _WatchedPairs(Dataset[Sample | DataError]):
    """Pairs of views; each loading process notes its id, the scan and whether it is still at it.

    Errors are returned, not raised: the data loader would turn them into the text of a traceback.
    """

    def __init__(self, scans: Sequence[Volume], config: PretrainConfig, workers: int):
        self.scans = scans
        self.pairs = ViewPairDataset(scans, config.views, config.seed)
        self.notes = torch.zeros(max(workers, 1), 3, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        worker = get_worker_info()
        note = self.notes[worker.id if worker else 0]
        note[0], note[1], note[2] = os.getpid(), key[1], 1
        try:
            return self.pairs[key]
        except DataError as error:
            return error
        except (OSError, MemoryError) as error:
            scan = self.scans[key[1]]
            return DataError(f"{scan.path} cannot be read ({type(error).__name__}: {error})")
        finally:
            note[2] = 0


def _collate(samples: Sequence[Sample | DataError]) -> ViewPairBatch | DataError:
    pairs = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        pairs.append(sample)
    return ViewPairBatch.collate(pairs)


@contextmanager
def _untold_of_deaths() -> Iterator[None]:
    """Without torch's handler, which raises RuntimeError wherever the program is, be it in a destructor or a `finally`.

    torch installs it when the first loading process has started. If that is in here, the handler is gone afterwards,
    and a death shows where batches are waited for: torch looks after the processes every 5 s.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    _handle_deaths(signal.SIG_DFL)
    try:
        yield
    finally:
        _handle_deaths(before)


def _handle_deaths(handler: Any) -> None:
    while True:
        with suppress(RuntimeError):  # of a death before now: each is told once
            signal.signal(signal.SIGCHLD, handler)
            return


class PairLoader:
    """Batches of a training run's epochs, in the order of the sampler.

    Args:
        scans: The pool to train on.
        config: How views are drawn, and the seed.
        sampler: Which scans, and the epoch.
        workers: Loading processes; 0 reads in this process.
        pin: Whether to load into pinned memory.
    """

    def __init__(self, scans: Sequence[Volume], config: PretrainConfig, sampler: PairSampler, workers: int, pin: bool):
        self.scans, self.sampler = scans, sampler
        self._dataset = _WatchedPairs(scans, config, workers)
        self._workers: list[BaseProcess] = []
        self._loader = DataLoader(
            self._dataset,
            batch_sampler=sampler,
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=outlive_signals,
        )

    @contextmanager
    def epoch(self, number: int, first_step: int = 0) -> Iterator[Iterator[ViewPairBatch]]:
        """The batches of an epoch, from a step on.

        Raises:
            DataError: If a scan cannot be read.
            ProcessLost: If torchrun has ended one together with this process.
            TrainingError: If a loading process has died, at whatever point of the epoch that is noticed.
        """
        self.sampler.epoch, self.sampler.first_step = number, first_step
        with self.explaining_deaths():
            yield self._batches()

    @contextmanager
    def explaining_deaths(self) -> Iterator[None]:
        """Around all that is done while there are loading processes: they are ended with it, whatever goes wrong.

        Raises:
            ProcessLost, TrainingError: See `epoch`.
        """
        try:
            yield
        except BaseException as error:
            try:
                self._explain(error)
                raise
            finally:
                self._end_workers()

    def _batches(self) -> Iterator[ViewPairBatch]:
        others = multiprocessing.active_children()
        with _untold_of_deaths():
            batches = iter(self._loader)
        self._workers += [child for child in multiprocessing.active_children() if child not in others]
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def _end_workers(self) -> None:
        """At once. Python would send them SIGTERM at its own end, which leaves them time, and wait for them."""
        with _untold_of_deaths():
            for worker in self._workers:
                worker.kill()
                worker.join(_UNTIL_IT_SHOWS)
        self._workers = []

    def _explain(self, error: BaseException) -> None:
        """Raises what is to be said of a loading process that has died, if one has."""
        if not isinstance(error, RuntimeError | OSError | EOFError) or isinstance(error, TrainingError | ProcessLost):
            return  # neither torch's own nor what breaks when the other end is gone
        dead = self._dead_worker()
        if dead is None:
            return
        if dead.exitcode == -signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ:  # it ends all below it
            raise ProcessLost(STOPPED) from error
        raise TrainingError(self._obituary(dead)) from error

    def _dead_worker(self) -> BaseProcess | None:
        """The loading process that did not end well."""
        pids = {pid for pid, _, _ in self._dataset.notes.tolist()}
        workers = {worker.sentinel: worker for worker in self._workers if worker.pid in pids}
        if not workers:
            return None
        with _untold_of_deaths():
            ended = connection.wait(list(workers), timeout=_UNTIL_IT_SHOWS)
            for sentinel in workers.keys() & ended:
                workers[sentinel].join(_UNTIL_IT_SHOWS)  # its files close before it has an exit code
        return next((worker for worker in workers.values() if worker.exitcode), None)

    def _obituary(self, worker: BaseProcess) -> str:
        """What a process that has died was doing."""
        (note,) = (note for note in self._dataset.notes.tolist() if note[0] == worker.pid)
        scan = self.scans[note[1]]
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return (
            f"a data loading process {how} {'while' if note[2] else 'after'} it read {scan.name} ({scan.path}). If "
            "memory ran out, lower nnUNet_n_proc_DA; if this scan does it again, --verify_dataset_integrity redoes "
            "what is damaged. "
            f"{HOW_TO_GO_ON}"
        )
