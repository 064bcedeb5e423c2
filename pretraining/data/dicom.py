"""DICOM files, by pydicom: what they say of their frames, and their pixels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from pretraining.data.scan import BadScan

logging.getLogger("pydicom").setLevel(logging.ERROR)  # what matters becomes a scan's reason

# In one of these the phases, echoes or passes of a series differ.
PHASES = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType")
# Objects of these have pixels, or none, but are no images of a patient.
_NO_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}
_TAGS = [
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *PHASES,
]
# What is told frame by frame, or once for all, in objects of many frames (PS3.3, C.7.6.16).
_GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True)
class Frame:
    """One plane of a DICOM file, without its pixels.

    Attributes:
        file: Path.
        index: Number in the file.
        series: Study and series UID.
        label: Series number and description, as far as there are any.
        modality: Such as CT, MR or PT; empty if the file does not tell.
        is_grey: Whether a pixel is one value; false for colours and palettes.
        phase: Values of `PHASES` as text.
        reference: UID of the frame of reference.
        size: Rows and columns.
        position: (x, y, z) of the centre of the first pixel in mm, towards left, back and head of the patient.
        cosines: Where columns go on, then where rows go on, in the same space; 6 numbers.
        spacing: From row to row and from column to column, in mm.
        slope, intercept: Of the function from stored values to those that are meant, such as HU.

    What the file does not tell is empty.
    """

    file: str
    index: int
    series: tuple[str, str]
    label: tuple[str, ...]
    modality: str
    is_grey: bool
    phase: tuple[str, ...]
    reference: str
    size: tuple[int, int]
    position: tuple[float, ...]
    cosines: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return Path(self.file).name


def may_be_dicom(file: Path) -> bool:
    """Whether a file has DICOM's preamble, or begins as those do that lack it.

    Raises:
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0")


def read_frames(file: str) -> list[Frame]:
    """What a file says of its frames; none if it is no DICOM, or a directory of others.

    Raises:
        BadScan: If it is damaged, or holds no image.
    """
    with _reasons_for(file):
        data = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
        kind = data.file_meta.get("MediaStorageSOPClassUID", data.get("SOPClassUID"))
        if not kind and data.preamble:
            raise ValueError("what it holds is missing")
        if not kind or kind == MediaStorageDirectoryStorage:
            return []
        size = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
        modality = _text(data, "Modality").upper()
        if modality in _NO_IMAGES:
            raise BadScan(f"holds no image but {modality}")
        if 0 in size:
            raise BadScan("holds no image, or is truncated")
        grey = _text(data, "PhotometricInterpretation").startswith("MONOCHROME") and data.get("SamplesPerPixel", 1) == 1
        common = (
            (_text(data, "StudyInstanceUID"), _text(data, "SeriesInstanceUID")),
            tuple(text for text in (_text(data, "SeriesNumber"), _text(data, "SeriesDescription")) if text),
            *(modality, grey, tuple(_text(data, keyword) for keyword in PHASES)),
            *(_text(data, "FrameOfReferenceUID"), size),
        )
        count, groups = int(data.get("NumberOfFrames") or 1), data.get("PerFrameFunctionalGroupsSequence") or []
        if not groups:
            return _evenly_spaced(Frame(file, 0, *common, *_told([data])), count, data)
        if len(groups) != count:
            raise BadScan(f"announces {count} frames and describes {len(groups)}: fetch it again")
        shared = _items((data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        return [Frame(file, i, *common, *_told([*_items(own), *shared, data])) for i, own in enumerate(groups)]


def read_planes(file: str, frames: Sequence[Frame]) -> Iterator[tuple[Frame, np.ndarray]]:
    """The values (rows, columns) that are meant, frame by frame.

    Args:
        file: Path.
        frames: All frames of the file in their order, as `read_frames` gives them.

    Raises:
        BadScan: If the file is truncated or damaged, or has not these frames.
    """
    with _reasons_for(file):
        data = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in data.file_meta:  # where the preamble is missing; pydicom has found out
            implicit, little = data.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        for frame, pixels in zip(frames, iter_pixels(data), strict=True):
            if pixels.shape != frame.size:
                raise ValueError(f"{' x '.join(map(str, pixels.shape))} pixels")
            if "ModalityLUTSequence" in data:
                yield frame, apply_modality_lut(pixels, data)
            elif frame.slope == 1:  # exact for whole numbers
                yield frame, pixels.astype(np.float32) + np.float32(frame.intercept)
            else:
                yield frame, pixels.astype(np.float64) * frame.slope + frame.intercept


@contextmanager
def _reasons_for(file: str) -> Iterator[None]:
    """Whatever a file provokes becomes one reason that names it; pydicom's warnings are not for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadScan as error:
        raise BadScan(f"{Path(file).name} {error}") from error
    except OSError as error:
        raise BadScan(f"{Path(file).name} cannot be read ({error.strerror or error})") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadScan(f"{Path(file).name} is truncated or damaged ({reason}): fetch it again") from error


def _text(data: Dataset, keyword: str) -> str:
    value = data.get(keyword)
    return (
        ""
        if value is None
        else " ".join(map(str, value if isinstance(value, pydicom.multival.MultiValue) else [value]))
    )


def _items(groups: Dataset) -> list[Dataset]:
    return [groups[keyword][0] for keyword in _GROUPS if groups.get(keyword)]


def _told(items: Sequence[Dataset]) -> tuple[Any, ...]:
    """Position, cosines, spacing, slope and intercept, each from the first item that has it."""

    def numbers(keyword: str, count: int) -> tuple[float, ...]:
        value = next((item.get(keyword) for item in items if keyword in item), None)
        values = () if value is None else np.atleast_1d(np.asarray(value, np.float64))
        return tuple(map(float, values)) if len(values) == count and np.isfinite(values).all() else ()

    geometry = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6), numbers("PixelSpacing", 2)
    return *geometry, (numbers("RescaleSlope", 1) or (1.0,))[0], (numbers("RescaleIntercept", 1) or (0.0,))[0]


def _evenly_spaced(first: Frame, count: int, data: Dataset) -> list[Frame]:
    """Frames without groups of their own: they follow each other along the normal if the file tells their distance."""
    step = data.get("SpacingBetweenSlices")
    if count == 1:
        return [first]
    if not first.position or not first.cosines or step is None:
        raise BadScan(f"has {count} frames that do not say where they lie (a film?)")
    normal = np.cross(first.cosines[:3], first.cosines[3:])
    positions = np.array(first.position) + np.outer(np.arange(count) * float(step), normal)
    return [replace(first, index=index, position=tuple(place)) for index, place in enumerate(positions.tolist())]
