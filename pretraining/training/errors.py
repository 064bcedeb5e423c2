"""How a run ends early: by its own fault, or because another of its processes has ended."""

from __future__ import annotations

HOW_TO_GO_ON = "Add --c to go on from the last saved epoch; torchrun --max-restarts N does so by itself"

STOPPED = (
    "stopped by SIGTERM: another process of this run was killed or has failed (its own message, if any, stands above), "
    f"or the job was cancelled or ran out of time. {HOW_TO_GO_ON}"
)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class ProcessLost(RuntimeError):  # noqa: N818 - it describes the process
    """This process ends because another one did, which has the reason; the message may be empty."""
