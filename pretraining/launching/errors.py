"""How a process of a run ends early: the errors, the exit code, and the one line that says why."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, try again
HOW_TO_CONTINUE = "Add --c to continue from the last saved state; torchrun --max-restarts N does so by itself"

_SECONDS_FOR_LAUNCHER = 5.0  # it looks ten times a second


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal has asked the run to end, and it has saved what it had; the message says so."""


class ProcessLost(RuntimeError):  # noqa: N818 - it describes the process
    """This process ends because another one did, which has the reason; the message may be empty."""


def end(line: str, exit_code: int = 1) -> NoReturn:
    """Ends this process with a line."""
    report(line)
    _leave(exit_code)


def end_after_another(line: str) -> NoReturn:
    """Ends a process because another one has ended, but not before their launcher has seen that one end.

    The launcher keeps the reason of the first one only. Two processes of a machine print theirs, in case that one was
    killed and has none: it may be the first of the two.
    """
    if line and not _started_by_num_gpus() and os.environ.get("LOCAL_RANK", "0") in ("0", "1"):
        print(line, file=sys.stderr, flush=True)
    time.sleep(_SECONDS_FOR_LAUNCHER)
    _leave(1)


def report(line: str) -> None:
    """Writes why this process ends where its launcher looks for it, and prints it unless `launch` will.

    torchrun shows it too, in a table after its own traceback.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    if not _started_by_num_gpus():
        print(line, file=sys.stderr, flush=True)


def is_one_of_several() -> bool:
    """Whether a launcher has started this process among others; never fails, since it is asked after errors too."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _leave(exit_code: int) -> NoReturn:
    """At once if there are others: NCCL's shutdown would wait for what they will never send."""
    if not is_one_of_several():
        sys.exit(exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _started_by_num_gpus() -> bool:
    """`launch` starts processes as torchrun does, but gives its job no id."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
