"""Where a comparison keeps what: ``$nnUNet_results/PGL_compare/<name>``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.files import load_json, write_text
from pretraining.comparison.errors import ComparisonError

_NAME = re.compile(r"[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*")


def require_name(text: str, option: str) -> str:
    """The name, if it can be part of the name of a model folder.

    nnU-Net takes these folder names apart at every ``__``.

    Raises:
        ComparisonError: It cannot.
    """
    if not _NAME.fullmatch(text):
        raise ComparisonError(f"{option} {text!r}: a name has letters, digits, and single - _ . between them")
    return text


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file; whoever reads it finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, shared=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in the same way."""
    write_atomically(path, json.dumps(content, indent=4) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a table.

    Raises:
        ComparisonError: It does not.
    """
    try:
        content = load_json(path)
    except (ValueError, OSError) as error:
        raise ComparisonError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ComparisonError(f"{path}: holds no table of names and values")
    return content


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison. All that belongs to one run has the run's name."""

    path: Path

    @classmethod
    def named(cls, name: str) -> ComparisonFolder:
        """The folder of a comparison; it need not exist.

        Raises:
            ComparisonError: nnUNet_results is not set, or the name is not one.
        """
        if not nnUNet_results.is_set():
            raise ComparisonError("nnUNet_results is not set: export nnUNet_results=/path/to/nnUNet_results")
        return cls(Path(nnUNet_results) / "PGL_compare" / require_name(name, "-o"))

    @property
    def name(self) -> str:
        """Of the comparison."""
        return self.path.name

    @property
    def settings(self) -> Path:
        """What is compared."""
        return self.path / "settings.json"

    @property
    def splits(self) -> Path:
        """Test cases, folds and the orders of their training cases."""
        return self.path / "splits.json"

    @property
    def excluded(self) -> Path:
        """Names of the scans that no pre-training sees."""
        return self.path / "exclude.txt"

    @property
    def test_cases(self) -> Path:
        """Names of the test cases, as ``--test_cases`` takes them."""
        return self.path / "test_cases.txt"

    @property
    def test_images(self) -> Path:
        """Links to the images of the test cases, for nnUNetv2_predict."""
        return self.path / "test_images"

    @property
    def submit_script(self) -> Path:
        """Submits the steps to Slurm."""
        return self.path / "submit.sh"

    @property
    def results(self) -> Path:
        """All rows of all runs."""
        return self.path / "results.csv"

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

    def derived(self, init: str, ending: str) -> Path:
        """What an initialisation that is made from another one needs: its checkpoint, or how much longer it trains."""
        return self.path / "derived" / f"{init}.{ending}"
