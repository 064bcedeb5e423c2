"""What two encoder checkpoints differ in, as a table of three columns."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.errors import counted, one_line
from nnunetv2_pgl.info.recorded import ANATOMY, flat, number_text, sources_of, table

_UNKNOWN = "unknown"
_NAMES_WIDTH, _LEAST_WIDTH = 26, 20
# Of a record, what says how long an epoch took, not how good it was.
_TIMES = ("epoch", "seconds", "scans_per_second", "views_per_second", "waiting")
_SHOWN_ABOVE = ("datasets", "method", "architecture", "network", "epochs")

Row = tuple[str, str, str]


def difference_lines(
    checkpoints: tuple[EncoderCheckpoint, EncoderCheckpoint],
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    paths: tuple[Path, Path],
    digests: tuple[str, str],
) -> list[str]:
    """The table for the terminal: what differs, and below it what is the same, and the weights.

    Args:
        checkpoints: The two.
        facts: What is said of each, by the same names.
        paths: Their files.
        digests: SHA-256 of these.
    """
    first, second = checkpoints
    sections: dict[str, list[Row]] = {
        "": [*_rows(*facts), *_rows(_origin(first), _origin(second))],
        "data": list(_rows(_data(first), _data(second), "not used" if _data(first) and _data(second) else _UNKNOWN)),
        "the settings": list(_rows(_settings(first), _settings(second))),
        "the last epoch": list(_metric_rows(table(first.pgl, "metrics"), table(second.pgl, "metrics"))),
    }
    lines, same = _wrapped(("", *_short_names(paths))), []
    for heading, rows in sections.items():
        different = [row for row in rows if row[1] != row[2]]
        equal = [name for name, one, two in rows if one == two != _UNKNOWN]
        same += equal if heading in ("", "data") else [f"{len(equal)} entries of {heading}"] if equal else []
        if different:
            lines += ["", *([heading] if heading else [])]
        for name, one, two in different:
            lines += _wrapped((f"  {name}" if heading else name, one, two))
    is_copy = digests[0] == digests[1]
    weights = "the two files are the same, byte for byte" if is_copy else weights_in_words(first, second)
    closing = (f"The same in both: {', '.join(same) or 'nothing that is recorded'}", f"Weights: {weights}")
    return [*lines, "", *(line for text in closing for line in textwrap.wrap(text, _width()))]


def weights_in_words(first: EncoderCheckpoint, second: EncoderCheckpoint) -> str:
    """Whether the encoders are of one shape, and how much of their weights is equal."""
    one, two = ({canonical(k): v for k, v in checkpoint.encoder_weights.items()} for checkpoint in (first, second))
    shared = [key for key in one if key in two and one[key].shape == two[key].shape]
    if len(shared) < max(len(one), len(two)):
        return (
            f"of different shapes, so one does not take the other's unchanged: {counted(len(shared), 'tensor')} of the "
            f"same name and shape, {len(one) - len(shared)} others in the first, {len(two) - len(shared)} in the second"
        )
    equal = [key for key in shared if one[key].dtype == two[key].dtype and torch.equal(one[key], two[key])]
    if len(equal) == len(shared):
        return "all tensors are equal"
    values = {key: (one[key].double(), two[key].double()) for key in shared}
    change = sum(float((a - b).square().sum()) for a, b in values.values())
    size = sum(float(a.square().sum()) for a, _ in values.values())
    apart = f"; they differ by {(change / size) ** 0.5:.2g} of the first's norm" if size > 0 else ""
    return (
        f"of the same names and shapes, so either fits where the other does; {len(equal)} of "
        f"{counted(len(shared), 'tensor')} are equal{apart}"
    )


def _rows(one: Mapping[str, Any], two: Mapping[str, Any], missing: str = _UNKNOWN) -> Iterator[Row]:
    for name in {**one, **two}:
        texts = (missing if values.get(name) is None else one_line(values[name]) for values in (one, two))
        yield (one_line(name), *texts)  # type: ignore[misc]


def _origin(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """When, with what, and what to cite."""
    cited = " ".join(text for citation in checkpoint.citations for text in citation["apa_citations"])
    versions = {f"version of {name}": version for name, version in table(checkpoint.pgl, "versions").items()}
    return {"created": checkpoint.pgl.get("created"), **versions, "citations": cited or None}


def _data(checkpoint: EncoderCheckpoint) -> dict[str, str]:
    """Scans and terms by source."""
    return {source.name: str(source).removeprefix(source.name).strip()[1:-1] for source in sources_of(checkpoint.pgl)}


def _settings(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """Settings of the run that no other row has."""
    settings = {key: value for key, value in table(checkpoint.pgl, "config").items() if key not in _SHOWN_ABOVE}
    return {name: "not set" if value is None else value for name, value in flat(settings).items()}


def _metric_rows(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[Row]:
    """Numbers, the second with its difference to the first; those on position and anatomy come first."""
    for name in sorted({**one, **two}, key=lambda name: name not in ANATOMY):
        if name in _TIMES:
            continue
        values = one.get(name), two.get(name)
        first, second = (_UNKNOWN if value is None else one_line(number_text(value)) for value in values)
        if first != second and all(isinstance(value, float) for value in values):
            second = f"{second} ({values[1] - values[0]:+.4g})"  # type: ignore[operator]
        yield one_line(name), first, second


def _short_names(paths: tuple[Path, Path]) -> tuple[str, str]:
    """The end of each path that tells them apart."""
    first, second = (path.absolute().parts for path in paths)
    for count in range(1, max(len(first), len(second))):
        if first[-count:] != second[-count:]:
            return one_line("/".join(first[-count:])), one_line("/".join(second[-count:]))
    return one_line(paths[0]), one_line(paths[1])


def _width() -> int:
    return max(shutil.get_terminal_size((120, 24)).columns - 1, _NAMES_WIDTH + 2 * _LEAST_WIDTH)


def _wrapped(row: Sequence[str]) -> list[str]:
    """A row of the table, over as many lines as its longest value takes."""
    column = (_width() - _NAMES_WIDTH - 4) // 2
    widths = (_NAMES_WIDTH, column, column)
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
    padded = itertools.zip_longest(*cells, fillvalue="")
    return ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in padded]
