"""A process that does not answer is noticed; one that has left is not lost."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import timedelta

import pytest
import torch.distributed as dist

from pretraining.training.heartbeat import heartbeat

BEAT, MOST = 0.05, 6


@pytest.fixture
def store() -> dist.Store:
    return dist.PrefixStore("group", dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))


def beating(store: dist.Store, rank: int, lost: list[int]) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(heartbeat(store, "attempt", rank, 2, lost.append, BEAT, MOST))
    return stack


def wait_for(lost: list[int]) -> None:
    end = time.monotonic() + 60
    while not lost:
        assert time.monotonic() < end
        time.sleep(BEAT)


def test_who_beats_is_not_lost(store: dist.Store) -> None:
    lost: list[int] = []
    with beating(store, 0, lost), beating(store, 1, lost):
        time.sleep(4 * MOST * BEAT)
    assert lost == []


def test_who_never_beats_is_lost(store: dist.Store) -> None:
    lost: list[int] = []
    begin = time.monotonic()
    with beating(store, 0, lost):
        wait_for(lost)
    assert lost == [1]
    assert time.monotonic() - begin > (MOST - 2) * BEAT


def test_who_has_left_is_not_lost(store: dist.Store) -> None:
    """As a process does that is done, while another one still writes."""
    lost: list[int] = []
    with beating(store, 0, lost):
        with beating(store, 1, lost):
            time.sleep(3 * BEAT)
        time.sleep(4 * MOST * BEAT)
    assert lost == []


def test_another_attempt_starts_anew(store: dist.Store) -> None:
    """torchrun keeps the store, in which the processes of the first attempt have left."""
    lost: list[int] = []
    with beating(store, 0, lost), beating(store, 1, lost):
        pass
    with ExitStack() as second:
        second.enter_context(heartbeat(store, "second", 0, 2, lost.append, BEAT, MOST))
        wait_for(lost)
    assert lost == [1]


def test_waiting_for_a_key_does_not_stop_the_beats(store: dist.Store) -> None:
    """The store's own connection is taken while a process waits for the main one, perhaps for hours."""
    lost: list[int] = []
    with beating(store, 0, lost), beating(store, 1, lost), pytest.raises(RuntimeError):
        store.wait(["never"], timedelta(seconds=4 * MOST * BEAT))
    assert lost == []
