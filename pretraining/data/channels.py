"""Which scans can be seen with all their channels at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from pretraining.data.scan import DataError, Scan, Skipped

logger = logging.getLogger(__name__)


def with_joint_channels(scans: Sequence[Scan], planned: int | None = None) -> tuple[list[Scan], list[Skipped]]:
    """Keep the scans that have the same number of channels; an encoder that takes all at once needs it.

    Args:
        scans: The pool.
        planned: Number of channels of a plan; None: the number that most scans have, the larger of two that are
            equally common.

    Returns:
        The scans kept, and the others with the reason.

    Raises:
        DataError: If no scan has the plan's number.
    """
    counts = Counter(len(scan.channels) for scan in scans)
    number = planned if planned is not None else max(counts, key=lambda count: (counts[count], count))
    kept = [scan for scan in scans if len(scan.channels) == number]
    if not kept:
        found = ", ".join(map(str, sorted(counts)))
        raise DataError(
            f"-channels joint: the plan is for {_counted(number)} and no scan has as many (found: {found}); use "
            "-channels each, or another plan"
        )
    origin = "of the plan" if planned is not None else "that most scans have"
    reason = f"-channels joint takes scans with {_counted(number)}, the number {origin}"
    skipped = [
        Skipped(scan.name, scan.source, f"has {_counted(len(scan.channels))}; {reason}")
        for scan in scans
        if len(scan.channels) != number
    ]
    _warn_of_names(kept)
    return kept, skipped


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"


def _warn_of_names(scans: Sequence[Scan]) -> None:
    """Channels are joined by their numbers, so the same number should mean the same in all sources."""
    example = {tuple(name.casefold() for name in scan.channels): scan for scan in reversed(scans)}
    if len(example) > 1:
        named = "; ".join(f"{scan.source}: {', '.join(scan.channels)}" for scan in list(example.values())[:3])
        logger.warning("-channels joint joins channels by number, but their names differ (%s)", named)
