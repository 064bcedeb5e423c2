"""Signals that ask a run to end: it saves what it has and says how to continue."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from pretraining.launching.distributed import Processes
from pretraining.launching.errors import Stopped

# scancel, a job's time limit, and a launcher that ends what is left; Slurm's --signal, sent some time before; Ctrl-C.
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
_WORKER_DELAY = 25.0  # seconds until SIGTERM ends a loading process: launchers and Slurm leave 30 before they kill


class StopSignals:
    """What has asked this process to end.

    Before `defer` a signal ends it at once, by an exception: there is nothing to save yet. Afterwards, when an
    exception could hit half a step or the last save, it is recorded, and the loop looks for it. A second Ctrl-C still
    ends it.

    A launcher sends SIGTERM too when another process has ended. Then this one fails at what it does next with that one,
    or waits until the launcher kills it, 30 seconds later.

    Attributes:
        received: Name of the first deferred signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._is_deferring = False

    @contextmanager
    def caught(self) -> Iterator[StopSignals]:
        """Takes over the signals; does nothing outside of the main thread, where Python handles none."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        names = [name for name in _SIGNALS if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), self._handle) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def defer(self) -> None:
        """From now on, signals are recorded: the run trains."""
        self._is_deferring = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._is_deferring:
            raise Stopped(f"stopped by {name} before the first step; scans already preprocessed will be found again")
        if name == "SIGINT" and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = self.received or name


class AnyProcess:
    """Whether something is true in any of the processes that train together: all get the same answer at the same call.

    One process alone gets its own answer at once. Several get that of two calls ago, which has long arrived, so that
    neither the host nor the GPU waits for it.
    """

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self._processes, self._device = processes, device
        self._pending: deque[tuple[torch.Tensor, Any]] = deque()

    def __call__(self, own: bool) -> bool:
        """Takes this process's value; every process has to call as often as the others."""
        if self._processes.world_size == 1:
            return own
        value = torch.full((1,), float(own), device=self._device)
        work: Any = dist.all_reduce(value, op=dist.ReduceOp.MAX, async_op=True)
        if self._device.type == "cuda":
            work.wait()  # for the GPU's stream, not for the host
            value = torch.empty(1, pin_memory=True).copy_(value, non_blocking=True)
            work = torch.cuda.Event()
            work.record()
        self._pending.append((value, work))
        if len(self._pending) < 3:
            return False
        value, work = self._pending.popleft()
        work.synchronize() if self._device.type == "cuda" else work.wait()
        return bool(value.item())


def ignore_signals_in_worker(worker: int) -> None:
    """Lets a loading process outlive the signals that its whole group gets, so that the current step can end.

    Given to the data loader as ``worker_init_fn``.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_after_delay)


def _end_after_delay(*_: object) -> None:
    """SIGALRM ends a process wherever it is, also in a library that Python cannot interrupt."""
    if hasattr(signal, "setitimer"):  # Windows has none, and ends processes without asking them
        signal.setitimer(signal.ITIMER_REAL, _WORKER_DELAY)
