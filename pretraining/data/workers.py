"""Run tasks in spawned processes and survive the death of one."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pretraining.data.scan import BadScan, DataError

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(function: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[T, R | Exception]]:
    """Apply a function to every task, in no particular order.

    When a worker is killed (usually by the system, for want of memory) all tasks at work fail with it. These are
    repeated one at a time, so that only the task that kills its worker again is given up, and the others go on.

    Args:
        function: Importable function, since it is pickled.
        tasks: Its arguments.
        processes: Number of workers; with one, everything runs in the calling process.

    Yields:
        Each task with its result, or with the exception it raised.

    Raises:
        DataError: If no worker can be started.
    """
    if processes <= 1:
        for task in tasks:
            yield task, _call(function, task)
        return
    queue = deque(tasks)
    while queue:
        for task in (yield from _run_until_death(function, queue, processes)):
            yield task, _call_alone(function, task)


def _run_until_death(
    function: Callable[[T], R], queue: deque[T], processes: int
) -> Generator[tuple[T, R | Exception], None, list[T]]:
    """Work off the queue; once a worker has died, stop taking from it and return the tasks that were at work."""
    at_work: dict[Future[R], T] = {}
    suspects: list[T] = []
    with _started_pool(min(processes, len(queue))) as pool:
        while at_work or (queue and not suspects):
            while queue and not suspects and len(at_work) < processes:
                task = queue.popleft()
                try:
                    at_work[pool.submit(function, task)] = task
                except BrokenProcessPool:
                    suspects.append(task)
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                task = at_work.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, _as_exception(error) if error else future.result()
    return suspects


def _started_pool(processes: int) -> ProcessPoolExecutor:
    """Start a pool and make sure that a worker comes up, so that a broken start is not taken for a bad scan."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise DataError(
            'worker processes cannot start: call this below `if __name__ == "__main__":`, or use one process (-np 1)'
        ) from error
    return pool


def _call(function: Callable[[T], R], task: T) -> R | Exception:
    try:
        return function(task)
    except Exception as error:  # whatever a scan provokes, the others go on
        return error


def _call_alone(function: Callable[[T], R], task: T) -> R | Exception:
    with _started_pool(1) as pool:
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool:
            return BadScan("its worker process was killed, even alone (out of memory?): leave the scan out")
        except Exception as error:
            return error


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
