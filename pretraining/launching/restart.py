"""torchrun: which job started a run, so that its restarts go on with it without ``--c``."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def claim(folder: Path) -> None:
    """Notes in a run folder that this torchrun job has started the run; does nothing without torchrun."""
    if (job := _job()) is not None:
        _note(folder).write_text(job + "\n")


def started_here(folder: Path) -> bool:
    """Whether this torchrun job has started the run itself, before it restarted this process."""
    job, note = _job(), _note(folder)
    return job is not None and note.exists() and note.read_text().strip() == job


def release(folder: Path) -> None:
    """Removes the note from a finished run."""
    _note(folder).unlink(missing_ok=True)


def _job() -> str | None:
    """The agent that started this process, which lives through restarts; None without torchrun.

    Its id alone does not tell: without ``--rdzv-id`` all jobs have the same. Nor does the number of restarts: an agent
    does not count those that another node brought about.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run_id is None else f"{run_id} {socket.gethostname()} {os.getppid()}"


def _note(folder: Path) -> Path:
    return folder / "torchrun_id.txt"
