"""NRRD headers: whether they state the spacing. ITK takes 1 where they do not, and does not tell."""

import math
import re
from pathlib import Path

_MOST = 1024**2  # bytes of a header
_SPACING = ("spacings", "space directions")
_IN_SPACE = ("domain", "space", "time", "???", "none")  # kinds of axes; ITK takes others for values of a voxel


def states_spacing(file: Path) -> bool:
    """Whether there is a number for each axis in space, in ``spacings`` or ``space directions``."""
    with file.open("rb") as stream:
        header = re.split(rb"\r?\n\r?\n", stream.read(_MOST), maxsplit=1)[0]
    parted = [line.partition(":") for line in header.decode("latin-1").splitlines()]
    fields = {key.strip().lower(): re.findall(r"\([^)]*\)|[^\s()]+", value) for key, _, value in parted}
    axes = fields.get(_SPACING[0]) or fields.get(_SPACING[1]) or []
    kinds = fields.get("kinds", [""] * len(axes))
    in_space = [axis for axis, kind in zip(axes, kinds, strict=False) if kind.lower() in ("", *_IN_SPACE)]
    return bool(in_space) and all(map(_is_finite, in_space))


def _is_finite(axis: str) -> bool:
    """Whether a number, or all of a vector in brackets, are such."""
    try:
        return all(math.isfinite(float(number)) for number in axis.strip("()").split(","))
    except ValueError:
        return False
