"""``-num_gpus``: the processes of this machine, started as torchrun starts them, and one line when they end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, ProcessFailure, SignalException, start_processes

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import HOW_TO_CONTINUE, Stopped, end, is_one_of_several

_HANGUPS = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]
_SECONDS_BETWEEN_CHECKS = 0.1
_SECONDS_UNTIL_KILLED = 30  # after SIGTERM, as Slurm leaves; after other signals, four times as long


def launch(arguments: Sequence[str], world_size: int) -> None:
    """Runs python with these arguments in processes that train together.

    With the part of torchrun that starts processes and waits for them: all of torchrun would print a traceback and a
    table when one ends, and pass no SIGUSR1 on.

    Raises:
        SystemExit: With the line and the exit code of the process that ended first.
        Stopped: If this process was asked to end, and none of them had a line for it.
        PGLError: If a process was killed, or ended without a line, or this one is itself one of several.
    """
    if is_one_of_several():  # each of which would start as many
        raise PGLError(
            f"-num_gpus starts the processes, but the environment has WORLD_SIZE={os.environ['WORLD_SIZE']} and "
            f"RANK={os.environ['RANK']}: this one is already one of several; leave out -num_gpus, or unset WORLD_SIZE "
            "and RANK"
        )
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _raise_as_torch_does)  # for the others it does so itself
    tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
    store = tcp_store("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environments = {
        rank: {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),  # the store of this process, which outlives the others
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        for rank in range(world_size)
    }
    ignored = [number for number in _HANGUPS if signal.getsignal(number) == signal.SIG_IGN]  # by nohup
    with TemporaryDirectory(prefix="pgl_pretrain_") as folder:
        processes = start_processes(
            "pgl_pretrain",
            sys.executable,
            dict.fromkeys(environments, ("-u", *arguments)),
            environments,
            DefaultLogsSpecs(folder),
        )
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)  # which torch has undone
        asked = None
        try:
            result = processes.wait(period=_SECONDS_BETWEEN_CHECKS)
        except SignalException as signalled:
            asked = signalled.sigval
            for number in {signal.SIGTERM, signal.SIGINT, asked}:
                signal.signal(number, signal.SIG_IGN)  # one is enough
            patience = _SECONDS_UNTIL_KILLED * (1 if asked == signal.SIGTERM else 4)
            processes.close(asked, patience)  # passes the signal on
            result = processes.wait(0)
        if result is not None and result.failures:
            failures = list(result.failures.items())  # in the order in which they ended
            if asked is not None:  # the signal was for all: prefer a process that left a message
                failures.sort(key=lambda item: not os.path.exists(item[1].error_file))
            _explain(*failures[0], world_size, asked)


def _explain(rank: int, failure: ProcessFailure, world_size: int, asked: signal.Signals | None) -> NoReturn:
    """Ends as the process did that failed first; those that fail after it only do so because of it."""
    if os.path.exists(failure.error_file):
        end(failure.message, failure.exitcode)
    print(file=sys.stderr)  # below the progress bar
    if asked is not None:
        raise Stopped(f"stopped by {asked.name}; add --c to continue from the last saved state")
    if failure.exitcode < 0:
        how = f"{failure.signal_name()}, often sent by the system for lack of memory"
    else:
        how = f"exit code {failure.exitcode} (its message, if any, is above)"
    raise PGLError(
        f"training process {rank} of {world_size} ended with {how}; the others were stopped. {HOW_TO_CONTINUE}"
    )


def _raise_as_torch_does(number: int, frame: object) -> NoReturn:
    raise SignalException("", signal.Signals(number))
