"""Pairs of views of one scan: how they are drawn, and the crops that a worker reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from nnunetv2_pgl.errors import PGLError
from pretraining.data import DataError
from pretraining.option_fields import setting
from pretraining.views.geometry import sample_view_pair
from pretraining.views.intensity import IntensityRanges, draw_intensity
from pretraining.views.rendering import largest_source_box, source_box

Channels = Literal["each", "joint"]
NoFlip = Literal["lateral", "lateral_in_ct"]
Draw = Callable[[Sequence[int], np.random.Generator], dict[str, NDArray[Any]]]

logger = logging.getLogger(__name__)

_TRIES = 32  # pairs drawn of a scan
_MIN_CONTRAST = 0.01  # standard deviation of a view over that of its scan


class StoredScan(Protocol):
    """What a pair needs of a stored scan (`pretraining.data.Volume`)."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, D, H, W)."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel as stored."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel as stored."""

    @property
    def lateral_axis(self) -> int | None:
        """Which of (z, y, x) runs from left to right in the body; None where the scan does not state it."""

    @property
    def is_ct(self) -> tuple[bool, ...]:
        """Per channel, whether it is CT."""

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        """Voxels of a box in one channel, (d, h, w)."""


def _one_or_three(given: Sequence[float], option: str) -> Any:
    if len(given) not in (1, 3):
        raise PGLError(f"{option} {' '.join(f'{value:g}' for value in given)}: give one value, or three z y x")
    return given[0] if len(given) == 1 else tuple(given)


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn (section 3.2); the defaults are the paper's."""

    size: tuple[int, int, int] = setting(
        (16, 96, 96),
        "size of a view in voxels (z, y, x)",
        group="views",
        name="patch",
        metavar=("Z", "Y", "X"),
        least=1,
        most=4096,
        default_text="16 96 96, or the plan's",
    )
    scale: tuple[float, float] = setting(
        (1.1, 1.4),
        "size of a crop relative to the view, per axis",
        group="views",
        metavar=("LOW", "HIGH"),
        above=0,
        rising=True,
    )
    flip_probability: float | tuple[float, float, float] = setting(
        0.5,
        "probability of a flip, per view and axis: one value, or three z y x",
        group="views",
        metavar="P",
        least=0,
        most=1,
        parse=_one_or_three,
    )
    no_flip: NoFlip | None = setting(
        None,
        "lateral: no flips along the axis from left to right of the body, as each scan's header states it, and flips "
        "along all axes where it does not; lateral_in_ct: the same in CT only; none: flips along all axes",
        group="views",
        default_text="none",
        values=(*get_args(NoFlip), "none"),
        parse=lambda given, _: None if given == "none" else given,
    )
    min_overlap: float = setting(
        0.1,
        "smallest overlap of the two crops, as a fraction of the larger one's volume",
        group="views",
        metavar="F",
        least=0,
        most=1,
    )
    intensity: IntensityRanges = field(default_factory=IntensityRanges)
    channels: Channels = setting(
        "each",
        "each: a view shows one channel of its scan, drawn at random, and the encoder takes one; joint: all channels "
        "together",
        group="views",
    )

    def keeps_sides_of(self, scan: StoredScan) -> bool:
        """Whether the lateral axis of this scan is left out, if it is known."""
        return self.no_flip == "lateral" or (self.no_flip == "lateral_in_ct" and all(scan.is_ct))

    def flip_probability_of(self, scan: StoredScan) -> float | tuple[float, float, float]:
        """The one for views of this scan."""
        if not self.keeps_sides_of(scan) or (lateral := scan.lateral_axis) is None:
            return self.flip_probability
        given = self.flip_probability
        z, y, x = given if isinstance(given, tuple) else (given,) * 3
        return (0.0 if lateral == 0 else z, 0.0 if lateral == 1 else y, 0.0 if lateral == 2 else x)


class ViewPairDataset(Dataset[dict[str, Any]]):
    """Draws a pair of views of a scan and reads the two crops they need.

    A sample is asked for by (number of the draw, index of the scan). All its randomness comes from the seed and the
    number of the draw, so that samples do not depend on how many workers read them.

    Args:
        scans: The pool; with joint channels all have the same number of them.
        settings: How views are drawn.
        seed: Seed of the run.
        draw: What else is drawn for each view, from its size: arrays by name, of always the same shapes and types.
    """

    def __init__(self, scans: Sequence[StoredScan], settings: ViewSettings, seed: int, draw: Draw | None = None):
        self.scans = list(scans)
        self.settings = settings
        self.seed = seed
        self._draw_more = draw
        self._crop_size = largest_source_box(settings.size, settings.scale)
        self._reported = torch.zeros(len(self.scans), dtype=torch.bool).share_memory_()  # by any loading process

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """One pair: the two crops as read, the size to pad them to, and what else `ViewPairBatch` holds of them.

        The leading axis of every array counts the two views. A crop is a list of channels: blosc2 reads them one by one
        no slower than all at once, and each is copied only into the batch.

        A view of one value or nearly so, such as outside of the body, is drawn again: instance norms multiply its
        gradient by 1 / sqrt(eps) layer after layer, until it is not finite. Nearly: its standard deviation is below 1 %
        of the scan's, about what bfloat16 can distinguish. Where a scan gives no other, the next scan of the pool is
        shown instead, with a warning.

        Raises:
            DataError: Every scan of the pool is nearly constant, or one cannot be read.
        """
        draw, index = key
        rng = np.random.default_rng((self.seed, draw))
        for other in (*range(index, len(self.scans)), *range(index)):
            for _ in range(_TRIES):
                sample = self._draw(other, rng)
                if all(_varies(sample, view, self.settings.size) for view in (0, 1)):
                    return sample | {"drawn": self._drawn(rng)}
            self._report(other)
        raise DataError(
            "every pair drawn from the pool had a nearly constant view: check the scans with pgl_preview, or use a "
            "larger -patch"
        )

    def _report(self, index: int) -> None:
        """Once of each scan."""
        if not self._reported[index]:
            self._reported[index] = True
            logger.warning(
                "%s is nearly constant: each of %d pairs drawn had a view without contrast. Other scans are used "
                "instead; leave it out with -exclude",
                *(getattr(self.scans[index], "name", f"scan {index}"), _TRIES),
            )

    def _drawn(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        if self._draw_more is None:
            return {}
        one, other = (self._draw_more(self.settings.size, rng) for _ in range(2))
        return {name: np.stack((one[name], other[name])) for name in one}

    def _draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scan, settings = self.scans[index], self.settings
        pair = sample_view_pair(
            scan.shape[1:],
            settings.size,
            rng,
            scale=settings.scale,
            flip_probability=settings.flip_probability_of(scan),
            min_overlap=settings.min_overlap,
        )
        joint = settings.channels == "joint"
        channels = list(range(scan.shape[0])) if joint else [int(rng.integers(scan.shape[0]))]
        boxes = [source_box(geometry, scan.shape[1:]) for geometry in pair]
        crops = [[scan.read(channel, start, stop) for channel in channels] for start, stop in boxes]
        return {
            "crops": crops,
            "padded_size": self._crop_size,
            "origins": np.array([start for start, _ in boxes], dtype=np.float64),
            "extents": np.array([crop[0].shape for crop in crops], dtype=np.float64),
            "starts": np.array([g.start for g in pair]),
            "sizes": np.array([g.size for g in pair]),
            "flips": np.array([g.flip for g in pair]),
            "mean": np.array([[scan.mean[channel] for channel in channels]] * 2, dtype=np.float32),
            "std": np.array([[scan.std[channel] for channel in channels]] * 2, dtype=np.float32),
            "intensity": draw_intensity(2 * len(channels), settings.intensity, rng).reshape(2, len(channels), -1),
            "index": np.array([index, channels[0]]),
        }


def _varies(sample: dict[str, Any], view: int, size: Sequence[int]) -> bool:
    """Whether a view has contrast: every second of its voxels, taken from the nearest voxel of the crop."""
    starts = sample["starts"][view] - sample["origins"][view]
    nearest = []
    for start, length, extent, voxels in zip(starts, sample["sizes"][view], sample["extents"][view], size, strict=True):
        centres = start + (np.arange(0, voxels, 2) + 0.5) * length / voxels - 0.5
        nearest.append(np.rint(centres).clip(0, extent - 1).astype(np.intp))
    voxels_seen = np.ix_(*nearest)
    return any(
        channel[voxels_seen].std(dtype=np.float64) >= _MIN_CONTRAST * std
        for channel, std in zip(sample["crops"][view], sample["std"][view], strict=True)
    )
