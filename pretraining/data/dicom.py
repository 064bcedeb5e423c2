"""DICOM files, by pydicom: what they say of their frames, and their pixels."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    MediaStorageDirectoryStorage,
)

from pretraining.data.scan import BadScan

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # tracebacks of decoders; what matters becomes a reason

# In one of these the phases, echoes or passes of a series differ.
PHASES = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType"),
    *("EchoTime", "DiffusionBValue", "ConvolutionKernel", "KVP", "StackID"),
)
# Where objects of many frames tell them.
_PHASES_IN_GROUPS = {
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "TemporalPositionIdentifier": (("FrameContentSequence", "TemporalPositionIndex"),),
    "StackID": (("FrameContentSequence", "StackID"),),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "ConvolutionKernel": (("CTReconstructionSequence", "ConvolutionKernel"),),
    "KVP": (("CTXRayDetailsSequence", "KVP"),),
    "ImageType": tuple((f"{kind}FrameTypeSequence", "FrameType") for kind in ("MRImage", "CTImage", "PET", "XRay3D")),
}
# Objects of these have pixels, or none, but are no images of a patient.
_NO_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}
_MOST_DEFLATED = 8 * 1024**2  # bytes of a file
_LEAST_FRAME = 64  # bytes in a file, however it is compressed
# Along what the frames of an object without groups follow each other, beside `SliceVector` (PS3.3, C.8.4.8).
_VECTORS = (
    *("EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector"),
    *("AngularViewVector", "TimeSliceVector", "SliceVector"),
)
_KEYWORDS = (
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID"),
    *("BitsStored", "HighBit", "SOPInstanceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("FrameIncrementPointer", "DetectorInformationSequence", "FrameTime", "FrameTimeVector", "PatientID"),
    *_VECTORS,
    *PHASES,
)
_TAGS = [Tag(keyword) for keyword in _KEYWORDS]
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
        count: Of the frames in the file.
        instance: UID of the object in the file.
        series: UIDs of study and series, patient and modality: files of another patient may have got the same UIDs.
        label: Series number and description, as far as there are any.
        modality: Such as CT, MR or PT; empty if the file does not tell.
        is_grey: Whether a pixel is one value; false for colours and palettes.
        phase: Values of `PHASES` as text.
        reference: UID of the frame of reference.
        size: Rows and columns.
        position: (x, y, z) of the centre of the first pixel in mm, towards left, back and head of the patient.
        cosines: Where columns go on, then where rows go on, in the same space; 6 numbers.
        spacing: From row to row and from column to column, in mm.
        slope, intercept: Of the function from stored values to those that are meant, such as HU; empty: 1 and 0.

    What the file does not tell is empty.
    """

    file: str
    index: int
    count: int
    instance: str
    series: tuple[str, ...]
    label: tuple[str, ...]
    modality: str
    is_grey: bool
    phase: tuple[str, ...]
    reference: str
    size: tuple[int, int]
    position: tuple[float, ...]
    cosines: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of the file, for messages, and which of its frames."""
        return Path(self.file).name + (f" (frame {self.index + 1})" if self.count > 1 else "")


def may_be_dicom(file: Path) -> bool:
    """Whether a file has DICOM's preamble, or begins as those do that lack it.

    Raises:
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08")


def read_frames(file: str) -> list[Frame]:
    """What a file says of its frames; none if it is no DICOM, or a directory of others.

    Raises:
        BadScan: If it is damaged, or holds no image.
    """
    with _reasons_for(file):
        _require_harmless(file)
        return _frames(file, pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS))


def read_planes(file: str) -> Iterator[tuple[Frame, np.ndarray]]:
    """Each frame with the values (rows, columns) that are meant, such as HU, in any dtype.

    What sorts frames into series (`Frame.series`, ``label``, ``phase``, ``reference``) is left empty: it takes time.

    Raises:
        BadScan: If the file is truncated or damaged.
    """
    with _reasons_for(file):
        data = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in data.file_meta:  # where the preamble is missing; pydicom has found out
            implicit, little = data.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        planes = iter_pixels(data)
        for frame, pixels in zip(_frames(file, data, sorts=False), planes, strict=False):
            yield frame, _without_padding(_meant(pixels, frame, data), pixels, data)
        if next(planes, None) is not None:
            raise BadScan("holds more frames than it announces: export it again")


def _meant(pixels: np.ndarray, frame: Frame, data: Dataset) -> np.ndarray:
    if "ModalityLUTSequence" in data:
        return apply_modality_lut(pixels, data)
    (slope,), (intercept,) = frame.slope or (1.0,), frame.intercept or (0.0,)
    if slope == 1:  # exact for whole numbers
        return np.add(pixels, intercept, dtype=np.float32)
    return np.multiply(pixels, slope, dtype=np.float64) + intercept


def _without_padding(meant: np.ndarray, pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """What lies beyond the field of view becomes the lowest value where it is stored as the highest of all."""
    padding = data.get("PixelPaddingValue")
    if padding is not None and padding == pixels.max() and not (is_padding := pixels == padding).all():
        meant[is_padding] = meant[~is_padding].min()
    return meant


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


def _require_harmless(file: str) -> None:
    """Refuse what pydicom would decompress at once, and that may be a thousand times as large then."""
    if os.path.getsize(file) > _MOST_DEFLATED:
        with open(file, "rb") as stream:
            if DeflatedExplicitVRLittleEndian.encode() in stream.read(1024):
                raise BadScan("is deflated: store it in another transfer syntax")


def _frames(file: str, data: Dataset, sorts: bool = True) -> list[Frame]:
    kind = data.file_meta.get("MediaStorageSOPClassUID", data.get("SOPClassUID"))
    if not kind and data.preamble:
        raise ValueError("what it holds is missing")
    if not kind or kind == MediaStorageDirectoryStorage:
        return []
    size, modality = (int(data.get("Rows") or 0), int(data.get("Columns") or 0)), _text(data, "Modality").upper()
    if modality in _NO_IMAGES:
        raise BadScan(f"holds no image but {modality}")
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not _can_be_decoded(syntax, int(data.get("BitsStored") or 16)):
        raise BadScan(f"is stored as {syntax.name}, which cannot be decoded here: export it uncompressed")
    stored, highest = data.get("BitsStored"), data.get("HighBit")
    if stored and highest and highest != stored - 1:
        raise BadScan(f"has its values in bits {highest - stored + 1} to {highest}, not in the lowest: export it again")
    if 0 in size:
        raise BadScan("holds no image, or is truncated")
    grey = _text(data, "PhotometricInterpretation").startswith("MONOCHROME") and data.get("SamplesPerPixel", 1) == 1
    text = partial(_text, data) if sorts else lambda _: ""
    uids = text("StudyInstanceUID"), text("SeriesInstanceUID"), text("PatientID"), modality
    label = tuple(part for part in (text("SeriesNumber"), text("SeriesDescription")) if part)
    common, place = (text("SOPInstanceUID"), uids, label, modality, grey), (text("FrameOfReferenceUID"), size)

    def phase(*groups: Dataset) -> tuple[str, ...]:
        return _phase(data, groups) if sorts else ("",) * len(PHASES)

    count, groups = int(data.get("NumberOfFrames") or 1), data.get("PerFrameFunctionalGroupsSequence") or []
    if count * _LEAST_FRAME > os.path.getsize(file):
        raise BadScan(f"announces {count} frames: it is damaged, fetch it again")
    if not groups:
        detectors = data.get("DetectorInformationSequence") or []  # where objects of nuclear medicine tell the place
        told = _told([data, *detectors[:1]])
        return _evenly_spaced(Frame(file, 0, count, *common, phase(), *place, *told), data)
    if len(groups) != count:
        raise BadScan(f"announces {count} frames and describes {len(groups)}: fetch it again")
    shared = (data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [
        Frame(
            *(file, i, count, *common, phase(own, shared), *place),
            *_told([*_items(own), *_items(shared), data]),
        )
        for i, own in enumerate(groups)
    ]


def _can_be_decoded(syntax: UID, bits: int) -> bool:
    """Whether there is a decoder for pixels of so many bits; unknown syntaxes of no compression need none."""
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return True
    try:
        return get_decoder(syntax).is_available and (syntax != JPEGExtended12Bit or bits <= 8)
    except NotImplementedError:
        return False


def _text(data: Dataset, keyword: str) -> str:
    value = data.get(keyword)
    parts = value if isinstance(value, MultiValue) else [] if value is None else [value]
    return " ".join(map(str, parts))


def _phase(data: Dataset, groups: Sequence[Dataset]) -> tuple[str, ...]:
    """Values of `PHASES`: the frame's own, those of all frames, or else the object's."""
    return tuple(
        next(
            (
                _text(group[sequence][0], name)
                for group in groups
                for sequence, name in _PHASES_IN_GROUPS.get(keyword, ())
                if group.get(sequence)
            ),
            _text(data, keyword),
        )
        for keyword in PHASES
    )


def _items(groups: Dataset) -> list[Dataset]:
    return [groups[keyword][0] for keyword in _GROUPS if groups.get(keyword)]


def _told(items: Sequence[Dataset]) -> tuple[Any, ...]:
    """Position, cosines, spacing, slope and intercept, each from the first item that has it."""

    def numbers(keyword: str, count: int) -> tuple[float, ...]:
        value = next((item.get(keyword) for item in items if keyword in item), None)
        values = () if value is None else tuple(map(float, value if isinstance(value, MultiValue) else [value]))
        return values if len(values) == count and all(map(math.isfinite, values)) else ()

    geometry = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6), numbers("PixelSpacing", 2)
    return *geometry, numbers("RescaleSlope", 1), numbers("RescaleIntercept", 1)


def _evenly_spaced(first: Frame, data: Dataset) -> list[Frame]:
    """Frames without groups of their own: they follow each other along the normal if the file tells their distance."""
    count, step = first.count, data.get("SpacingBetweenSlices")
    if count == 1:
        return [first]
    if not first.position or not first.cosines or step is None:
        raise BadScan(f"has {count} frames that do not say where they lie (a film?)")
    pointer = data.get("FrameIncrementPointer")
    pointed = [keyword_for_tag(tag) for tag in (pointer if isinstance(pointer, MultiValue) else [pointer]) if tag]
    for keyword in dict.fromkeys((*pointed, "FrameTime", "FrameTimeVector")):
        values: Any = data.get(keyword)
        if values is not None and keyword != "SliceVector" and (keyword not in _VECTORS or len(set(values)) > 1):
            raise BadScan(f"has {count} frames that differ in {keyword}: a film, or several volumes, not one")
    slices = data.get("SliceVector") or range(1, count + 1)
    if sorted(slices) != list(range(1, count + 1)):
        raise BadScan(f"has {count} frames whose SliceVector does not number them: export it again")
    normal = np.cross(first.cosines[:3], first.cosines[3:])
    positions = np.array(first.position) + np.outer((np.array(slices) - 1) * float(step), normal)
    return [replace(first, index=index, position=tuple(place)) for index, place in enumerate(positions.tolist())]
