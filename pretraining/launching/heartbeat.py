"""Notices a process that is gone without closing its connections: its machine is down, hangs, or is cut off.

torch's means go by the clock (the timeout of a process group, `monitored_barrier`, the watchdog of NCCL): a minute of
them ends a job whose main process prepares or saves for longer, and one that a scheduler has suspended for a while. So
beats are counted, in the store.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch.distributed as dist

from pretraining.launching.errors import HOW_TO_CONTINUE, report

SECONDS = 5.0  # between two beats
MOST_MISSED = 4  # beats; a launcher leaves a process that hangs 30 seconds more


@contextmanager
def heartbeat(
    rank: int, count: int, lost: Callable[[int | None], None], seconds: float = SECONDS, most_missed: int = MOST_MISSED
) -> Iterator[None]:
    """Shows the other processes that this one lives, and watches the next one.

    All have to leave together, such as after a barrier.

    Args:
        rank: Of this process.
        count: How many there are.
        lost: Called, from a thread, with the rank of the next process when it has missed too many beats, or with None
            when the store, which is at MASTER_ADDR, has not answered for as long or is gone.
        seconds: Between two beats.
        most_missed: Beats.
    """
    left = threading.Event()
    heard = [0, 0]  # beats of this process and of the next one that the store has counted

    def beat() -> None:
        tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # it is gone
            # A second connection: one that waits for a key lets no other thread through.
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = tcp_store(*where, is_master=False, wait_for_workers=False)
            while not left.wait(seconds):
                heard[:] = store.add(f"beats_{rank}", 1), store.add(f"beats_{(rank + 1) % count}", 0)

    def watch() -> None:
        last, missed = [-1, -1], [0, 0]
        while not left.wait(seconds):
            missed = [n + 1 if now == before else 0 for n, now, before in zip(missed, heard, last, strict=True)]
            last = list(heard)
            # The next one is lost only if the store has just answered.
            if missed[0] >= most_missed or (missed[1] >= most_missed and missed[0] == 0):
                lost(None if missed[0] else (rank + 1) % count)
                return

    # Two, since a store that does not answer holds the first one for good; the end of the process must not wait for it.
    threads = [threading.Thread(target=function, daemon=True) for function in (beat, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        left.set()
        for thread in threads:
            thread.join(SECONDS)  # one that the end of Python meets within a call of the store aborts the process


def end_without(lost: int | None, count: int) -> NoReturn:
    """Ends this process from a thread, since its main thread may wait for the lost process where nothing interrupts it.

    Args:
        lost: See `heartbeat`.
        count: How many processes there are.
    """
    who = f"{os.environ['MASTER_ADDR']}, where the run was launched," if lost is None else f"process {lost} of {count}"
    line = (
        f"pgl_pretrain: nothing was heard of {who} for {SECONDS * MOST_MISSED:.0f} seconds: its machine is down or "
        f"hangs, or the network between them. {HOW_TO_CONTINUE}"
    )
    print(file=sys.stderr, flush=True)  # below the progress bar
    if lost is None:  # the launcher that would print it is perhaps gone too
        print(line, file=sys.stderr, flush=True)
    else:
        report(line)
    os._exit(1)
