"""Scans as found in one source, before they get their names, and how names are made."""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.data.scan import DEFAULT_READER, Geometry

logger = logging.getLogger(__name__)

_MOST_ENDINGS = 8


@dataclass(frozen=True)
class Candidate:
    """A scan within its source.

    Attributes:
        stem: File name without ending, case identifier, or series name.
        parents: Names of the folders between the source's own folder and the scan.
        files: As in ``Scan``; so are all that follow.
    """

    stem: str
    parents: tuple[str, ...]
    files: tuple[str, ...]
    channels: tuple[str, ...]
    is_ct: tuple[bool, ...]
    reader: str = DEFAULT_READER
    geometry: Geometry | None = None
    may_be_mask: bool = False


def odd_path(file: Path) -> str:
    """What is wrong with a path that is no text, at which SimpleITK ends the process; empty where nothing is."""
    path = os.fspath(file)
    return "" if printable(path) == path else f"its path is no UTF-8 text ({printable(path)}): rename it"


def printable(name: str) -> str:
    """With bytes that are no UTF-8 as such are shown."""
    return name.encode(errors="backslashreplace").decode()


def safe_name(text: str) -> str:
    """Make a name that every file system takes: letters and digits of any script, ``-``, ``_`` and ``.`` are kept."""
    normal = unicodedata.normalize("NFC", text)
    return re.sub(r"[^\w.-]+", "_", normal).strip("._") or "scan"


def identifiers(candidates: Sequence[Candidate]) -> list[str]:
    """Name the scans of one source; those that would share a name get their folders in front."""
    short = [safe_name(candidate.stem) for candidate in candidates]
    long = [safe_name("_".join((*candidate.parents, candidate.stem))) for candidate in candidates]
    return distinct(short, long)


def distinct(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Use the short name where nobody shares it, else the long one, and a number where that is shared too.

    Upper and lower case count as the same: some file systems do not tell them apart.
    """
    shared = Counter(name.casefold() for name in short)
    names = [brief if shared[brief.casefold()] == 1 else full for brief, full in zip(short, long, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index].casefold() in taken:
            names[index] = f"{name}_{number}"
            number += 1
        taken.add(names[index].casefold())
    return names


def tell_unused(source: str, files: Iterable[Path]) -> None:
    """A line of the log that counts files which are no scans, by their endings."""
    counts = Counter(
        "hidden" if file.name.startswith(".") else file.suffix.lower() or "without ending" for file in files
    )
    told = [f"{count} {ending}" for ending, count in counts.most_common(_MOST_ENDINGS)]
    if others := sum(counts.values()) - sum(count for _, count in counts.most_common(_MOST_ENDINGS)):
        told.append(f"{others} other{'s' if others > 1 else ''}")
    if told:
        logger.warning("%s: files passed over, which are no scans: %s", source, ", ".join(told))
