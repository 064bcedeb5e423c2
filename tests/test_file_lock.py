"""Locks end with the processes that hold them, and say which process that is."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from pretraining.file_lock import FileLock, LockHolder

fcntl = pytest.importorskip("fcntl")  # not on Windows

ANOTHER = """
import subprocess, sys
from pathlib import Path
from pretraining.file_lock import FileLock

with FileLock(Path(sys.argv[1])) as lock:
    assert lock.take() and lock.is_held
    if sys.argv[2] == "with a command":
        command = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL, pass_fds=lock.inherited)
        print(command.pid, flush=True)
    print("taken", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", ANOTHER, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with FileLock(path) as one, FileLock(path) as other:
        assert one.take()
        assert not other.take()
        assert not other.take(patience=0.01)
        assert (one.is_held, other.is_held, other.inherited) == (True, False, ())
        assert other.holder() == LockHolder(os.getpid(), socket.gethostname())
    assert other.holder() is None
    with FileLock(path) as again:
        assert again.take()


def test_asking_who_has_it_makes_no_file(tmp_path: Path) -> None:
    assert FileLock(tmp_path / "a.lock").holder() is None
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    with another_process(lock.path) as other, lock:
        assert next_line(other) == "taken"
        assert not lock.take()
        holder = lock.holder()
        assert holder is not None
        assert (holder.process, holder.has_ended) == (other.pid, False)
        assert str(holder) == f"process {other.pid} on {socket.gethostname()}"
        other.kill()
        other.wait()
        assert holder.has_ended
        assert lock.take()


def test_a_command_that_outlives_its_process_holds_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    with another_process(lock.path, "with a command") as other, lock:
        command = int(next_line(other))
        assert next_line(other) == "taken"
        other.kill()
        other.wait()
        try:
            assert not lock.take()
            holder = lock.holder()
            assert holder is not None
            assert holder.has_ended
        finally:
            os.kill(command, signal.SIGKILL)
        assert lock.take(patience=60)


def test_nothing_is_known_of_processes_elsewhere() -> None:
    assert not LockHolder(2**22 + 1, "another-machine").has_ended
    assert LockHolder(2**22 + 1, socket.gethostname()).has_ended  # more than Linux numbers


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, operation: int) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with FileLock(tmp_path / "a.lock") as one, FileLock(tmp_path / "a.lock") as other:
        assert one.take()
        assert other.take()
        assert not one.is_held
        assert other.holder() is None


def test_whoever_may_write_in_the_folder_may_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask of the user that was the first; where this does not help, a file to read is locked."""
    tmp_path.chmod(0o775)
    path = tmp_path / "a.lock"
    before = os.umask(0o077)
    try:
        with FileLock(path) as lock:
            assert lock.take()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664
    real = os.open

    def of_another_user(file: Path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, flags, *mode)

    monkeypatch.setattr("pretraining.file_lock.os.open", of_another_user)
    with FileLock(path) as one, FileLock(path) as other:
        assert one.take()
        assert one.is_held
        assert not other.take()
    path.unlink()
    with FileLock(path) as lock, pytest.raises(PermissionError):
        lock.take()
