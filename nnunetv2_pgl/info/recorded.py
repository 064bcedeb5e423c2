"""What a checkpoint records of its scans and measurements, in one form for files of every age and origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_pgl.errors import counted

# Of the last epoch, what says whether the encoder knows places by the image or by their position in the view.
ANATOMY = (
    *("flipped_right", "position_code", "ceiling", "decoy"),
    *("unflipped_right", "unflipped_position_code", "unflipped_ceiling", "miss_distance"),
)

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Source:
    """A dataset or folder of scans; None is what is not known.

    Attributes:
        name: Without its path.
        scans: How many, those held out included.
        held_out: How many of them were only measured on.
        channels: Names of the channels, in one text.
        licence: As the dataset states it. "not stated" if it does not; None if nobody has looked.
        reference: Where it is from, as the dataset states it.
    """

    name: str
    scans: int | None = None
    held_out: int | None = None
    channels: str | None = None
    licence: str | None = None
    reference: str | None = None

    def __str__(self) -> str:
        scans = None if self.scans is None else counted(self.scans, "scan")
        known = ", ".join(filter(None, (scans, f"licence {self.licence or 'not recorded'}", self.reference)))
        return f"{self.name} ({known})"


def sources_of(pgl: Mapping[str, Any]) -> list[Source]:
    """Where the scans of an encoder are from; files of earlier versions know names and numbers of scans at most."""
    entries = pgl.get("sources")
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) and entries:
        return [_source(entry) for entry in entries]
    counts = table(table(pgl, "manifest"), "scans_per_source")
    datasets = pgl.get("datasets")
    names = counts or dict.fromkeys(map(str, datasets) if isinstance(datasets, list | tuple) else ())
    return [Source(str(name), _number(count)) for name, count in names.items()]


def _source(entry: Mapping[str, Any]) -> Source:
    channels, terms = entry.get("channels"), [entry.get("reference"), entry.get("release")]
    return Source(
        str(entry.get("name")),
        _number(entry.get("scans")),
        _number(entry.get("held_out")),
        ", ".join(map(str, channels)) if isinstance(channels, list) else None,
        str(entry.get("licence") or NOT_STATED),
        ", ".join(str(term) for term in terms if term) or None,
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table in a table; empty if it is missing or something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of nested tables under joined names, such as ``views.size``."""
    entries: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        entries |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return entries


def number_text(value: Any) -> str:
    """A value in words; floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
