"""The spacing of 3D TIFF, which nnU-Net has in a JSON file beside the image."""

import logging
import math
from pathlib import Path

from nnunetv2_pgl.files import load_json
from pretraining.data.scan import BadScan

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it names no file; what matters becomes a scan's reason

_CHANNEL = len("_0000")


def spacing_file(file: str) -> Path:
    """Where nnU-Net looks for the spacing of an image such as ``cell_0000.tif``: ``cell.json``."""
    path = Path(file)
    return path.with_name(f"{path.name.removesuffix(path.suffix)[:-_CHANNEL]}.json")


def require_tiff_spacing(file: str) -> None:
    """Refuse what is no spacing; where the file is not there, nnU-Net takes 1.

    Raises:
        BadScan: If the file does not hold three positive numbers.
    """
    path = spacing_file(file)
    if not path.is_file():
        return
    try:
        spacing = load_json(path)["spacing"]
        good = len(spacing) == 3 and all(math.isfinite(value) and value > 0 for value in spacing)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        good = False
    if not good:
        raise BadScan(
            f'{path.name} beside {Path(file).name} has no "spacing" of three positive numbers (z y x, in mm): '
            "correct it"
        )
