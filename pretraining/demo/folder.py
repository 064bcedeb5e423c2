"""The folder that the demo writes: where everything lies in it, and when it may be replaced."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_pgl.errors import PGLError

UNLABELLED_ID, UNLABELLED_NAME = 501, "PGLDemoUnlabelled"
LABELLED_ID, LABELLED_NAME = 502, "PGLDemoTorso"
RUN_NAME = "demo"
TRAINER, CONFIGURATION, FOLD = "nnUNetTrainerPGL_demo", "3d_fullres", "0"

_MARKER = "pgl_demo.txt"
_OWN_NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs", "predictions", "pictures", _MARKER)


class DemoFolderError(PGLError):
    """The demo may not write into the folder; the message says why and what to do."""


@dataclass(frozen=True)
class DemoFolder:
    """Where the demo keeps what."""

    root: Path

    @property
    def raw(self) -> Path:
        """The folder for nnUNet_raw."""
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """The folder for nnUNet_preprocessed."""
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """The folder for nnUNet_results."""
        return self.root / "nnUNet_results"

    @property
    def labelled(self) -> Path:
        """The raw dataset with labels."""
        return self.raw / f"Dataset{LABELLED_ID}_{LABELLED_NAME}"

    @property
    def predictions(self) -> Path:
        """The segmentations of the test scans."""
        return self.root / "predictions"

    @property
    def pictures(self) -> Path:
        """The pictures that the demo draws itself."""
        return self.root / "pictures"

    @property
    def pretraining(self) -> Path:
        """The folder of the pre-training run."""
        return self.results / "PGL" / RUN_NAME

    @property
    def model(self) -> Path:
        """The folder of the fine-tuned model."""
        return self.results / self.labelled.name / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"

    def prepare(self, overwrite: bool) -> None:
        """Create the folder, or empty that of a former demo of all that a demo writes.

        Raises:
            DemoFolderError: The folder holds something else, or a former demo and ``overwrite`` is not set.
        """
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            if not (self.root / _MARKER).is_file():
                raise DemoFolderError(f"{self.root} exists and holds no former demo; choose another folder with -o")
            if not overwrite:
                raise DemoFolderError(f"{self.root} holds a former demo; add --overwrite, or choose another with -o")
            self._remove_former()
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True)
        (self.root / _MARKER).write_text("Written by pgl_demo, which may overwrite this folder.\n", encoding="utf-8")

    def _remove_former(self) -> None:
        for name in _OWN_NAMES:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
