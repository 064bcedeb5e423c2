"""DICOM files of all kinds, put together element by element, some of them as no scanner should write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from pretraining.data import find_scans, read_geometry, read_scan

AXIAL = (1, 0, 0, 0, 1, 0)
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
N = 12
VALUES = np.random.default_rng(0).integers(-1000, 1000, (N, 10, 14)).astype(np.int16)


def dataset(
    pixels: np.ndarray, kind: str = CT, syntax: pydicom.uid.UID = ExplicitVRLittleEndian, **elements: Any
) -> Dataset:
    """An object with 16-bit pixels (rows, columns) or (frame, rows, columns), as stored; ``None`` leaves one out."""
    data = Dataset()
    data.file_meta, data.preamble = FileMetaDataset(), bytes(128)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    described = {
        **{"Modality": "CT", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "SeriesNumber": 1},
        **{"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "FrameOfReferenceUID": "1.2.9"},
        **{"Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        **{"PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": 1, "RescaleIntercept": 0},
        **{"ImageOrientationPatient": list(AXIAL), "PixelSpacing": [0.8, 0.8]},
        **({"NumberOfFrames": len(pixels)} if pixels.ndim == 3 else {}),
    }
    for keyword, value in {**described, **elements}.items():
        if value is not None:
            setattr(data, keyword, value)
    data.PixelData = (pixels if syntax.is_little_endian else pixels.byteswap()).tobytes()
    if syntax == RLELossless:
        data.compress(syntax, generate_instance_uid=False)
    return data


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)
    return path


def write_slices(
    folder: Path,
    values: np.ndarray,
    step: Sequence[float] = (0, 0, 2),
    per_slice: Sequence[dict[str, Any]] = (),
    first: int = 0,
    **elements: Any,
) -> Path:
    """A series, (z, y, x) of int16 or uint16: one file a slice, IM0000 and so on, from ``first``."""
    for number, plane in enumerate(values, first):
        own = per_slice[number - first] if per_slice else {}
        position = [float(value) for value in np.multiply(step, number)]
        described = {"ImagePositionPatient": position, "InstanceNumber": number + 1}
        save(dataset(plane, **{**described, **elements, **own}), folder / f"IM{number:04d}")
    return folder


def enhanced(
    values: np.ndarray, positions: Sequence[Sequence[float]], per_frame: Sequence[dict[str, Any]] = (), **elements: Any
) -> Dataset:
    """An object of many frames with functional groups: what is not told ``per_frame`` is told once."""
    told = {
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.8, 0.8],
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    own = [{"ImagePositionPatient": list(map(float, place))} for place in positions]
    own = [{**a, **b} for a, b in zip(own, per_frame or [{}] * len(own), strict=True)]
    data = dataset(values, ENHANCED_CT, **dict.fromkeys(told), **elements)
    data.SharedFunctionalGroupsSequence = [_groups({k: v for k, v in told.items() if k not in own[0]})]
    data.PerFrameFunctionalGroupsSequence = [_groups(frame) for frame in own]
    return data


def _groups(told: dict[str, Any]) -> Dataset:
    places = {
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelMeasuresSequence": ("PixelSpacing",),
        "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    }
    groups = Dataset()
    for sequence, keywords in places.items():
        item = Dataset()
        for keyword in keywords:
            if keyword in told:
                setattr(item, keyword, told[keyword])
        if len(item):
            setattr(groups, sequence, [item])
    return groups


def read(folder: Path, modality: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Voxels of the scans, and the reasons of what is left out; headers and voxels must agree."""
    scans, skipped = find_scans([str(folder)], modality)
    arrays = {}
    for scan in scans:
        array, spacing, _ = read_scan(scan)
        assert read_geometry(scan).spacing == spacing
        assert read_geometry(scan).shape == array.shape[1:]
        arrays[scan.name] = array[0]
    return arrays, {item.name: item.reason for item in skipped}


def with_good(folder: Path) -> Path:
    """A series of another UID beside the one to be tried: there is always a scan."""
    return write_slices(folder / "good", VALUES, SeriesInstanceUID="1.2.4").parent
