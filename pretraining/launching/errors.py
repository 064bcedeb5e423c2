"""How a run ends early: by its own fault, because it was asked to, or because another of its processes has ended."""

from __future__ import annotations

from nnunetv2_pgl.errors import PGLError

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, to be tried again
HOW_TO_GO_ON = "Add --c to go on from what was saved last; torchrun --max-restarts N does so by itself"


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal has asked the run to end, and it has saved what it had; the message says so."""


class TrainingError(PGLError):
    """A run that cannot go on; the message says why and what to do."""


class ProcessLost(RuntimeError):  # noqa: N818 - it describes the process
    """This process ends because another one did, which has the reason; the message may be empty."""
