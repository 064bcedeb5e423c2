"""DICOM files, by pydicom: their frames and the values of these."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pretraining.data.dicom_frames import TAGS, Frame, frames_of
from pretraining.data.scan import BadScan

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # tracebacks of decoders; what matters becomes a reason


_MOST_DEFLATED = 8 * 1024**2  # bytes of a file


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
        return frames_of(file, pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS))


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
        for frame, pixels in zip(frames_of(file, data, sorts=False), planes, strict=False):
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
