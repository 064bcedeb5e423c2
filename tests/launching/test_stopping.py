"""Signals that ask a run to end: it saves, says how to go on, and exits with a code of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from pretraining.launching.errors import STOPPED_EXIT_CODE, Stopped
from pretraining.launching.stopping import StopSignals
from tests.machine import SHORT, Machine, output_of, records, wait_for

LONG = (*SHORT, "-epochs", "1000", "-save_every", "1000")  # nothing is saved before the signal


def stop(machine: Machine, process: subprocess.Popen[str], name: str, send: int, group: bool) -> str:
    """Sends a signal after the first epoch, and returns what the process says in its last line."""
    wait_for(machine.run_folder(name) / "metrics.jsonl", process)
    sent = time.monotonic()
    os.killpg(process.pid, send) if group else os.kill(process.pid, send)
    output = output_of(process, STOPPED_EXIT_CODE)
    assert time.monotonic() - sent < 30
    assert "Traceback" not in output
    return output.splitlines()[-1]


def test_a_run_saves_and_goes_on(machine: Machine) -> None:
    """The signal goes to the whole group, loading process included, as Slurm and a terminal send it.

    What the others do is tested with several processes, to whom their parent passes them on.
    """
    send = signal.SIGTERM
    process = machine.start("pgl_pretrain", *LONG, "-o", send.name, nnUNet_n_proc_DA="1")
    last = stop(machine, process, send.name, send, group=True)
    folder = machine.run_folder(send.name)
    assert last.startswith(f"pgl_pretrain: stopped by {send.name} after step")
    assert str(folder / "checkpoint_latest.pth") in last
    assert "--c" in last
    done = len(records(folder))
    process = machine.start("pgl_pretrain", "-o", send.name, "--c", "-device", "cpu", "-np", "1")
    wait_for_epoch(machine, process, send.name, done)
    process.kill()
    assert (
        f"Continuing after step {last.split('after step ')[1].split()[0]} of epoch {done}" in process.communicate()[0]
    )


def wait_for_epoch(machine: Machine, process: subprocess.Popen[str], name: str, epoch: int) -> None:
    end = time.monotonic() + 200
    while epoch not in [record["epoch"] for record in records(machine.run_folder(name))]:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_processes_that_train_together_stop_together(machine: Machine, send: signal.Signals) -> None:
    name = f"together_{send.name}"
    process = machine.start("pgl_pretrain", *LONG, "-num_gpus", "2", "-o", name)
    last = stop(machine, process, name, send, group=False)
    assert last.startswith(f"pgl_pretrain: stopped by {send.name} after step")
    assert (machine.run_folder(name) / "checkpoint_latest.pth").exists()


# A process whose last save takes long.
SLOW_END = """
import time
from pretraining.training import pretrain
finish = pretrain._finish
def slowly(config, folder, *arguments):
    (folder.path / "finishing").touch()
    time.sleep(3)
    finish(config, folder, *arguments)
pretrain._finish = slowly
from pretraining.cli import pretrain_entry
pretrain_entry()
"""


@pytest.mark.slow
def test_a_signal_during_the_last_save_comes_too_late_for_all(machine: Machine) -> None:
    """Else the process that only waits would end the run, and a scheduler start it again."""
    processes = machine.start_ranks(SLOW_END, (*SHORT, "-epochs", "1", "-o", "ending"))
    wait_for(machine.run_folder("ending") / "finishing", processes[0])
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
    for process in processes:
        output_of(process, 0)
    assert (machine.run_folder("ending") / "checkpoint_final.pth").exists()


def test_before_the_first_step_a_signal_ends_the_run_at_once() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with StopSignals().caught(), pytest.raises(Stopped, match="SIGTERM before the first step"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_interrupt_ends_it_at_once() -> None:
    with StopSignals().caught() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGUSR1"
        stop.received = "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
