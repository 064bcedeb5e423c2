"""``-num_gpus``: the processes of one machine, started here, and what is said when one of them ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.multiprocessing.spawn import spawn as spawn_processes
from tqdm import tqdm

from pretraining.training.errors import HOW_TO_GO_ON, ProcessLost, Stopped, TrainingError


def spawn(function: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """Runs ``function(*args)`` in ``count`` processes of this machine that train together.

    Raises:
        Exception: What the process raised that failed first.
        Stopped: If this process was asked to end; it passes that on.
        TrainingError: If a process was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors: SimpleQueue[Exception] = get_context("spawn").SimpleQueue()
    context = spawn_processes(_enter, (function, args, count, port, errors), nprocs=count, join=False)
    with _passing_signals_on(context.processes) as passed_on:
        try:
            while not context.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            _raise_cause(error, [process.exitcode or 0 for process in context.processes], errors, passed_on)


@contextmanager
def _passing_signals_on(processes: Sequence[BaseProcess]) -> Iterator[list[str]]:
    """Sends the processes SIGUSR1 when this one is asked to end, and gives the names of the signals passed on.

    Not the signal itself: Ctrl-C reaches them without us, and its second coming has a meaning of its own.
    """
    passed_on: list[str] = []

    def pass_on(number: int, frame: object) -> None:
        passed_on.append(signal.Signals(number).name)
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR1)

    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield passed_on
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_cause(
    error: ProcessRaisedException | ProcessExitedException,
    exit_codes: list[int],
    errors: SimpleQueue[Exception],
    passed_on: Sequence[str],
) -> None:
    """Raises what made the first process fail; those that fail after it only say that another one did."""
    while not errors.empty():
        raised = errors.get()
        if not isinstance(raised, ProcessLost):
            raise raised from error
    if passed_on:
        raise Stopped(f"stopped by {passed_on[0]}; add --c to go on from what was saved last") from error
    # Those still running are ended with SIGTERM.
    killed = [rank for rank, code in enumerate(exit_codes) if code < 0 and code != -signal.SIGTERM]
    rank = killed[0] if killed else error.error_index
    if exit_codes[rank] < 0:
        how = f"{signal.Signals(-exit_codes[rank]).name}, often sent by the system for want of memory"
    else:
        how = f"exit code {exit_codes[rank]} (its message, if any, stands above)"
    raise TrainingError(
        f"training process {rank} of {len(exit_codes)} ended with {how}; the others were stopped. {HOW_TO_GO_ON}"
    ) from None


def _enter(
    rank: int,
    function: Callable[..., None],
    args: tuple[Any, ...],
    count: int,
    port: int,
    errors: SimpleQueue[Exception],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    tqdm.set_lock(threading.RLock())  # its own is shared, and of a killed process Python complains that it leaks it
    try:
        function(*args)
    except Exception as error:
        errors.put(error)
        raise
