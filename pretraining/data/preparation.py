"""What happens to the voxels of one scan: crop to nonzero, clip or z-score, resample, choose the stored type."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
)

from pretraining.data.scan import BadScan

HU_RANGE = (-1024, 325)  # paper section 5.1
# No value below this in a CT: lungs, and the air around the patient, lie far below.
_SURELY_AIR = -200


@dataclass(frozen=True)
class Prepared:
    """A scan as it will be stored.

    Attributes:
        data: (channel, z, y, x). Hounsfield units are whole numbers: int16. With other channels among them, all are
            float16, which still holds every whole number up to 2048 exactly; other channels are z-scored, and float16
            resolves them to 1/1000 of a standard deviation around the mean, far below any scanner's noise.
        spacing: (z, y, x) in mm, such that shape times spacing is the extent before resampling.
        mean: Per channel, of ``data``.
        std: Per channel, of ``data``.
        bbox: [start, stop) of the part kept of the original array, per axis.
        warnings: What looks odd but does not exclude the scan.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bbox: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]


def prepare(
    array: np.ndarray,
    spacing: tuple[float, float, float],
    is_ct: Sequence[bool],
    target_spacing: tuple[float, float, float] | None,
) -> Prepared:
    """Preprocess one scan.

    CT is clipped to [-1024, 325] HU, resampled (which clips the overshoot of cubic splines) and rounded; without
    resampling whole numbers stay as they are. The paper's z-score of CT is left to the reader of the crops, who finds
    mean and std in the record. Other channels are resampled and z-scored.

    Args:
        array: float32 (channel, z, y, x).
        spacing: (z, y, x) in mm.
        is_ct: Per channel.
        target_spacing: (z, y, x) in mm, or None to keep the scan's own.

    Raises:
        BadScan: If nothing is left, or a channel is constant once clipped.
    """
    bbox = nonzero_box(array)
    (z, z_end), (y, y_end), (x, x_end) = bbox
    array = array[:, z:z_end, y:y_end, x:x_end]
    target = target_spacing or spacing
    shape = tuple(int(size) for size in compute_new_shape(array.shape[1:], spacing, target))
    if min(shape) < 2:
        raise BadScan(f"only {' x '.join(map(str, shape))} voxels are left at a spacing of {target} mm")
    data = np.empty((len(array), *shape), np.int16 if all(is_ct) else np.float16)
    warnings = []
    for index, ct in enumerate(is_ct):
        if ct and array[index].min() > _SURELY_AIR:
            warnings.append(
                f"channel {index} is declared CT but has no value below {_SURELY_AIR}: hardly Hounsfield units"
            )
        data[index] = _prepare_channel(array[index], spacing, target, ct)
    mean = tuple(float(channel.mean(dtype=np.float64)) for channel in data)
    std = tuple(float(channel.std(dtype=np.float64)) for channel in data)
    if min(std) == 0:
        raise BadScan(f"channel {std.index(0)} is constant once clipped to {HU_RANGE} HU")
    stored = [old * before / after for old, before, after in zip(spacing, array.shape[1:], shape, strict=True)]
    return Prepared(data, (stored[0], stored[1], stored[2]), mean, std, bbox, tuple(warnings))


def nonzero_box(array: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Bounding box of the voxels that are nonzero in any channel.

    It is the box of nnU-Net's ``crop_to_nonzero``; filling the holes first, as done there, takes long and does not
    change a bounding box.
    """
    mask = np.any(array != 0, axis=0)
    return tuple((int(start), int(stop)) for start, stop in get_bbox_from_mask(mask))


def _prepare_channel(
    channel: np.ndarray, spacing: tuple[float, ...], target: tuple[float, ...], is_ct: bool
) -> np.ndarray:
    if is_ct:
        return np.rint(_resample(np.clip(channel, *HU_RANGE), spacing, target))
    resampled = _resample(channel, spacing, target)
    mean, std = resampled.mean(dtype=np.float64), resampled.std(dtype=np.float64)
    if std == 0:
        raise BadScan("a channel is constant once resampled")
    return ((resampled - mean) / std).astype(np.float16)


def _resample(channel: np.ndarray, spacing: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """Resample one channel (one at a time keeps the memory down) with the settings of nnU-Net's default plans.

    Where the axes are resampled separately, nnU-Net's function spends 48 bytes per voxel on coordinates only to repeat
    or drop slices. Here the slices are resampled first and picked afterwards: the same values for a fraction of it.
    """
    shape = compute_new_shape(channel.shape, spacing, target)
    separate, axis = determine_do_sep_z_and_axis(None, spacing, target)
    if not separate or axis is None:
        return resample_data_or_seg(channel[None], shape, order=3)[0]
    slices = _picked_slices(channel.shape[axis], shape[axis])
    shape[axis] = channel.shape[axis]
    in_plane = resample_data_or_seg(channel[None], shape, axis=axis, order=3, do_separate_z=True)[0]
    return np.take(in_plane, slices, axis)


def _picked_slices(count: int, new_count: int) -> np.ndarray:
    """Which slice nnU-Net takes for each new one (order_z 0): resample a column of slice numbers."""
    column = np.arange(count, dtype=np.float64).reshape(1, count, 1, 1)
    picked = resample_data_or_seg(column, (new_count, 1, 1), axis=0, order=0, do_separate_z=True, order_z=0)
    return picked.ravel().astype(np.intp)
