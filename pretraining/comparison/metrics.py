"""Overlap and surface distances of a predicted segmentation and the truth.

Dice and IoU count voxels. A surface is the voxels of a mask with a face neighbour outside it; what lies outside the
image is outside the mask. Distances are between voxel centres, in mm. Each surface voxel has a distance to the other
mask's surface; of these

- HD (Hausdorff distance) is the largest, of both directions,
- HD95 is the larger of the two directions' 95th percentiles,
- surface Dice is the share, over the voxels of both surfaces, of those within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from nnunetv2_pgl.errors import PGLError

_SPACING_TOLERANCE = 1e-3
# NIfTI stores spacings as float32, so a distance of one voxel may come out a few 1e-8 above its nominal length.
_ROUNDING = 1e-6

Mask = NDArray[np.bool_]


def measure_case(
    truth: Path,
    prediction: Path,
    classes: Mapping[str, int | tuple[int, ...]],
    tolerance_mm: float,
    ignore_label: int | None = None,
) -> pd.DataFrame:
    """Measure a prediction.

    Where the truth lacks a class, all measures are nan, whatever the prediction has. Where the truth has it and the
    prediction does not, it is missed: Dice, IoU and surface Dice are 0, both distances the diagonal of the image.

    Args:
        truth: Label map of any format that SimpleITK reads; its spacing counts.
        prediction: Label map of the same grid.
        classes: Label of each class; several labels make a region.
        tolerance_mm: Tolerance of the surface Dice, included.
        ignore_label: Where the truth has this label, neither truth nor prediction counts.

    Returns:
        One row per class, in the order of ``classes``; the columns are those of `results` from ``class_name`` on.

    Raises:
        PGLError: A file cannot be read, or the grids differ in size or, by more than a thousandth, in spacing.
    """
    images = [_read(truth), _read(prediction)]
    sizes, spacings = [image.GetSize() for image in images], [image.GetSpacing() for image in images]
    if sizes[0] != sizes[1] or not np.allclose(spacings[0], spacings[1], rtol=_SPACING_TOLERANCE, atol=0):
        raise PGLError(
            f"{truth} has {sizes[0]} voxels (x, y, z) of {spacings[0]} mm, {prediction} {sizes[1]} of {spacings[1]}; "
            "they must have the same grid"
        )
    true_labels, predicted_labels = map(sitk.GetArrayViewFromImage, images)
    counts = np.True_ if ignore_label is None else true_labels != ignore_label
    measured = []
    for name, label in classes.items():
        masks = np.isin(true_labels, label) & counts, np.isin(predicted_labels, label) & counts
        measured.append({"class_name": name, **_measure(*masks, np.array(spacings[0][::-1]), tolerance_mm)})
    return pd.DataFrame(measured)


def _read(path: Path) -> Any:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        problem = "cannot be read" if path.is_file() else "does not exist"
        raise PGLError(f"{path}: {problem}") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise PGLError(f"{path}: has {image.GetNumberOfComponentsPerPixel()} values per voxel, not one label")
    return image


def _measure(truth: Mask, prediction: Mask, spacing: NDArray[Any], tolerance: float) -> dict[str, Any]:
    n_true, n_predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(prediction))
    found: dict[str, Any] = dict.fromkeys(("dice", "iou", "hd", "hd95", "surface_dice"), math.nan)
    found |= {"missed": False, "truth_voxels": n_true, "predicted_voxels": n_predicted}
    if not n_true:
        return found
    if not n_predicted:
        diagonal = float(np.linalg.norm(spacing * truth.shape))
        return found | {"dice": 0.0, "iou": 0.0, "hd": diagonal, "hd95": diagonal, "surface_dice": 0.0, "missed": True}
    common = int(np.count_nonzero(truth & prediction))
    [box] = find_objects((truth | prediction).view(np.uint8))
    # A surface voxel has a face neighbour outside the mask.
    surfaces = [np.argwhere(mask[box] & ~binary_erosion(mask[box])) * spacing for mask in (truth, prediction)]
    # Voxels lie on a grid: splitting at the median would not pay.
    trees = [KDTree(surface, balanced_tree=False, compact_nodes=False) for surface in surfaces]
    distances = [trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]]
    both = np.concatenate(distances)
    return found | {
        "dice": 2 * common / (n_true + n_predicted),
        "iou": common / (n_true + n_predicted - common),
        "hd": float(both.max()),
        "hd95": float(max(np.percentile(of_one, 95) for of_one in distances)),
        "surface_dice": float(np.mean(both <= tolerance * (1 + _ROUNDING))),
    }
