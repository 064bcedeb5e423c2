"""Views of several geometries, and what all pairs of their cells say, worked out one by one in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_pgl.networks import FeatureGrid
from pretraining.views import (
    GeometryBatch,
    IntensityRanges,
    ViewSettings,
)

Code = Callable[[NDArray[Any], NDArray[Any], int], NDArray[Any]]  # place in the view, place in the scan, axis

UNCHANGED = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)


@dataclass(frozen=True)
class Case:
    """Views of scans, and where cells lie in them."""

    view: tuple[int, int, int]
    scan: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: tuple[float, float, float]

    @property
    def cells(self) -> tuple[int, int, int]:
        z, y, x = (n // s for n, s in zip(self.view, self.stride, strict=True))
        return z, y, x

    @property
    def grid(self) -> FeatureGrid:
        z, y, x = self.stride
        return FeatureGrid(self.view, (float(z), float(y), float(x)), self.offset)

    @property
    def settings(self) -> ViewSettings:
        return ViewSettings(size=self.view, intensity=UNCHANGED, channels="joint")


CASES = {
    "paper": Case((16, 96, 96), (120, 400, 400), (8, 16, 16), (4, 8, 8)),
    "hippocampus": Case((32, 40, 32), (36, 50, 35), (8, 8, 8), (4, 4, 4)),
    "openkbp": Case((32, 48, 48), (110, 65, 105), (8, 8, 8), (4, 4, 4)),
    "cells at the edge": Case((32, 40, 32), (36, 50, 35), (8, 8, 8), (0.5, 0.5, 0.5)),  # as in nnU-Net's encoders
}
HIPPOCAMPUS = CASES["hippocampus"]


def batches_of(samples: Sequence[dict[str, Any]], size: int = 8) -> list[GeometryBatch]:
    """First views, then second views."""
    batches = []
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        columns = [
            np.concatenate([[s[key][half] for s in part] for half in (0, 1)]) for key in ("starts", "sizes", "flips")
        ]
        batches.append(GeometryBatch(*map(torch.from_numpy, columns)))
    return batches


def along(sample: dict[str, Any], half: int, axis: int, case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places of a view's cells along an axis: in cells, at the shared points, and where the cells are in the scan."""
    start, size, flip = (sample[key][half][axis] for key in ("starts", "sizes", "flips"))
    low = max(view[axis] for view in sample["starts"])
    high = min(a[axis] + b[axis] for a, b in zip(sample["starts"], sample["sizes"], strict=True))
    count, length = case.cells[axis], case.view[axis]
    points = low + (np.arange(count) + 0.5) * (high - low) / count
    in_view = (points - start) * length / size
    in_view = length - in_view if flip else in_view
    centres = case.offset[axis] + case.stride[axis] * np.arange(count)
    in_scan = start + (length - centres if flip else centres) * size / length
    return (in_view - case.offset[axis]) / case.stride[axis], in_scan


def codes(sample: dict[str, Any], half: int, case: Case, code: Code) -> NDArray[Any]:
    """Of each shared point a code for each axis, interpolated between cells, (cells, 3)."""
    lines = []
    for axis, count in enumerate(case.cells):
        at, in_scan = along(sample, half, axis, case)
        lines.append(np.interp(at, np.arange(count), code(np.arange(count), in_scan - case.scan[axis] / 2, axis)))
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)


def in_view(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return cells


def in_scan(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return places


def mirrored(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.abs(places)


def near(sample: dict[str, Any], case: Case, code: Code) -> NDArray[Any]:
    """Of all pairs of shared points, which of the second view are nearest to each of the first, (cells, cells)."""
    first, second = (codes(sample, half, case, code) for half in (0, 1))
    apart = np.linalg.norm(first[:, None] - second[None], axis=2)
    return apart <= apart.min(axis=1, keepdims=True) + 1e-6


def expected(samples: Sequence[dict[str, Any]], case: Case, code: Code) -> dict[str, float]:
    """Shares that a code gets: with and without flip, decoys, and of each axis right and mirrored ones."""
    found: dict[str, list[NDArray[Any]]] = {}
    indices = np.stack(np.unravel_index(np.arange(np.prod(case.cells)), case.cells), axis=1)
    for sample in samples:
        chosen, decoys = near(sample, case, code), near(sample, case, in_view)
        chances = chosen / chosen.sum(axis=1, keepdims=True)
        flips = sample["flips"][0] != sample["flips"][1]
        found.setdefault("flipped_right" if flips.any() else "unflipped_right", []).append(np.diag(chances))
        if flips.any():
            found.setdefault("decoy", []).append((chances * decoys).sum(axis=1)[~np.diag(decoys)])
        for axis in np.flatnonzero(flips):
            at = [along(sample, half, axis, case)[0].clip(0, case.cells[axis] - 1) for half in (0, 1)]
            apart = np.abs(at[0][:, None] - at[1][None])
            same_of_view = (apart <= apart.min(axis=1, keepdims=True) + 1e-6)[indices[:, None, axis], indices[:, axis]]
            tells = ~np.diag(same_of_view)
            same = indices[:, None, axis] == indices[None, :, axis]
            found.setdefault(f"right {axis}", []).append((chances * same).sum(axis=1)[tells])
            found.setdefault(f"mirrored {axis}", []).append((chances * same_of_view).sum(axis=1)[tells])
    return {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}


def maps_of(samples: Sequence[dict[str, Any]], case: Case, code: Code) -> list[tuple[torch.Tensor, GeometryBatch]]:
    """Maps that hold a code of each cell; a large constant, of either sign by turns, makes cosines tell distances."""
    maps = []
    for at, batch in zip(range(0, len(samples), 8), batches_of(samples), strict=True):
        views = []
        for half in (0, 1):
            for number, sample in enumerate(samples[at : at + 8]):
                lines = [
                    code(np.arange(n), along(sample, half, axis, case)[1] - case.scan[axis] / 2, axis)
                    for axis, n in enumerate(case.cells)
                ]
                code_and_far = [*np.meshgrid(*lines, indexing="ij"), np.full(case.cells, 1e4)]
                views.append(np.stack(code_and_far) * (1 if number // 2 % 2 else -1))
        maps.append((torch.from_numpy(np.stack(views)), batch))
    return maps
