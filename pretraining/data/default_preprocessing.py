"""Preprocess one scan without a plan: crop to nonzero, clip CT as in the paper, resample, z-score what is not CT."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask

from nnunetv2_pgl.errors import size_text
from pretraining.data.reading.reader import memory_of_machine
from pretraining.data.resampling import resampled, resampled_shape
from pretraining.data.scan import BadScan

HU_RANGE = (-1024, 325)  # paper section 5.1
_MAX_AIR_HU = -200  # a CT has values below this: lungs, and the air around the patient
_SLAB_SLICES = 4  # processed at once: a copy of the whole scan would cost memory


@dataclass(frozen=True)
class PreprocessedScan:
    """A scan as it will be stored.

    Hounsfield units are whole numbers: int16. With other channels among them, all are float16, which still holds every
    whole number up to 2048 exactly; other channels are z-scored, and float16 resolves them to 1/1000 of a standard
    deviation around the mean, far below any scanner's noise.
    """

    data: np.ndarray  # (channel, z, y, x)
    spacing: tuple[
        float, float, float
    ]  # (z, y, x) in mm, such that shape times spacing is the extent before resampling
    mean: tuple[float, ...]  # of each channel of data
    std: tuple[float, ...]
    bbox: tuple[tuple[int, int], ...]  # [start, stop) of the part kept of the original array, per axis
    warnings: tuple[str, ...]  # what looks odd but does not exclude the scan


def preprocess_without_plan(
    array: np.ndarray,
    spacing: tuple[float, float, float],
    is_ct: Sequence[bool],
    target_spacing: tuple[float, float, float] | None,
) -> PreprocessedScan:
    """Preprocess one scan without a plan.

    CT is clipped to [-1024, 325] HU, resampled (which clips the overshoot of cubic splines) and rounded; without
    resampling whole numbers stay as they are. The paper's z-score of CT is left to the reader of the crops, with
    mean and std from the record. Other channels are resampled and z-scored.

    Args:
        array: float32 (channel, z, y, x).
        spacing: (z, y, x) in mm.
        is_ct: Per channel.
        target_spacing: (z, y, x) in mm, or None to keep the scan's own.

    Raises:
        BadScan: If nothing is left, or a channel is constant once clipped.
    """
    mask = (array != 0).any(axis=0)  # its box is that of nnU-Net's crop_to_nonzero, which also fills holes
    bbox = tuple((int(start), int(stop)) for start, stop in get_bbox_from_mask(mask))
    (z, z_end), (y, y_end), (x, x_end) = bbox
    array = array[:, z:z_end, y:y_end, x:x_end]
    target = target_spacing or spacing
    shape = resampled_shape(array.shape[1:], spacing, target)
    if 2 * len(array) * math.prod(shape) > memory_of_machine():
        raise BadScan(
            f"has a spacing of {size_text(spacing)} mm, and would be of {size_text(shape)} voxels at the new "
            "spacing, more than memory holds: check its header"
        )
    data = np.empty((len(array), *shape), np.int16 if all(is_ct) else np.float16)
    warnings = []
    for index, ct in enumerate(is_ct):
        if ct and array[index].min() > _MAX_AIR_HU:
            warnings.append(
                f"channel {index} is declared CT but has no value below {_MAX_AIR_HU}: probably not Hounsfield units"
            )
        if not _fill(data[index], array[index], spacing, target, ct):
            raise BadScan(f"channel {index} is constant once resampled")
    mean, std = zip(*(moments(channel) for channel in data), strict=True)
    if min(std) == 0:
        raise BadScan(f"channel {std.index(0)} is constant once clipped to [{HU_RANGE[0]}, {HU_RANGE[1]}] HU")
    z_size, y_size, x_size = (
        old * before / after for old, before, after in zip(spacing, array.shape[1:], shape, strict=True)
    )
    return PreprocessedScan(data, (z_size, y_size, x_size), mean, std, bbox, tuple(warnings))


def moments(channel: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of a channel (z, y, x), in float64 without a copy in float64."""
    mean = float(channel.mean(dtype=np.float64))
    squares = sum(float(np.sum(np.square(slab.astype(np.float64) - mean))) for slab in _slabs(channel))
    return mean, float(np.sqrt(squares / channel.size))


def _slabs(channel: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(channel), _SLAB_SLICES):
        yield channel[start : start + _SLAB_SLICES]


def _fill(
    stored: np.ndarray, channel: np.ndarray, spacing: tuple[float, ...], target: tuple[float, ...], is_ct: bool
) -> bool:
    """Resample a channel, and round or z-score it into ``stored``; False if it is constant and has no z-score."""
    if is_ct:
        for where, block in resampled(channel, spacing, target, HU_RANGE):
            stored[where] = np.rint(block)
        return True
    if stored.shape != channel.shape:
        values = np.empty(stored.shape, np.float32)
        for where, block in resampled(channel, spacing, target):
            values[where] = block
        channel = values
    mean, std = moments(channel)
    if std == 0:
        return False
    for out, slab in zip(_slabs(stored), _slabs(channel), strict=True):
        out[...] = (slab.astype(np.float64) - mean) / std
    return True
