"""Whether frames of DICOM files form one volume, and the voxels of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy import ndimage

from nnunetv2_pgl.errors import counted, size_text
from pretraining.data.reading.dicom_files import read_planes
from pretraining.data.reading.dicom_frames import PHASES, Frame
from pretraining.data.scan import BadScan, Geometry

_MIN_SLICES = 3  # two radiographs are not a volume
_STEP_TOLERANCE = 0.1  # share of the slice distance
_MAX_ROUNDING = 0.25  # share of the slice distance; a missing slice moves others by half of it
_MIN_GAP = 1.6  # times the smallest distance
_MAX_PHASE_CHANGES = 0.25  # changes of phase per slice; it is nearly 1 for two phases that alternate
_MAX_TILT = 1.0  # mm across the normal per mm along it; gantries tilt by 30 degrees at most
_TOLERANCE = 1e-3  # of direction cosines and pixel sizes, absolute and relative


@dataclass(frozen=True)
class Stack:
    """Frames of one volume, in order along the normal of their planes."""

    frames: tuple[Frame, ...]
    geometry: Geometry  # once it is straightened
    shear: tuple[float, float]  # of a tilted gantry: shift of slices along columns and rows, per mm along the normal

    @property
    def files(self) -> tuple[str, ...]:
        """Each file once, in the order of the first frame that lies in it."""
        return tuple(dict.fromkeys(frame.file for frame in self.frames))

    @property
    def tilt(self) -> float:
        """Angle in degrees between the normal and the line through the slices."""
        return float(np.degrees(np.arctan(np.hypot(*self.shear))))


def read_volume(files: Sequence[str], geometry: Geometry) -> np.ndarray:
    """Read the voxels of a series.

    A sheared stack is straightened by linear interpolation within its slices; those at both ends move the most. The
    lowest value of the volume fills what comes in from outside.

    Args:
        files: Those of a `Stack`.
        geometry: Its geometry.

    Returns:
        The true values, such as HU, float32 (1, z, y, x).

    Raises:
        BadScan: If a file is truncated or damaged, or the files have changed since.
    """
    array, frames = np.empty(geometry.shape, np.float32), list[Frame]()
    for file in files:
        for frame, plane in read_planes(file):
            if len(frames) == len(array) or plane.shape != array.shape[1:]:
                raise BadScan(f"{frame.name} is not as it was when the series was found: start again")
            array[len(frames)] = plane
            frames.append(frame)
    stack = stacked(frames)
    if stack.geometry != geometry:
        raise BadScan("the files are not as they were when the series was found: start again")
    if stack.frames != tuple(frames):
        numbers = {(frame.file, frame.index): number for number, frame in enumerate(frames)}
        array = array[[numbers[frame.file, frame.index] for frame in stack.frames]]
    if any(stack.shear):
        lowest, (step, *pixel) = float(array.min()), geometry.spacing
        for z, plane in enumerate(array):
            moved = (z - (len(array) - 1) / 2) * step * np.array(stack.shear) / pixel
            array[z] = ndimage.shift(plane, moved, order=1, cval=lowest)
    return array[None]


def stacked(frames: Sequence[Frame]) -> Stack:
    """Put frames in order along their normal.

    Raises:
        BadScan: If they are not one volume, or do not state it: one orientation, image size, pixel spacing and phase,
            and evenly spaced on a line.
    """
    for frame in frames:
        _require_geometry(frame)
        _require_alike(frames[0], frame)
    if len(frames) < _MIN_SLICES:
        raise BadScan(f"is 2D: {counted(len(frames), 'DICOM slice')}, not a 3D scan")
    row, column = np.array(frames[0].cosines).reshape(2, 3)
    axes = np.stack((np.cross(row, column), column, row))
    positions = np.array([frame.position for frame in frames]) @ axes.T  # (slice, axis) in mm
    order = np.argsort(positions[:, 0], kind="stable")
    frames, positions = [frames[index] for index in order], positions[order]
    _require_even(frames, positions[:, 0])
    # Phases that alternate in space are refused; one after the other, or with few changes, they are one volume.
    for key, values in zip(PHASES, zip(*(frame.phase for frame in frames), strict=True), strict=True):
        runs = [value for value, _ in groupby(values)]
        if len(runs) > max(len(set(values)), _MAX_PHASE_CHANGES * len(values)):
            raise BadScan(f"slices of {key} {runs[0] or 'none'} and {runs[1] or 'none'} lie between each other")
    pixel = np.array(frames[0].spacing)
    length, *drift = positions[-1] - positions[0]
    shape = len(frames), *frames[0].size
    distance = round(float(length / (len(frames) - 1)), 4)  # mm; positions are written with few digits
    spacing = distance, float(pixel[0]), float(pixel[1])
    beside = np.abs(
        positions - positions[0] - np.outer(positions[:, 0] - positions[0, 0], [1, *np.array(drift) / length])
    )
    if beside.max() > pixel.min() / 2:
        farthest = frames[int(beside.max(axis=1).argmax())]
        raise BadScan(f"{farthest.name} lies {beside.max():.2f} mm beside the line of the other slices")
    if np.hypot(*drift) > _MAX_TILT * length:
        raise BadScan(
            f"its slices lie beside each other, {np.hypot(*drift):.1f} mm over {length:.1f} mm along their normal"
        )
    shear = (0.0, 0.0) if np.abs(drift).max() <= pixel.min() / 2 else (drift[0] / length, drift[1] / length)
    direction = tuple(np.stack((row, column, axes[0]), axis=1).ravel().tolist())
    return Stack(tuple(frames), Geometry(shape, spacing, direction), (float(shear[0]), float(shear[1])))


def _require_geometry(frame: Frame) -> None:
    if not frame.is_grey:
        raise BadScan(f"{frame.name} is a colour image, not a scan")
    stated = {"image position": frame.position, "image orientation": frame.cosines, "pixel spacing": frame.spacing}
    if missing := [name for name, values in stated.items() if not values]:
        raise BadScan(f"{frame.name} does not state its {' and '.join(missing)}: export the series again")
    axes = np.array(frame.cosines).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01 or min(frame.spacing) <= 0:
        raise BadScan(f"{frame.name} states an impossible image orientation or pixel spacing")
    if frame.slope == (0,):
        raise BadScan(f"{frame.name} states a rescale slope of 0: export the series again")


def _require_alike(one: Frame, other: Frame) -> None:
    for kind, a, b in (
        ("image size", one.size, other.size),
        ("orientation", one.cosines, other.cosines),
        ("pixel spacing", one.spacing, other.spacing),
    ):
        if a != b and not np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise BadScan(
                f"its slices differ in {kind} ({size_text(a)} in {one.name}, {size_text(b)} in {other.name}): they are "
                "not one volume"
            )
    for kind, a, b in (("slope", one.slope, other.slope), ("intercept", one.intercept, other.intercept)):
        if bool(a) != bool(b):
            having, lacking = (one, other) if a else (other, one)
            raise BadScan(f"{having.name} states a rescale {kind} and {lacking.name} does not: export the series again")
    if one.reference != other.reference:
        raise BadScan(f"the positions of {one.name} and {other.name} are in different frames of reference")


def _require_even(frames: Sequence[Frame], depths: np.ndarray) -> None:
    steps = np.diff(depths)
    step = float(np.median(steps))
    closest = int(np.argmin(steps))
    if steps[closest] <= _STEP_TOLERANCE * step:
        one, other = frames[closest : closest + 2]
        phases = zip(PHASES, one.phase, other.phase, strict=True)
        differ = [f"{key} {a or 'none'} and {b or 'none'}" for key, a, b in phases if a != b]
        how = f" ({', '.join(differ)})" if differ else ""
        raise BadScan(f"several DICOM slices lie at the same position, as {one.name} and {other.name}{how}")
    worst = int(np.argmax(np.abs(steps - step)))
    numbers = np.arange(len(depths))
    off = float(np.ptp(depths - np.polyval(np.polyfit(numbers, depths, 1), numbers))) / 2  # mm from even spacing
    # Positions in whole or tenths of millimetres may be off by half of that, and by the shift of the line.
    units = [unit for unit in (1.0, 0.1) if np.abs(depths / unit - np.round(depths / unit)).max() < 1e-3]
    rounding = 0.6 * units[0] if units else 0.0
    is_even = abs(steps[worst] - step) <= _STEP_TOLERANCE * step and off <= step / 2
    allowed = max(_STEP_TOLERANCE * step, min(rounding, _MAX_ROUNDING * step))
    is_rounded = off <= allowed and steps.max() < _MIN_GAP * steps.min()
    if not is_even and not is_rounded:
        raise BadScan(
            f"DICOM slices are missing or unevenly spaced: {steps[worst]:.2f} mm after {frames[worst].name}, "
            f"{step:.2f} mm elsewhere"
        )
