"""Values of options that are neither numbers nor words of a list: voxel spacings, and names in a text file."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_pgl.errors import PGLError


def parse_spacing(given: Sequence[str], option: str) -> Any:
    """A spacing: "median", "native", or three numbers in mm.

    Raises:
        PGLError: Names the option and what was given.
    """
    if len(given) == 1 and given[0] in ("median", "native"):
        return given[0]
    try:
        numbers = tuple(float(value) for value in given)
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) <= 0:
        raise PGLError(f"{option} {' '.join(given)}: give median, native, or three positive values z y x in mm")
    return numbers


def names_in(file: Path, option: str) -> tuple[str, ...]:
    """Names in a text file, one per line, each once and sorted.

    The file is UTF-8, or UTF-16 with a byte order mark, as editors and shells of Windows write it; lines end as they do
    on any system.

    Raises:
        PGLError: The file cannot be read, is not such a text, or holds no name; names the option.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PGLError(f"{option} {file}: cannot be read ({error})") from error
    try:
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8")
    except UnicodeDecodeError as error:
        raise PGLError(f"{option} {file}: is not a text in UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text at all
        raise PGLError(f"{option} {file}: is not a text in UTF-8 (it has bytes that are zero); save it as UTF-8")
    lines = text.replace("\N{BOM}", "").splitlines()  # files that were joined have several marks
    names = tuple(sorted({line.strip() for line in lines} - {""}))
    if not names:
        raise PGLError(f"{option} {file}: holds no names; give one per line")
    return names
