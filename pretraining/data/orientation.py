"""How the axes of a scan lie in the body: from the header alone, as three letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

# The direction in which the index grows along (z, y, x), such as ("S", "P", "L"): to the left or right of the body, to
# its back (P) or front (A), to its head (S) or feet (I).
Orientation: TypeAlias = tuple[str, str, str]

LATERAL = "left-right"
# The world's axes in ITK and DICOM point to the left, the back and the head: negative, positive direction, name.
_WORLD = (("R", "L", LATERAL), ("A", "P", "front-back"), ("I", "S", "head-feet"))
_AXIS_OF = {letter: name for *letters, name in _WORLD for letter in letters}


def orientation_of_direction(direction: Sequence[float]) -> Orientation | None:
    """Letters for direction cosines.

    The axis with the largest component from left to right is the lateral one, whatever the others are; the other two
    share the rest in the way that makes the sum of their components largest.

    Args:
        direction: ITK's nine numbers, row by row: column i is the direction of the array's axis 2 - i. Columns may be
            of any length.

    Returns:
        None where they span no space.
    """
    columns = np.reshape(np.asarray(direction, dtype=np.float64), (3, 3))[:, ::-1]
    if not np.isfinite(columns).all() or (lengths := np.linalg.norm(columns, axis=0)).min() == 0:
        return None
    columns = columns / lengths
    if abs(np.linalg.det(columns)) < 1e-3:
        return None
    sizes = np.abs(columns)
    lateral = int(sizes[0].argmax())
    one, two = (axis for axis in range(3) if axis != lateral)
    if sizes[1, one] + sizes[2, two] < sizes[1, two] + sizes[2, one]:
        one, two = two, one
    letters = {axis: _WORLD[world][int(columns[world, axis] > 0)] for world, axis in enumerate((lateral, one, two))}
    return (letters[0], letters[1], letters[2])


def orientation_of_codes(codes: Any) -> Orientation | None:
    """What a record holds: three letters, or None.

    Raises:
        ValueError: If it is neither, or two letters are of one axis of the body.
    """
    if codes is None:
        return None
    axes = sorted(_AXIS_OF.get(str(code), "") for code in codes) if isinstance(codes, list) else []
    if axes != sorted(name for *_, name in _WORLD):
        raise ValueError(f"orientation {codes}")
    return (codes[0], codes[1], codes[2])


def body_axes(orientation: Orientation) -> tuple[str, str, str]:
    """Axis of the body, either way, that (z, y, x) run along."""
    z, y, x = (_AXIS_OF[letter] for letter in orientation)
    return (z, y, x)
