"""``pgl_compare`` with stand-ins for the commands it runs.

The stand-ins leave behind what the real ones would, and write down how they were called. A prediction is the truth.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.comparison import command

NAME = "Dataset007_Small"
TINY = ("-d", "7", "--init", "random", "pgl", "--fractions", "0.5", "1", "--seeds", "1", "-device", "cpu", "-np", "1")
STAND_IN = r"""
import json, os, shutil, sys, time
from pathlib import Path

name, words = Path(sys.argv[0]).name, sys.argv[1:]
option = lambda key: words[words.index(key) + 1]
results, raw = Path(os.environ["nnUNet_results"]), Path(os.environ["nnUNet_raw"])
preprocessed = Path(os.environ["nnUNet_preprocessed"], "Dataset007_Small")
with open(os.environ["JOURNAL"], "a") as journal:
    variables = {key: os.environ.get(key) for key in ("nnUNet_extTrainer", "PGL_CHECKPOINT")}
    journal.write(json.dumps({"command": [name, *words], **variables}) + "\n")
held = os.environ.get("HELD", "")
if held and held in " ".join([name, *words]):
    Path(os.environ["HELD_AT"], "held").touch()
    for _ in range(2400):  # not for ever: the test may have failed
        time.sleep(0.05)
        if Path(os.environ["HELD_AT"], "go").exists():
            break
broken = os.environ.get("BROKEN", "")
if broken and broken in " ".join([name, *words]):
    print("it broke")
    sys.exit(int(os.environ.get("BROKEN_CODE", "3")))
if name == "nnUNetv2_plan_and_preprocess":
    (preprocessed / "data").mkdir(parents=True)
    configuration = {"3d_fullres": {"data_identifier": "data"}}
    plans = {"plans_name": "nnUNetPlans", "configurations": configuration}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    for image in (raw / "Dataset007_Small" / "imagesTr").iterdir():
        (preprocessed / "data" / image.name.replace("_0000.nii.gz", ".b2nd")).touch()
elif name == "pgl_pretrain":
    folder = results / "PGL" / option("-o")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint_final.pth").touch()
elif name == "nnUNetv2_train":
    folder = results / "Dataset007_Small" / f"{option('-tr')}__{option('-p')}__{words[1]}" / f"fold_{words[2]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint_final.pth").touch()
elif name == "nnUNetv2_predict":
    Path(option("-o")).mkdir(parents=True, exist_ok=True)
    for image in Path(option("-i")).iterdir():
        segmentation = image.name.replace("_0000.nii.gz", ".nii.gz")
        shutil.copy(raw / "Dataset007_Small" / "labelsTr" / segmentation, Path(option("-o"), segmentation))
"""
studies: list[Any] = []


class CompareCommand:
    """Calls the command, and reads what it made."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._monkeypatch, self._capsys = root, monkeypatch, capsys

    @property
    def folder(self) -> Path:
        return self.root / "nnUNet_results" / "PGL_compare" / NAME

    def call(self, *words: str, broken: str = "") -> tuple[list[str], int | str]:
        """The commands that ran, as one line each, and the exit code or the line that it ended with."""
        journal = self.root / "journal"
        journal.unlink(missing_ok=True)
        self._monkeypatch.setenv("BROKEN", broken)
        self._monkeypatch.setattr(sys, "argv", ["pgl_compare", *words])
        code: int | str = 0
        try:
            command.compare_entry()
        except SystemExit as stop:
            code = stop.code or 0
        self.output = self._capsys.readouterr().out
        self.entries = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        return [" ".join(entry["command"]) for entry in self.entries], code

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def refused(self, *words: str) -> str:
        """The line that a command ends with that runs nothing."""
        ran, line = self.call(*words)
        assert not ran
        assert isinstance(line, str)
        assert line.startswith("pgl_compare: ")
        assert "\n" not in line
        return line


def make_compare_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CompareCommand:
    """Ten tiny labelled scans, three of which will be the test set, and the stand-ins."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    raw = tmp_path / "nnUNet_raw" / NAME
    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (raw / folder).mkdir(parents=True)
        for index in range(10):
            voxels = np.zeros((2, 3, 4), np.uint8)
            voxels[0, 0, : 1 + index % 3] = 1
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(raw / folder / f"scan_{index}{ending}.nii.gz"))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    scripts = tmp_path / "bin"
    scripts.mkdir()
    monkeypatch.setattr("pretraining.console_commands.find_command", lambda name: str(_stand_in(scripts, name)))
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setenv("PGL_CHECKPOINT", "/somewhere/else.pth")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    monkeypatch.setattr("pretraining.comparison.report.write_report", _keep_study)
    return CompareCommand(tmp_path, monkeypatch, capsys)


def _stand_in(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable} -IS\n{STAND_IN}")
    path.chmod(0o755)
    return path


def install_stand_ins(root: Path) -> None:
    """All of them, in a folder "bin"."""
    for name in ("nnUNetv2_plan_and_preprocess", "pgl_pretrain", "nnUNetv2_train", "nnUNetv2_predict"):
        _stand_in(root / "bin", name)


def _keep_study(results: Any, study: Any, folder: Path) -> list[Path]:
    studies.append(study)
    return [folder / "report.md"]


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in root.rglob("*")
        if path.name != "journal"
    }
