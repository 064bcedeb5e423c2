"""Batches of crops from loading processes, joined on the device; when a process dies, the scan it read is named."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from nnunetv2_pgl.errors import PGLError
from pretraining.data import DataError, Volume
from pretraining.launching.errors import HOW_TO_CONTINUE, ProcessLost
from pretraining.launching.stopping import ignore_signals_in_worker
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig
from pretraining.training.memory import is_out_of_memory, require_shared_memory
from pretraining.training.networks import bytes_drawn
from pretraining.training.sampler import PairSampler
from pretraining.views import ViewPairBatch, ViewPairDataset
from pretraining.views.rendering import largest_source_box

Sample = dict[str, NDArray[Any]]

_SECONDS_UNTIL_DEAD = 10.0  # in which a process that no longer answers has died, on a busy machine too


class PairLoader:
    """Batches of a training run, in the order of the sampler.

    Args:
        scans: The pool to train on.
        config: How views are drawn, and the seed.
        sampler: Which scans, in units that are loaded at a time.
        workers: Loading processes; 0 reads in this process.
        device: Where the batches go.
        local_processes: Training processes on this machine, which share its memory.

    Raises:
        PGLError: The machine lacks shared memory.
    """

    def __init__(
        self,
        scans: Sequence[Volume],
        config: PretrainConfig,
        sampler: PairSampler,
        workers: int,
        device: torch.device,
        local_processes: int = 1,
    ):
        self.scans, self.sampler, self.device = scans, sampler, device
        self._pairs = _RecordedPairs(scans, config, workers)
        self._workers: list[BaseProcess] = []
        ahead = max(2, -(-sampler.units_per_part // max(workers, 1)))  # units of each worker: a part, or more
        if workers:
            voxels = math.prod(largest_source_box(config.views.size, config.views.scale)) * config.encoder_channels
            bytes_of_view = voxels * max(np.dtype(scan.dtype).itemsize for scan in scans) + bytes_drawn(config)
            pairs_of_unit = -(-sampler.part // sampler.units_per_part)
            units = local_processes * (workers * ahead + sampler.units_per_part)
            require_shared_memory(units * pairs_of_unit * 2 * bytes_of_view)
        self._loader = DataLoader(
            self._pairs,
            batch_sampler=sampler,
            collate_fn=_collate,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            worker_init_fn=ignore_signals_in_worker,
        )

    @contextmanager
    def batches(self, first_step: int = 0) -> Iterator[Iterator[ViewPairBatch]]:
        """The parts of all steps from one on, on the device; loading continues whatever is done between two of them.

        Raises:
            DataError: If a scan cannot be read.
            PGLError: If a loading process has died, at whatever point that is noticed.
        """
        self.sampler.first_step = first_step
        with self.naming_dead_workers():
            yield parts_on_device(self._units(), self.sampler.units_per_part, self.device)

    @contextmanager
    def naming_dead_workers(self) -> Iterator[None]:
        """Around all that is done while there are loading processes; on an error they are ended, at once.

        Python would send them SIGTERM when it ends itself, which leaves them time, and wait for them.

        Raises:
            PGLError: See `batches`.
        """
        try:
            yield
        except BaseException as error:
            try:
                self._explain(error)
                raise
            finally:
                with _without_sigchld_handler():
                    for worker in self._workers:
                        worker.kill()
                        worker.join(_SECONDS_UNTIL_DEAD)
                self._workers = []

    def _units(self) -> Iterator[ViewPairBatch]:
        others = multiprocessing.active_children()
        with _without_sigchld_handler():
            units = iter(self._loader)
        self._workers += [child for child in multiprocessing.active_children() if child not in others]
        for unit in units:
            if isinstance(unit, DataError):
                raise unit
            yield unit

    def _explain(self, error: BaseException) -> None:
        """Names the loading process that has died, if one has and that may be the reason of the error."""
        # Other errors cannot come from a dead loading process. Asking takes up to 10 s.
        if not isinstance(error, RuntimeError | OSError | EOFError) or isinstance(error, ProcessLost):
            return
        if is_out_of_memory(error) or (worker := self._dead_worker()) is None:
            return
        ((_, index, is_reading),) = (record for record in self._pairs.records.tolist() if record[0] == worker.pid)
        scan, code = self.scans[index], worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lacking = "shared memory" if hasattr(signal, "SIGBUS") and code == -signal.SIGBUS else "memory"
        raise PGLError(
            f"a data loading process {how} {'while' if is_reading else 'after'} it read {scan.name} ({scan.path}). If "
            f"{lacking} ran out, lower nnUNet_n_proc_DA; if this scan does it again, --verify_dataset_integrity "
            f"preprocesses damaged scans again. {HOW_TO_CONTINUE}"
        ) from error

    def _dead_worker(self) -> BaseProcess | None:
        """The loading process that ended with an error."""
        pids = {pid for pid, _, _ in self._pairs.records.tolist()}
        workers = {worker.sentinel: worker for worker in self._workers if worker.pid in pids}
        if not workers:
            return None
        with _without_sigchld_handler():
            ended = connection.wait(list(workers), timeout=_SECONDS_UNTIL_DEAD)
            for sentinel in workers.keys() & ended:
                workers[sentinel].join(_SECONDS_UNTIL_DEAD)  # its files close before it has an exit code
        return next((worker for worker in workers.values() if worker.exitcode), None)


class _RecordedPairs(Dataset[Sample | DataError]):
    """Pairs of views; each loading process records its id, the scan and whether it is still reading it.

    Errors are returned, not raised: the data loader would turn them into the text of a traceback.
    """

    def __init__(self, scans: Sequence[Volume], config: PretrainConfig, workers: int):
        self.scans = scans
        self.pairs = ViewPairDataset(scans, config.views, config.seed, OBJECTIVES[config.method].objective.draw)
        self.records = torch.zeros(max(workers, 1), 3, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        worker = get_worker_info()
        record = self.records[worker.id if worker else 0]
        record[0], record[1], record[2] = os.getpid(), key[1], 1
        try:
            return self.pairs[key]
        except DataError as error:
            return error
        except (OSError, MemoryError) as error:
            scan = self.scans[key[1]]
            return DataError(f"{scan.path} cannot be read ({type(error).__name__}: {error})")
        finally:
            record[2] = 0


def _collate(samples: Sequence[Sample | DataError]) -> ViewPairBatch | DataError:
    errors = [sample for sample in samples if isinstance(sample, DataError)]
    return errors[0] if errors else ViewPairBatch.collate(samples)  # type: ignore[arg-type]


@contextmanager
def _without_sigchld_handler() -> Iterator[None]:
    """Without torch's handler of SIGCHLD, which raises RuntimeError wherever the program is, even in a `finally`.

    torch installs it when the first loading process has started. If that is in here, the handler is gone afterwards,
    and a death shows where batches are waited for: torch checks the processes every 5 s.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle_by(handler: Any) -> None:
        while True:
            with suppress(RuntimeError):  # the handler of before has raised, of an earlier death: once for each
                signal.signal(signal.SIGCHLD, handler)
                return

    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    handle_by(signal.SIG_DFL)
    try:
        yield
    finally:
        handle_by(before)


def parts_on_device(units: Iterator[ViewPairBatch], per_part: int, device: torch.device) -> Iterator[ViewPairBatch]:
    """Joins units to the parts of steps, on the device.

    On CUDA they are copied from pinned memory on a second stream, beside the step before, which is still being computed
    when the next part is asked for.

    Args:
        units: Batches as they are loaded.
        per_part: How many make a part.
        device: Where the networks are.
    """
    if device.type != "cuda":
        while part := list(islice(units, per_part)):
            yield ViewPairBatch.joined(part).to(device)
        return
    stream = torch.cuda.Stream(device)
    while True:
        with torch.cuda.stream(stream):
            copies = [unit.pin_memory().to(device) for unit in islice(units, per_part)]
            if not copies:
                return
            batch = ViewPairBatch.joined(copies)
            del copies
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        batch.record_stream(current)
        yield batch
        del batch  # before memory is taken for the next
