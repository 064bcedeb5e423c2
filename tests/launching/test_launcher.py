"""How processes that were started together end, with small ones in the place of those that train."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import Stopped
from pretraining.launching.launcher import launch

BEGIN = """
import os, signal, sys, time
from pretraining.launching.errors import end, end_after_another
rank = int(os.environ["RANK"])
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(code: str, count: int = 2) -> None:
    launch(["-c", BEGIN + code], count)


@contextmanager
def asked(send: signal.Signals, folder: Path, count: int, times: int = 1) -> Iterator[None]:
    """Sends this process a signal once as many processes as that have left a file ready... in a folder."""

    def ask() -> None:
        while len(list(folder.glob("ready*"))) < count:
            time.sleep(0.05)
        for number in range(times):
            time.sleep(0.5 * number)
            os.kill(os.getpid(), send)
        (folder / "sent").touch()

    asking = threading.Thread(target=ask)
    asking.start()
    yield
    asking.join()


def test_each_process_knows_its_place(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    run(f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names}))", 3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


def test_processes_are_started_whatever_the_scheduler_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    run("assert os.environ['WORLD_SIZE'] == '2' and rank in (0, 1)")


def test_one_of_several_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(PGLError, match="has WORLD_SIZE=2 and RANK=1: this one is already one of several"):
        run("")


def test_the_line_of_the_first_to_fail_is_the_only_one(capfd: pytest.CaptureFixture[str]) -> None:
    """The other one fails because of it, as it does when a connection is closed."""
    with pytest.raises(SystemExit) as ended:
        run("end('pgl_pretrain: it is too large', 3) if rank == 1 else end_after_another('pgl_pretrain: I am alone')")
    assert ended.value.code == 3
    assert capfd.readouterr() == ("", "pgl_pretrain: it is too large\n")


def test_the_end_waits_for_nothing(tmp_path: Path) -> None:
    """As NCCL's own end would, for what the other processes will never send."""
    with pytest.raises(SystemExit):
        run(f"import atexit; atexit.register(open, {str(tmp_path)!r} + f'/{{rank}}', 'w'); end('over')")
    assert list(tmp_path.iterdir()) == []


def test_lines_that_all_have_are_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("end('pgl_pretrain: the loss is not finite')")
    assert capfd.readouterr().err == "pgl_pretrain: the loss is not finite\n"


def test_a_killed_process_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PGLError, match=r"training process 1 of 2 ended with SIGKILL, .*--c"):
        run("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)")
    assert capfd.readouterr().err.strip() == ""


def test_a_process_without_a_word_is_named() -> None:
    with pytest.raises(PGLError, match=r"training process 0 of 2 ended with exit code 7 \(its message, if any"):
        run("sys.exit(7) if rank == 0 else time.sleep(60)")


@pytest.mark.parametrize("send", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on(send: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Once, whatever comes after it; all save, and what they say is said once."""
    code = f"""
def save(number, frame):
    signal.signal(number, signal.SIG_DFL)
    time.sleep(1)
    open({str(tmp_path)!r} + f"/saved_{{rank}}", "w").close()
    end(f"pgl_pretrain: stopped by {{signal.Signals(number).name}}", 75)
signal.signal(signal.{send.name}, save)
open({str(tmp_path)!r} + f"/ready_{{rank}}", "w").close()
time.sleep(60)
"""

    with asked(send, tmp_path, 2, times=2), pytest.raises(SystemExit) as ended:
        run(code)
    assert ended.value.code == 75
    assert capfd.readouterr().err == f"pgl_pretrain: stopped by {send.name}\n"
    assert len(list(tmp_path.glob("saved_*"))) == 2


def test_a_signal_that_finds_them_starting(tmp_path: Path) -> None:
    """They end before they can say anything."""
    with asked(signal.SIGTERM, tmp_path, 1), pytest.raises(Stopped, match="stopped by SIGTERM; add --c"):
        run(f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(60)", 1)


def test_who_has_a_line_speaks_for_those_that_a_signal_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first to end is not always the one that knows why."""
    code = f"""
def leave(number, frame):
    if rank == 0:
        os._exit(1)
    time.sleep(1)
    end("pgl_pretrain: stopped by SIGTERM before the first step", 75)
signal.signal(signal.SIGTERM, leave)
open({str(tmp_path)!r} + f"/ready_{{rank}}", "w").close()
time.sleep(60)
"""

    with asked(signal.SIGTERM, tmp_path, 2), pytest.raises(SystemExit) as ended:
        run(code)
    assert ended.value.code == 75
    assert capfd.readouterr().err == "pgl_pretrain: stopped by SIGTERM before the first step\n"


def test_nohup_holds(tmp_path: Path) -> None:
    """A signal that was ignored before stays so; here it arrives while a process is at work."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wait = f"while not os.path.exists({str(tmp_path / 'sent')!r}): time.sleep(0.05)"
    with asked(signal.SIGHUP, tmp_path, 1):
        run(f"open({str(tmp_path / 'ready')!r}, 'w').close()\n{wait}\ntime.sleep(0.5)", 1)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
