"""What others may have put into a file: bytes changed at random, and values of every wrong kind in every place."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

_NESTED: list[Any] = []
for _ in range(100):
    _NESTED = [_NESTED]

WRONG: tuple[Any, ...] = (
    None, True, -1, 10**400, float("nan"), float("inf"), "", "../../x", "\x1b[2J\n", "9" * 20_000,
    [], {"x": "x"}, [[[]]], [0, 0, 0], [1e999] * 3, _NESTED,
)  # fmt: skip


def variants(content: Any) -> Iterator[tuple[str, Any]]:
    """Copies of tables and lists in which one entry is wrong or missing, with the name of the place."""
    for place in _places(content):
        for wrong in WRONG:
            yield f"{place} = {str(wrong)[:30]}", _changed(content, place, wrong)
        if place:
            yield f"{place} missing", _without(content, place)


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _places(value, (*place, key))


def _changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = copy.copy(content)
    changed[place[0]] = _changed(content[place[0]], place[1:], value)
    return changed


def _without(content: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.copy(content)
    if place[1:]:
        changed[place[0]] = _without(content[place[0]], place[1:])
    else:
        del changed[place[0]]
    return changed


def harmed(content: bytes, rng: random.Random, start: int = 0, stop: int | None = None) -> bytes:
    """One to five bytes of ``[start, stop)`` changed, or up to eight lost or put in there."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        at, kind = rng.randrange(start, min(stop or len(changed), len(changed))), rng.random()
        if kind < 0.6:
            changed[at] = rng.randrange(256)
        elif kind < 0.8:
            del changed[at : at + rng.randint(1, 8)]
        else:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)
