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
    beats = _Beats(PrefixStore(name, _client_of(store)), rank, (rank + 1) % count, seconds)
    beats.beating.start()
    threading.Thread(target=beats.watch, args=(most_missed, lost), daemon=True).start()
    try:
        yield
    finally:
        beats.leave()


class _Beats:
    """Beats of this process and of the one that it watches, as the store counts them."""

    def __init__(self, store: Store, rank: int, watched: int, seconds: float):
        self._store, self._rank, self._watched, self._seconds = store, rank, watched, seconds
        self._heard = store.add(str(watched), 0)
        self._left = threading.Event()
        self.beating = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store has gone, which those who wait for it notice
            while not self._left.wait(self._seconds):
                self._store.add(str(self._rank), 1)
                self._heard = self._store.add(str(self._watched), 0)

    def watch(self, most_missed: int, lost: Callable[[int], None]) -> None:
        last, missed = self._heard, 0
        while not self._left.wait(self._seconds) and last < _LEFT:
            heard = self._heard
            missed = missed + 1 if heard == last else 0
            last = heard
            if missed >= most_missed and self.beating.is_alive():
                lost(self._watched)
                return

    def leave(self) -> None:
        """So that nobody takes this process for lost."""
        self._left.set()
        self.beating.join(self._seconds)
        if not self.beating.is_alive():  # else the store does not answer
            with suppress(RuntimeError):
                self._store.add(str(self._rank), _LEFT)


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
