"""What a checkpoint tells of itself: checked when it is read, since others may have written it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from nnunetv2_pgl.errors import PGLError

_DEEPEST = 20  # levels of tables and lists; ours have six
_LONGEST = 10_000  # characters of a text, entries of a list


class ProvenanceError(PGLError):
    """Something that no checkpoint of ours tells; the message says what, without the file."""


def require_provenance(pgl: Mapping[str, Any]) -> None:
    """Checks the entry ``pgl`` of a checkpoint. It may lack most of it, and hold more than is known here.

    Args:
        pgl: See `EncoderCheckpoint`.

    Raises:
        ProvenanceError: Something has another type than `pgl_pretrain` writes, or an impossible value.
    """
    require_plain(pgl)
    if not isinstance(pgl.get("architecture"), dict):
        raise ProvenanceError("does not say which architecture it is for")
    _require(pgl, _PGL)
    _require(pgl["architecture"], _ARCHITECTURE, "architecture.")
    _require(pgl.get("intensity") or {}, _INTENSITY, "intensity.")


def readable_citations(citations: object) -> list[dict[str, Any]]:
    """Those of the entry ``citations`` of a checkpoint that are tables with a list of ``apa_citations``.

    Raises:
        ProvenanceError: They cannot be printed.
    """
    require_plain(citations)
    found = citations if isinstance(citations, list) else []
    return [entry for entry in found if isinstance(entry, dict) and _are_references(entry.get("apa_citations"))]


def require_plain(value: object, levels: int = _DEEPEST) -> None:
    """Checks that something consists of tables, lists, numbers and texts that can be printed.

    Raises:
        ProvenanceError: It holds something else, or too much.
    """
    if levels == 0:
        raise ProvenanceError(f"its description is nested more than {_DEEPEST} levels deep")
    if isinstance(value, dict | list | tuple):
        if len(value) > _LONGEST:
            raise ProvenanceError(f"its description has a list of {len(value)} entries")
        for entry in (*value, *value.values()) if isinstance(value, dict) else value:
            require_plain(entry, levels - 1)
    elif isinstance(value, str):
        if len(value) > _LONGEST or not value.replace("\n", "").isprintable():
            raise ProvenanceError(f"its description has the text {value[:40]!r}, which cannot be printed")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ProvenanceError("its description holds a number of more than 64 bits")
    elif value is not None and not isinstance(value, int | float):
        raise ProvenanceError(f"its description holds a {type(value).__name__}")


def _require(values: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], bool]], where: str = "") -> None:
    for key, is_right in kinds.items():
        value = values.get(key)
        if value is not None and not is_right(value):
            raise ProvenanceError(f"its {where}{key} is {str(value)[:80]!r}, which pgl_pretrain does not write")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\n" not in value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_finite_or_nan(value: Any) -> bool:
    return (isinstance(value, float) and math.isnan(value)) or _is_number(value)


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(n) and n > 0 for n in value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _are_references(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _table_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(map(_is_text, value)) and all(map(is_right, value.values()))

    return check


def _is_properties(value: Any) -> bool:
    """Those of a channel of CT; a channel of anything else has none."""
    needed = {"mean", "std", "percentile_00_5", "percentile_99_5"}
    return _table_of(_is_number)(value) and (not value or (needed <= value.keys() and value["std"] > 0))


def _anything(_: Any) -> bool:
    return True


_PGL: dict[str, Callable[[Any], bool]] = {
    "method": _is_text,
    "framework": _is_text,
    "untrained_stages": lambda value: isinstance(value, list) and all(_is_text(s) or _is_count(s) for s in value),
    "datasets": _are_texts,
    "epochs": _is_count,
    "num_scans": _is_count,
    "spacing": _is_triple,
    "view_size": _is_triple,
    "created": _is_text,
    "metrics": _table_of(_is_finite_or_nan),
    "versions": _table_of(_is_text),
    "config": _table_of(_anything),
    "manifest": _table_of(_anything),
    "intensity": _table_of(_anything),
}
_ARCHITECTURE: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "norm": lambda value: value in ("batch", "instance"),
    "centred": lambda value: isinstance(value, bool),
    "strides": _is_triple,
    "in_channels": lambda value: _is_count(value) and value > 0,
    "network": lambda value: (
        isinstance(value, dict) and _is_text(value.get("class_name")) and isinstance(value.get("kwargs"), dict)
    ),
}
_INTENSITY: dict[str, Callable[[Any], bool]] = {
    "modality": _is_text,
    "clip": _is_range,
    "normalisation": _is_text,
    "normalization_schemes": lambda value: _are_texts(value) and len(value) > 0,
    "foreground_intensity_properties_per_channel": _table_of(_is_properties),
}
