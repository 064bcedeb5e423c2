"""A process that does not answer is noticed; one that has left is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from pretraining.launching.heartbeat import heartbeat

BEAT, MOST = 0.05, 6


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
    store = tcp_store("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def beating(rank: int, lost: list[int | None]) -> AbstractContextManager[None]:
    return heartbeat(rank, 2, lost.append, BEAT, MOST)


def wait_for(lost: list[int | None]) -> None:
    end = time.monotonic() + 60
    while not lost:
        assert time.monotonic() < end
        time.sleep(BEAT)


def test_who_beats_is_not_lost() -> None:
    lost: list[int | None] = []
    with beating(0, lost), beating(1, lost):
        time.sleep(4 * MOST * BEAT)
    assert lost == []


def test_who_beats_no_more_is_lost() -> None:
    lost: list[int | None] = []
    with beating(0, lost):
        with beating(1, lost):
            time.sleep(4 * BEAT)
        assert lost == []
        begin = time.monotonic()
        wait_for(lost)
    assert lost == [1]
    assert time.monotonic() - begin > (MOST - 2) * BEAT


def test_a_process_after_one_that_was_lost_beats_on_with_its_count() -> None:
    """torchrun keeps the store when it restarts."""
    lost: list[int | None] = []
    for _ in range(2):
        with beating(0, lost), beating(1, lost):
            time.sleep(2 * MOST * BEAT)
    assert lost == []


def test_no_thread_is_left_within_a_call_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes back from C++ when Python has ended aborts the process."""
    asked = threading.Event()

    class SlowStore:
        def __init__(self, *where: object, **options: bool) -> None:
            pass

        def add(self, key: str, value: int) -> int:
            asked.set()
            time.sleep(10 * BEAT)
            return 0

    monkeypatch.setattr(dist, "TCPStore", SlowStore)
    before = set(threading.enumerate())
    with beating(0, []):
        assert asked.wait(60)
    assert set(threading.enumerate()) <= before


STORE = """
import sys, torch.distributed as dist
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_store_that_does_not_answer_is_not_a_lost_process(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int | None] = []
    with subprocess.Popen(
        [sys.executable, "-c", STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as other:
        assert other.stdout is not None
        monkeypatch.setenv("MASTER_PORT", other.stdout.readline().decode().strip())
        with beating(0, lost), beating(1, lost):
            time.sleep(2 * MOST * BEAT)
            assert lost == []
            other.send_signal(number)
            wait_for(lost)
            other.kill()
    assert set(lost) == {None}


def test_waiting_for_a_key_does_not_stop_the_beats(store: Any) -> None:
    """The store's own connection is taken while a process waits for the main one, perhaps for hours."""
    lost: list[int | None] = []
    with beating(0, lost), beating(1, lost), pytest.raises(RuntimeError):
        store.wait(["never"], timedelta(seconds=4 * MOST * BEAT))
    assert lost == []
