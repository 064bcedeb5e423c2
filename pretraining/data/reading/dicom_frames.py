"""The frames in a DICOM object: their positions, what their values mean, and what sorts them into series."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit, MediaStorageDirectoryStorage

from pretraining.data.scan import BadScan

# The phases, echoes or passes of a series differ in one of these.
PHASES = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType"),
    *("EchoTime", "DiffusionBValue", "ConvolutionKernel", "KVP", "StackID"),
)
# Where multi-frame objects have them: sequence and keyword.
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
# Modalities of objects that are not images of a patient, with or without pixels.
_NO_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}
_MIN_FRAME_BYTES = 64  # in a file, however compressed
# What the frames of an object without functional groups may differ in (PS3.3, C.8.4.8).
_VECTORS = (
    *("EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector"),
    *("AngularViewVector", "TimeSliceVector", "SliceVector"),
)
_ASCII = {"UI", "CS", "DS", "IS"}  # value representations without a character set
# Functional groups of multi-frame objects, per frame or shared (PS3.3, C.7.6.16).
_GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True, slots=True)  # there may be hundreds of thousands
class Frame:
    """One plane of a DICOM file, without its pixels. What the file does not state is empty."""

    file: str
    index: int  # in the file
    count: int  # frames in the file
    instance: str  # UID of the object in the file
    series: tuple[str, ...]  # UIDs of study and series, patient and modality: badly anonymised patients may share UIDs
    label: tuple[str, ...]  # series number and description, as far as there are any
    modality: str  # such as CT, MR or PT
    is_grey: bool  # a pixel is one value; false for colours and palettes
    phase: tuple[str, ...]  # values of PHASES
    reference: str  # UID of the frame of reference
    size: tuple[int, int]  # rows and columns
    position: tuple[float, ...]  # (x, y, z) of the first pixel's centre in mm, towards left, back and head
    cosines: tuple[float, ...]  # direction from column to column, then from row to row, in the same space
    spacing: tuple[float, ...]  # from row to row and from column to column, in mm
    slope: tuple[float, ...]  # from stored values to true ones, such as HU; empty: 1
    intercept: tuple[float, ...]  # empty: 0

    @property
    def folder(self) -> Path:
        """Of the file."""
        return Path(self.file).parent

    @property
    def name(self) -> str:
        """File name for messages, with the number of the frame."""
        return Path(self.file).name + (f" (frame {self.index + 1})" if self.count > 1 else "")


def frames_of(file: str, data: Dataset, for_sorting: bool = True) -> list[Frame]:
    """The frames of an object; none of a DICOMDIR, and of what is not DICOM.

    Args:
        file: Where it was read from.
        data: The object, with or without its pixels.
        for_sorting: Whether to look up what sorts frames into series, which takes time. If not, it is left empty.

    Raises:
        BadScan: If it holds no image, or one that cannot be decoded; without the name of the file.
    """
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
    is_grey = _text(data, "PhotometricInterpretation").startswith("MONOCHROME") and data.get("SamplesPerPixel", 1) == 1
    count, groups = int(data.get("NumberOfFrames") or 1), data.get("PerFrameFunctionalGroupsSequence") or []
    if count * _MIN_FRAME_BYTES > os.path.getsize(file):
        raise BadScan(f"declares {count} frames: it is damaged, fetch it again")
    if groups and len(groups) != count:
        raise BadScan(f"declares {count} frames and describes {len(groups)}: fetch it again")

    def text(keyword: str) -> str:
        return _text(data, keyword) if for_sorting else ""

    common = partial(
        Frame,
        file=file,
        count=count,
        instance=text("SOPInstanceUID"),
        series=(text("StudyInstanceUID"), text("SeriesInstanceUID"), text("PatientID"), modality),
        label=tuple(part for part in (text("SeriesNumber"), text("SeriesDescription")) if part),
        modality=modality,
        is_grey=is_grey,
        reference=text("FrameOfReferenceUID"),
        size=size,
    )

    def frame(index: int, items: Sequence[Dataset], *own_and_shared: Dataset) -> Frame:
        return common(
            index=index,
            phase=_phase(data, own_and_shared) if for_sorting else ("",) * len(PHASES),
            position=_numbers(items, "ImagePositionPatient", 3),
            cosines=_numbers(items, "ImageOrientationPatient", 6),
            spacing=_numbers(items, "PixelSpacing", 2),
            slope=_numbers(items, "RescaleSlope", 1),
            intercept=_numbers(items, "RescaleIntercept", 1),
        )

    if not groups:
        detectors = data.get("DetectorInformationSequence") or []  # these have the position in nuclear medicine
        return _evenly_spaced(frame(0, [data, *detectors[:1]]), data)
    shared = (data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [frame(i, [*_items(own), *_items(shared), data], own, shared) for i, own in enumerate(groups)]


def _can_be_decoded(syntax: UID, bits: int) -> bool:
    """Whether there is a decoder for pixels of so many bits; uncompressed and unknown syntaxes need none."""
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return True
    try:
        return get_decoder(syntax).is_available and (syntax != JPEGExtended12Bit or bits <= 8)
    except NotImplementedError:
        return False


def _values(data: Dataset, keyword: str) -> list[str]:
    """The values of an element as text; pydicom, which is slow, converts only what is not ASCII text."""
    if keyword not in data:
        return []
    value = data.get_item(keyword).value if dictionary_VR(keyword) in _ASCII else data[keyword].value
    if isinstance(value, bytes):
        return [part.strip() for part in value.decode("ascii", "replace").rstrip("\0 ").split("\\")]
    values = value if isinstance(value, MultiValue) else [] if value is None else [value]
    return [str(part).strip() for part in values]


def _text(data: Dataset, keyword: str) -> str:
    return " ".join(_values(data, keyword))


def _phase(data: Dataset, groups: Sequence[Dataset]) -> tuple[str, ...]:
    """Values of `PHASES`: the first that is in the groups, or else the object's."""

    def value(keyword: str) -> str:
        for group in groups:
            for sequence, name in _PHASES_IN_GROUPS.get(keyword, ()):
                if group.get(sequence):
                    return _text(group[sequence][0], name)
        return _text(data, keyword)

    return tuple(map(value, PHASES))


def _items(groups: Dataset) -> list[Dataset]:
    return [groups[keyword][0] for keyword in _GROUPS if groups.get(keyword)]


def _numbers(items: Sequence[Dataset], keyword: str, count: int) -> tuple[float, ...]:
    """From the first item that has them; empty if they are not as many, or not finite."""
    item = next((item for item in items if keyword in item), None)
    values = () if item is None else tuple(float(value) for value in _values(item, keyword) if value)
    return values if len(values) == count and all(map(math.isfinite, values)) else ()


def _evenly_spaced(first: Frame, data: Dataset) -> list[Frame]:
    """Frames without functional groups: they follow each other along the normal if the file states their distance."""
    count, step = first.count, data.get("SpacingBetweenSlices")
    if count == 1:
        return [first]
    if not first.position or not first.cosines or step is None:
        raise BadScan(f"has {count} frames without positions (a film?)")
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
    return [replace(first, index=index, position=tuple(position)) for index, position in enumerate(positions.tolist())]
