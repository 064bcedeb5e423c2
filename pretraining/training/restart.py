"""Which torchrun job started a run, so that its restarts go on with it although their command lacks ``--c``."""

from __future__ import annotations

import os
from pathlib import Path


def claim(folder: Path) -> None:
    """Notes in a run folder that this torchrun job has started the run; does nothing without torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _note(folder).write_text(os.environ["TORCHELASTIC_RUN_ID"] + "\n")


def started_here(folder: Path) -> bool:
    """Whether torchrun has restarted this process after the job had started the run itself.

    The number of restarts alone does not tell: the first attempt may have ended because another run was there.
    """
    note = _note(folder)
    own = note.exists() and note.read_text().strip() == os.environ.get("TORCHELASTIC_RUN_ID")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if own and not restarted:
        note.unlink()  # of an earlier job with the same id: without --rdzv-id, all have the same
    return own and restarted


def release(folder: Path) -> None:
    """Removes the note from a finished run."""
    _note(folder).unlink(missing_ok=True)


def _note(folder: Path) -> Path:
    return folder / "torchrun_id.txt"
