"""How initialisations, classes and fractions look throughout a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_pgl.files import replacing

# Okabe and Ito's palette, told apart by the colour-blind; markers and dashes tell curves apart in black and white too.
_FIXED = {
    "random": "#6e6e6e",
    "models_genesis": "#e69f00",
    "byol": "#0072b2",
    "pgl": "#d55e00",
    "pgl_nce": "#cc79a7",
    "pgl_mae": "#009e73",
    "mae": "#882255",
}
_FURTHER = ("#56b4e9", "#8b6d00", "#a5c400", "#332288", "#7f3c8d")  # no black, which stands for all of them
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
CLASS_COLOURS = (
    *("#ffd400", "#00d5ff", "#ff5fc4", "#7dff5f", "#ff8a3c", "#b79cff", "#5f8bff", "#ffffff"),
    *("#ff4040", "#00ffb3", "#d9a066", "#e600ff", "#c0ff00", "#9aa5b1", "#0090ff", "#b30059"),
)


_MOST_LETTERS = 28  # of a name in a figure
_INCHES = 0.085, 0.6  # of a letter and of the handle in a legend


@dataclass(frozen=True)
class Look:
    """Colour and marker of an initialisation."""

    colour: str
    marker: str


def looks(inits: Sequence[str]) -> dict[str, Look]:
    """The same look for the same initialisation in all figures; those with a known name have it in all reports."""
    further = [init for init in inits if init not in _FIXED]
    colours = _FIXED | {init: _FURTHER[i % len(_FURTHER)] for i, init in enumerate(further)}
    return {init: Look(colours[init], _MARKERS[i % len(_MARKERS)]) for i, init in enumerate(inits)}


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Bright colours, to be seen on a scan."""
    return {name: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, name in enumerate(classes)}


def percent(fraction: float) -> str:
    """A fraction in words."""
    return f"{100 * fraction:g} %"


def scans(numbers: Sequence[int]) -> str:
    """Numbers of labelled scans in words: one, or a range where the folds differ."""
    if not numbers:
        return "no scans"
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} scan{'' if span == '1' else 's'}"


def short(name: str) -> str:
    """A name that has room in a figure: the middle of a long one is left out."""
    half = (_MOST_LETTERS - 1) // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}\u2026{name[-half:]}"


def legend_above(figure: Figure, handles: Sequence[Any], texts: Sequence[str]) -> None:
    """A legend above the panels, in as many columns as the figure has room for."""
    texts = [short(text) for text in texts]
    letter, handle = _INCHES
    columns = int(figure.get_figwidth() / (letter * max(map(len, texts), default=1) + handle))
    figure.legend(handles, texts, loc="outside upper center", ncols=max(1, min(5, columns)), frameon=False, fontsize=9)


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, drawn by Agg: no window, no state shared with anyone else's figures. Sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path
