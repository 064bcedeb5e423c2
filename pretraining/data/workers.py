"""Run tasks in spawned processes, and know which task killed a process."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from pretraining.data.scan import BadScan, DataError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], processes: int
) -> Iterator[tuple[T, R | BadScan | DataError]]:
    """Apply a function to every task, in no particular order.

    When a worker is killed (usually by the system, for lack of memory), its task is repeated at the end, alone. If that
    worker is killed as well, only this task is given up.

    ``concurrent.futures`` is not used because its pool cannot tell which task the killed worker had, and because it can
    hang (seen with Python 3.11) when a worker dies while the pool starts another.

    Args:
        function: Importable function, since it is pickled.
        tasks: Its arguments.
        processes: Number of workers; with one, everything runs in the calling process.

    Yields:
        Each task with its result, or with the error it raised; whatever it raised becomes one of the two kinds.

    Raises:
        DataError: If no worker can be started.
    """
    if processes <= 1:
        for task in tasks:
            yield task, _call(function, task)
        return
    killed: list[T] = []
    yield from _run_in_workers(function, tasks, processes, killed)
    killed_alone: list[T] = []
    yield from _run_in_workers(function, killed, 1, killed_alone)
    for task in killed_alone:
        yield task, BadScan("its worker process was killed, even alone (out of memory?): leave the scan out")


def _run_in_workers(
    function: Callable[[T], R], tasks: Sequence[T], processes: int, killed: list[T]
) -> Iterator[tuple[T, R | BadScan | DataError]]:
    """Hand out the tasks one by one; those whose worker died are added to ``killed``."""
    queue = deque(tasks)
    workers = [_Worker(function) for _ in range(min(processes, len(queue)))]
    idle = list(workers)
    busy: dict[Connection, tuple[_Worker[T], T]] = {}
    try:
        while queue or busy:
            while queue and idle:
                worker, task = idle.pop(), queue.popleft()
                worker.submit(task)
                busy[worker.connection] = worker, task
            ready = wait(list(busy))
            for connection in [connection for connection in busy if connection in ready]:
                worker, task = busy.pop(connection)
                try:
                    outcome = connection.recv()
                except (EOFError, OSError):  # the process has died
                    killed.append(task)
                    if queue:
                        workers.append(_Worker(function))
                        idle.append(workers[-1])
                else:
                    idle.append(worker)
                    yield task, outcome
    finally:
        for worker in workers:
            worker.stop()


class _Worker(Generic[T]):
    """A spawned process with its own pipe, which shows when it dies."""

    def __init__(self, function: Callable[[T], object]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        before = dict(os.environ)
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # the other cores are for the other workers
        try:
            self._process.start()
        finally:
            for name in _THREADS:
                del os.environ[name]
            os.environ.update(before)
        theirs.close()  # the pipe ends when the process does
        self._is_ready = False

    def submit(self, task: T) -> None:
        """Send a task; the first time, wait until the process is up."""
        if not self._is_ready:
            try:
                self.connection.recv()
            except (EOFError, OSError) as error:
                raise DataError(
                    'worker processes cannot start: call this below `if __name__ == "__main__":`, or use -np 1'
                ) from error
            self._is_ready = True
        with suppress(OSError):  # killed while idle: noticed when the result is awaited
            self.connection.send(task)

    def stop(self) -> None:
        """Kill the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, function: Callable[[T], R]) -> None:
    """Carry out tasks until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    with suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            connection.send(_call(function, connection.recv()))


def _call(function: Callable[[T], R], task: T) -> R | BadScan | DataError:
    try:
        return function(task)
    except (BadScan, DataError) as error:
        return error
    except Exception as error:  # whatever one scan provokes, the others continue
        return BadScan(f"{type(error).__name__}: {error}")
