"""The files of a comparison, in ``$nnUNet_results/PGL_compare/<name>``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json, write_text

_NAME = re.compile(r"[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*")


def require_name(text: str, option: str) -> str:
    """The name; a PGLError if it cannot be part of the name of a model folder, which nnU-Net splits at every ``__``."""
    if not _NAME.fullmatch(text):
        raise PGLError(f"{option} {text!r}: a name has letters, digits, and single - _ . between them")
    return text


def file_name(init: str) -> str:
    """The name of an initialisation in names of files and folders, which have no colon on all systems."""
    return init.replace(":", "-")


def write_file(path: Path, text: str) -> None:
    """Writes a text file, completely or not at all, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, shared=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in the same way."""
    write_file(path, json.dumps(content, indent=4) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a PGLError if there is none."""
    try:
        content = load_json(path)
    except (ValueError, OSError) as error:
        raise PGLError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise PGLError(f"{path}: is not a JSON object")
    return content


class ComparisonFolder:
    """The files of one comparison. All that belongs to one run has the run's name.

    Attributes:
        path: The folder; it need not exist.
        name: Of the comparison.
        settings: What is compared.
        addresses: Where exactly the content of checkpoints is that are given by address.
        splits: Test cases, folds and the orders of their training cases.
        excluded: Names of the scans that no pre-training sees.
        test_cases: Names of the test cases, as ``--test_cases`` takes them.
        test_images: Links to the images of the test cases, for nnUNetv2_predict.
        results: All rows of all runs.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.settings, self.splits = path / "settings.json", path / "splits.json"
        self.addresses = path / "addresses.json"
        self.excluded, self.test_cases = path / "exclude.txt", path / "test_cases.txt"
        self.test_images, self.results = path / "test_images", path / "results.csv"

    @classmethod
    def from_name(cls, name: str) -> ComparisonFolder:
        """The folder of a comparison; a PGLError if its name is not valid."""
        return cls(Path(nnUNet_results) / "PGL_compare" / require_name(name, "-o"))

    def logs(self, run: str) -> Path:
        """Output of the commands of a run."""
        return self.path / "logs" / run

    def predictions(self, run: str) -> Path:
        """Segmentations of the test cases."""
        return self.path / "predictions" / run

    def metrics(self, run: str) -> Path:
        """The rows of a run; the run is done when they are there."""
        return self.path / "metrics" / f"{run}.csv"

    def seconds(self, run: str) -> Path:
        """How long a run took."""
        return self.path / "metrics" / f"{run}.json"

    def pretraining(self, init: str) -> Path:
        """The command that this comparison has started for a pre-training."""
        return self.path / "pretraining" / f"{init}.json"

    def lock(self, name: str) -> Path:
        """Held while something is made that only one process may make at a time, such as a run."""
        return self.path / "locks" / f"{name}.lock"

    def derived(self, init: str, ending: str) -> Path:
        """What an initialisation made from another one needs: its checkpoint, or how much longer it trains."""
        return self.path / "derived" / f"{file_name(init)}.{ending}"
