"""Under which licence a source of scans is and where it is from, as far as its ``dataset.json`` says so."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunetv2_pgl.errors import one_line
from nnunetv2_pgl.files import load_json

# What a file says for which nobody has given a licence.
_PLACEHOLDER = inspect.signature(generate_dataset_json).parameters["license"].default


def stated_terms(folder: Path) -> dict[str, str | None]:
    """Licence, reference and release of a dataset; None for each that is not stated, of plain folders for all.

    nnU-Net writes the licence under ``licence`` and calls it ``license``; both are read.

    Args:
        folder: Of an nnU-Net dataset, or another folder.
    """
    try:
        content = load_json(folder / "dataset.json")
    except (OSError, ValueError):
        content = None
    content = content if isinstance(content, dict) else {}
    return {
        "licence": _text(content.get("licence")) or _text(content.get("license")),
        "reference": _text(content.get("reference")),
        "release": _text(content.get("release")),
    }


def _text(value: Any) -> str | None:
    """A text, or several, in one line."""
    texts = value if isinstance(value, list) else [value]
    stated = [text.strip() for text in texts if isinstance(text, str) and text != _PLACEHOLDER]
    return one_line(", ".join(filter(None, stated))) or None
