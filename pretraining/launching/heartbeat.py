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

SECONDS_BETWEEN_BEATS = 5.0
MAX_MISSED_BEATS = 4  # a launcher leaves a process that hangs 30 seconds more


@contextmanager
def heartbeat(
    rank: int,
    world_size: int,
    on_loss: Callable[[int | None], None],
    seconds: float = SECONDS_BETWEEN_BEATS,
    max_missed: int = MAX_MISSED_BEATS,
) -> Iterator[None]:
    """Shows the other processes that this one lives, and watches the next one.

    All must leave together, such as after a barrier.

    Args:
        rank: Number of this process.
        world_size: How many there are.
        on_loss: Called, from a thread, with the rank of the next process when it has missed too many beats, or with
            None when the store, which is at MASTER_ADDR, has not answered for as long or is gone.
        seconds: Between two beats.
        max_missed: Beats that may be missed.
    """
    left = threading.Event()
    following = (rank + 1) % world_size
    counted = [0, 0]  # beats of this process and of the next one, as the store has them

    def beat() -> None:
        tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # it is gone
            # A second connection: one that waits for a key lets no other thread through.
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = tcp_store(*where, is_master=False, wait_for_workers=False)
            while not left.wait(seconds):
                counted[:] = store.add(f"beats_{rank}", 1), store.add(f"beats_{following}", 0)

    def watch() -> None:
        before, missed = [-1, -1], [0, 0]
        while not left.wait(seconds):
            missed = [n + 1 if now == then else 0 for n, now, then in zip(missed, counted, before, strict=True)]
            before = list(counted)
            # The next one is lost only if the store has just answered.
            if missed[0] >= max_missed or (missed[1] >= max_missed and missed[0] == 0):
                on_loss(None if missed[0] else following)
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
            # A thread that is within a call of the store when Python ends would abort the process.
            thread.join(SECONDS_BETWEEN_BEATS)


def exit_after_losing(lost: int | None, world_size: int) -> NoReturn:
    """Ends this process from a thread, since its main thread may wait for the lost one where nothing interrupts it.

    Args:
        lost: What `heartbeat` calls ``on_loss`` with.
        world_size: How many processes there are.
    """
    if lost is None:
        who = f"{os.environ['MASTER_ADDR']}, where the run was launched,"
    else:
        who = f"process {lost} of {world_size}"
    line = (
        f"pgl_pretrain: nothing was heard of {who} for {SECONDS_BETWEEN_BEATS * MAX_MISSED_BEATS:.0f} seconds: its "
        f"machine is down or hangs, or the network between them. {HOW_TO_CONTINUE}"
    )
    print(file=sys.stderr, flush=True)  # below the progress bar
    if lost is None:  # the launcher that would print it is perhaps gone too
        print(line, file=sys.stderr, flush=True)
    else:
        report(line)
    os._exit(1)
