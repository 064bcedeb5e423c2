"""Read DICOM files with pydicom: their frames and the values of these.

Damaged files, and those without an image, raise `BadScan`, with the reason.
"""

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

from pretraining.data.reading.dicom_frames import Frame, frames_of
from pretraining.data.scan import BadScan

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # tracebacks of decoders; what matters becomes the reason

_MAX_DEFLATED_BYTES = 8 * 1024**2  # of files that pydicom decompresses as a whole, to up to a thousand times the size


def may_be_dicom(file: Path) -> bool:
    """Whether a file has DICOM's preamble, or begins like a DICOM file that lacks it; OSError if it cannot be read."""
    with file.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08")


def read_frames(file: str) -> list[Frame]:
    """The frames of a file, from its header; none if it is not DICOM, or a DICOMDIR."""
    with _reasons_for(file):
        if os.path.getsize(file) > _MAX_DEFLATED_BYTES:
            with open(file, "rb") as stream:
                if DeflatedExplicitVRLittleEndian.encode() in stream.read(1024):
                    raise BadScan("is deflated: store it in another transfer syntax")
        return frames_of(file, pydicom.dcmread(file, stop_before_pixels=True, force=True))


def read_planes(file: str) -> Iterator[tuple[Frame, np.ndarray]]:
    """Each frame with its true values (rows, columns), such as HU, in any dtype.

    What sorts frames into series (`Frame.series`, ``label``, ``phase``, ``reference``) is left empty, to save time.
    """
    with _reasons_for(file):
        data = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in data.file_meta:  # the preamble is missing; pydicom has guessed it
            implicit, little = data.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        planes, padding = iter_pixels(data), data.get("PixelPaddingValue")
        for frame, pixels in zip(frames_of(file, data, for_sorting=False), planes, strict=False):
            values = _true_values(pixels, frame, data)
            # Padding around the field of view becomes the lowest value if it is stored as the highest.
            if padding is not None and padding == pixels.max() and not (is_padding := pixels == padding).all():
                values[is_padding] = values[~is_padding].min()
            yield frame, values
        if next(planes, None) is not None:
            raise BadScan("holds more frames than it declares: export it again")


def _true_values(pixels: np.ndarray, frame: Frame, data: Dataset) -> np.ndarray:
    if "ModalityLUTSequence" in data:
        return apply_modality_lut(pixels, data)
    (slope,), (intercept,) = frame.slope or (1.0,), frame.intercept or (0.0,)
    if slope == 1:  # exact for whole numbers
        return np.add(pixels, intercept, dtype=np.float32)
    return np.multiply(pixels, slope, dtype=np.float64) + intercept


@contextmanager
def _reasons_for(file: str) -> Iterator[None]:
    """Turn all errors into one reason that names the file, and drop pydicom's warnings."""
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
