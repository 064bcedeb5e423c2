"""Settings read from a file: each field has the type that its data class declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**63


def require_field_types(settings: Any) -> None:
    """Checks a data class of plain values, and those in it.

    Raises:
        TypeError: Names the field and its value.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {str(value)[:80]!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _entries_fit(value, arguments)
    if origin is not None and issubclass(origin, Mapping):
        key, entry = arguments
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, entry) for k, v in value.items())
    if hint in (int, float):
        kinds = int if hint is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
        require_field_types(value)
    return isinstance(value, hint)


def _entries_fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1] is Ellipsis:
        return all(_fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(_fits, values, hints))
