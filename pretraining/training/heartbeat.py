"""Notices a process that is gone without a word: its machine is down, hangs, or is cut off.

A connection that nobody closes says nothing of that, and a collective operation would wait for it for half an hour.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

_SECONDS = 5.0  # between two beats
_MOST_MISSED = 10  # beats
_LEFT = 2**40  # what a process adds to its count as it leaves


@contextmanager
def heartbeat(
    store: Store,
    name: str,
    rank: int,
    count: int,
    lost: Callable[[int], None],
    seconds: float = _SECONDS,
    most_missed: int = _MOST_MISSED,
) -> Iterator[None]:
    """Tells the other processes that this one lives, and watches the next one.

    Beats are counted, not timed: a job that the scheduler suspends as a whole finds all of its processes alive.

    Args:
        store: Of the process group.
        name: The same on all processes, and new with each attempt, since torchrun keeps the store.
        rank: Of this process.
        count: How many there are.
        lost: Called with the rank of the next process, from a thread, when it has missed too many beats, or the store
            does not answer for as long.
        seconds: Between two beats.
        most_missed: Beats.
    """
    ended, watched = threading.Event(), (rank + 1) % count
    client = PrefixStore(name, _client_of(store))
    heard = [client.add(str(watched), 0)]

    def beat() -> None:
        with suppress(RuntimeError):  # the store has gone, which those who wait for it notice
            while not ended.wait(seconds):
                client.add(str(rank), 1)
                heard[0] = client.add(str(watched), 0)

    def watch() -> None:
        last, missed = heard[0], 0
        while not ended.wait(seconds) and last < _LEFT:
            missed = missed + 1 if heard[0] == last else 0
            last = heard[0]
            if missed >= most_missed and beating.is_alive():
                lost(watched)
                return

    beating, watching = (threading.Thread(target=target, daemon=True) for target in (beat, watch))
    beating.start()
    watching.start()
    try:
        yield
    finally:
        ended.set()
        with suppress(RuntimeError):
            beating.join(seconds)
            if not beating.is_alive():  # else the store does not answer
                client.add(str(rank), _LEFT)


def _client_of(store: Store) -> Store:
    """A connection of its own: one that waits for a key lets no other thread through."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
    if not isinstance(store, tcp_store):
        return store
    connection: Store = tcp_store(
        *(store.host, store.port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    return connection
