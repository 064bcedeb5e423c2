"""DICOM series: find them in a folder, check that no slice is missing, read them."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk

from pretraining.data.dicom_lengths import damaged_element
from pretraining.data.scan import BadScan

_MODALITY, _DESCRIPTION, _NUMBER = "0008|0060", "0008|103e", "0020|0011"
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
# The same tag, explicit or implicit, in little endian as nearly all files are, and the beginning of its text.
_ORIENTATION_ELEMENT = re.compile(rb"\x20\x00\x37\x00(?:DS..|..\x00\x00)[ +-]*[0-9.][0-9.eE+-]* *\\", re.DOTALL)
_HEAD = 1 << 20  # bytes in which an object of many frames tells how the first lies
# Objects that have pixels but are no images of a patient.
_NO_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}
# Slice distances may differ by this share of their median: positions are written with few digits.
_POSITION_TOLERANCE = 0.05


def find_series(folder: Path, files: Sequence[Path]) -> tuple[list[tuple[str, tuple[str, ...]]], list[tuple[str, str]]]:
    """Find the DICOM series whose slices lie in one folder.

    Args:
        folder: The folder, not searched further down.
        files: Its files that may be DICOM.

    Returns:
        Name and ordered slices of each series; and name and reason of those that hold no image. A series is named
        after its folder, with number and description where the folder holds several.
    """
    dicom_files = [file for file in files if _is_dicom(file)]
    if not dicom_files:
        return [], []
    damaged = {file: element for file in dicom_files if (element := damaged_element(file))}
    try:
        if damaged:
            all_slices = _slices_without(folder, [file for file in files if file not in damaged])
        else:
            all_slices = _slices_by_series(folder)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        return [], [(folder.name, f"a DICOM file in its folder is damaged ({reason}): take it out")]
    series, no_images = [], []
    strangers = {str(file) for file in dicom_files if file.stem != "DICOMDIR"}.difference(*all_slices)
    if strangers:
        first = Path(min(strangers))
        where = f" at its element {damaged[first]}" if first in damaged else " or of no DICOM series"
        others = f", and {len(strangers) - 1} others" if len(strangers) > 1 else ""
        no_images.append((folder.name, f"{first.name} is truncated or damaged{where}{others}: passed over"))
    for slices in all_slices:
        name = folder.name
        try:
            header = _header(slices[0])
        except BadScan as error:
            no_images.append((name, str(error)))
            continue
        if len(all_slices) > 1:
            name = "_".join(part for part in (name, _tag(header, _NUMBER), _tag(header, _DESCRIPTION)) if part)
        modality = _tag(header, _MODALITY)
        if modality in _NO_IMAGES:
            no_images.append((name, f"the DICOM series holds no image but {modality}"))
        else:
            series.append((name, slices))
    return series, no_images


def _slices_by_series(folder: Path) -> list[tuple[str, ...]]:
    """Ordered slices of each series in a folder."""
    find = sitk.ImageSeriesReader.GetGDCMSeriesFileNames
    return [tuple(find(str(folder), uid)) for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))]


def _slices_without(folder: Path, files: Sequence[Path]) -> list[tuple[str, ...]]:
    """The same for some of its files: GDCM, which takes a folder, gets one with links to them."""
    with TemporaryDirectory() as temporary:
        for file in files:
            Path(temporary, file.name).symlink_to(file.resolve())
        return [tuple(str(folder / Path(link).name) for link in links) for links in _slices_by_series(Path(temporary))]


def read_series_geometry(slices: Sequence[str]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing (mm), both (z, y, x), from the first and the last slice's header alone."""
    header = _header(slices[0])
    columns, rows = header.GetSize()[:2]
    if header.GetNumberOfComponents() > 1:
        raise BadScan("colour images are not scans")
    if len(slices) == 1:
        return tuple(reversed(header.GetSize())), tuple(reversed(header.GetSpacing()))
    distance = abs(_depth(_header(slices[-1])) - _depth(header)) / (len(slices) - 1)
    return (len(slices), rows, columns), (distance, header.GetSpacing()[1], header.GetSpacing()[0])


def series_direction(slices: Sequence[str]) -> tuple[float, ...] | None:
    """Direction cosines of a series as ITK gives them, nine numbers, from the first and the last slice's header alone.

    Returns:
        None where it does not say how it lies in the patient.

    Raises:
        BadScan: If a header cannot be read.
    """
    header = _header(slices[0])
    if len(slices) == 1:
        if header.GetDimension() != 3 or not _tells_orientation(slices[0]):
            return None
        # Frames against the normal have a negative spacing in the header, but not in the image.
        ways = (1.0, 1.0, np.sign(header.GetSpacing()[2]))
        return tuple((np.reshape(header.GetDirection(), (3, 3)) * ways).ravel().tolist())
    numbers = _numbers(_tag(header, _ORIENTATION), 6)
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    normal = np.cross(row, column) * np.sign(_depth(_header(slices[-1])) - _depth(header))
    return tuple(np.stack((row, column, normal), axis=1).ravel().tolist())


def read_series(slices: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a series like nnU-Net's readers: float32 (1, z, y, x), and properties with the spacing (z, y, x) in mm.

    Raises:
        BadScan: If slices are missing, overlap, or differ in size.
    """
    if len(slices) > 1:
        _check_positions(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(slices)
    try:
        image = reader.Execute() if len(slices) > 1 else sitk.ReadImage(slices[0])
    except RuntimeError as error:
        raise BadScan(f"the DICOM series cannot be read: {str(error).strip().splitlines()[-1]}") from error
    geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)[None]
    return array, {"sitk_stuff": geometry, "spacing": list(reversed(image.GetSpacing()))}


def _check_positions(slices: Sequence[str]) -> None:
    """GDCM drops slices it cannot read and ITK only warns of gaps, so the positions are checked here."""
    depths = np.array([_depth(_header(file)) for file in slices])
    steps = np.abs(np.diff(depths))
    step = float(np.median(steps))
    if step == 0 or np.any(np.diff(np.sort(depths)) < step * _POSITION_TOLERANCE):
        raise BadScan("several DICOM slices lie at the same position (two phases in one series?)")
    worst = int(np.argmax(np.abs(steps - step)))
    if abs(steps[worst] - step) > _POSITION_TOLERANCE * step:
        raise BadScan(
            f"DICOM slices are missing or unevenly spaced: {steps[worst]:.2f} mm after {Path(slices[worst]).name}, "
            f"{step:.2f} mm elsewhere"
        )


def _is_dicom(file: Path) -> bool:
    """DICOM files carry the letters DICM after a preamble of 128 bytes."""
    try:
        with file.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def _tells_orientation(file: str) -> bool:
    """Whether the tag occurs, at whatever depth: an object of many frames has it within its functional groups."""
    with open(file, "rb") as stream:
        return _ORIENTATION_ELEMENT.search(stream.read(_HEAD)) is not None


def _header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise BadScan(f"{Path(file).name} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    return reader


def _tag(header: sitk.ImageFileReader, key: str) -> str:
    return str(header.GetMetaData(key)).strip() if header.HasMetaDataKey(key) else ""


def _depth(header: sitk.ImageFileReader) -> float:
    """Position of a slice along the normal of its plane, in mm."""
    position = _numbers(_tag(header, _POSITION), 3)
    orientation = _numbers(_tag(header, _ORIENTATION), 6)
    return float(np.dot(np.cross(orientation[:3], orientation[3:]), position))


def _numbers(text: str, count: int) -> list[float]:
    try:
        values = [float(value) for value in re.split(r"\\", text) if value.strip()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise BadScan("a DICOM slice does not say where it lies (image position or orientation is missing)")
    return values
