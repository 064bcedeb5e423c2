"""The plane of a case that is drawn: image, truth and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

_MARGIN = 0.4  # of the larger side of the truth's box, on each side


@dataclass(frozen=True)
class CaseSlice:
    """A plane of a case.

    Attributes:
        image: (y, x).
        truth: Labels, (y, x).
        predictions: Labels, (y, x), by name; None where the file is missing.
        aspect: Height over width of a pixel.
    """

    image: NDArray[Any]
    truth: NDArray[Any]
    predictions: Mapping[str, NDArray[Any] | None]
    aspect: float

    @property
    def width(self) -> float:
        """Width over height of the plane."""
        return self.truth.shape[1] / (self.truth.shape[0] * self.aspect)


def same_size(image: Path, truth: Path) -> bool:
    """Whether two files have the same number of voxels on each axis; reads the headers only."""
    sizes = []
    for path in (image, truth):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        sizes.append(reader.GetSize())
    return sizes[0] == sizes[1]


def read_slice(
    image: Path, truth: Path, predictions: Mapping[str, Path], classes: Mapping[str, int | tuple[int, ...]]
) -> CaseSlice:
    """The axial slice that shows most of the structures, cut to the truth and its surroundings."""
    true_image = _oriented(truth)
    voxels = _voxels(true_image)
    masks = [np.isin(voxels, value) for value in classes.values()]
    mask = np.any(masks, axis=0)
    z = _telling_slice([one.sum(axis=(1, 2)) for one in masks])
    x_mm, y_mm = true_image.GetSpacing()[:2]
    window = (z, *_surroundings(mask[z], (y_mm, x_mm)))
    cut = {name: _voxels(_oriented(path))[window] if path.is_file() else None for name, path in predictions.items()}
    return CaseSlice(_voxels(_oriented(image))[window], voxels[window], cut, y_mm / x_mm)


def _telling_slice(areas: Sequence[NDArray[np.int64]]) -> int:
    """Where the structures together come closest to their largest areas, so that a large one does not hide the small.

    Args:
        areas: Of each structure in each slice.
    """
    shares = [area / area.max() for area in areas if area.max() > 0]
    return int(np.argmax(np.sum(shares, axis=0))) if shares else 0


def _oriented(path: Path) -> Any:
    """An image as it is looked at: the patient's right on the left, front on top."""
    image = sitk.ReadImage(str(path))
    return sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else image


def _voxels(image: Any) -> NDArray[Any]:
    """(z, y, x); a plane has one slice, of several values per pixel the mean is taken."""
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = voxels.mean(axis=-1)
    return voxels if voxels.ndim == 3 else voxels[None]


def _surroundings(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The box of a mask with a margin, the same in mm on all sides; the whole plane if the mask is empty."""
    if not mask.any():
        return slice(None), slice(None)
    sides = [(int(i.min()), int(i.max()) + 1, mm) for i, mm in zip(np.nonzero(mask), spacing, strict=True)]
    margin = _MARGIN * max((end - start) * mm for start, end, mm in sides)
    y, x = (slice(max(0, start - round(margin / mm)), end + round(margin / mm)) for start, end, mm in sides)
    return y, x
