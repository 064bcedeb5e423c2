"""``pgl_compare`` with stand-ins for the commands it runs: which ones run, in which order, and what failures do.

The stand-ins leave behind what the real ones would, and write down how they were called. A prediction is the truth.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from pretraining.comparison import command
from pretraining.comparison.study import reference_of
from pretraining.settings.config import PretrainConfig

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")

NAME = "Dataset007_Small"
TINY = ("-d", "7", "--init", "random", "pgl", "--fractions", "0.5", "1", "--seeds", "1", "-device", "cpu", "-np", "1")
STAND_IN = r"""
import json, os, shutil, sys
from pathlib import Path

name, words = Path(sys.argv[0]).name, sys.argv[1:]
option = lambda key: words[words.index(key) + 1]
results, raw = Path(os.environ["nnUNet_results"]), Path(os.environ["nnUNet_raw"])
preprocessed = Path(os.environ["nnUNet_preprocessed"], "Dataset007_Small")
with open(os.environ["JOURNAL"], "a") as journal:
    variables = {key: os.environ.get(key) for key in ("nnUNet_extTrainer", "PGL_CHECKPOINT")}
    journal.write(json.dumps({"command": [name, *words], **variables}) + "\n")
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


class Desk:
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


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
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
    return Desk(tmp_path, monkeypatch, capsys)


def _stand_in(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable} -IS\n{STAND_IN}")
    path.chmod(0o755)
    return path


studies: list[Any] = []


def _keep_study(results: Any, study: Any, folder: Path) -> list[Path]:
    studies.append(study)
    return [folder / "report.md"]


def test_the_whole_in_order(desk: Desk) -> None:
    ran, code = desk.call(*TINY, "--predict_options", "--disable_tta", "--pretrain_options", "-epochs 3")
    assert code == 0
    test = (desk.folder / "test_cases.txt").read_text().split()
    excluded = desk.folder / "exclude.txt"
    assert len(test) == 3
    assert excluded.read_text().split() == test
    assert ran[0].startswith("nnUNetv2_plan_and_preprocess -d 7 -c 3d_fullres")
    options = f"--paper -m pgl -norm instance -epochs 3 -exclude {excluded} -device cpu -np 1"
    assert ran[1] == f"pgl_pretrain -d {NAME} -o {NAME}_pgl {options}"
    plans = [f"nnUNetPlans_{init}_{percent}pct_seed0" for percent in (50, 100) for init in ("random", "pgl")]
    for plan, train, predict in zip(plans, ran[2::2], ran[3::2], strict=True):
        assert train == f"nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerPGL -p {plan} -device cpu"
        assert predict.startswith(f"nnUNetv2_predict -i {desk.folder / 'test_images'}")
        assert f"-p {plan} -device cpu" in predict
        assert predict.endswith("--disable_tta")
    assert {entry["PGL_CHECKPOINT"] for entry in desk.entries} == {None}
    extension, own = desk.entries[0]["nnUNet_extTrainer"].split(os.pathsep)
    assert Path(extension).name == "extension"
    assert own == str(desk.root)
    rows = desk.rows()
    assert len(rows) == 4 * 3
    assert {row["dice"] for row in rows} == {"1.0"}
    assert {row["case"] for row in rows} == set(test)
    images = sorted(image.name for image in (desk.folder / "test_images").iterdir())
    assert images == [f"{case}_0000.nii.gz" for case in test]
    study = studies[-1]
    assert (study.inits, study.reference, study.missing) == (("random", "pgl"), "pgl", ())
    assert len(study.runs) == 4
    assert all(run.prediction(case).is_file() for run in study.runs for case in test)


def test_called_again_it_only_reports(desk: Desk) -> None:
    desk.call(*TINY)
    assert desk.call(*TINY) == ([], 0)
    assert desk.call("-o", NAME, "-device", "cpu") == ([], 0)  # settings are remembered


@pytest.mark.parametrize(
    ("inits", "reference"),
    [
        (("random", "mine", "shuffled:mine", "longer:mine"), "mine"),
        (("random", "pgl", "other", "pgl_nce", "shuffled:pgl"), "pgl_nce"),
        (("random", "other", "mine", "shuffled:other"), "mine"),
        (("random",), "random"),
    ],
)
def test_what_is_tested_is_a_pre_training_and_no_control(inits: tuple[str, ...], reference: str) -> None:
    assert reference_of(inits) == reference


def test_results_of_elsewhere_are_taken_in_and_not_made_again(desk: Desk, tmp_path: Path) -> None:
    desk.call(*TINY)
    table = tmp_path / "elsewhere.csv"
    lines = (desk.folder / "results.csv").read_text().splitlines()
    table.write_text("\n".join(line for line in lines if "random,1.0," not in line) + "\n")
    shutil.rmtree(desk.folder)
    shutil.rmtree(desk.root / "nnUNet_results" / NAME)
    shutil.rmtree(desk.root / "nnUNet_results" / "PGL")
    ran, code = desk.call(*TINY, "--results", str(table))
    assert code == 0
    assert "Took in 3 runs from" in desk.output
    # Only what the table lacks; the pre-training is not needed for it.
    assert [line.split()[0] for line in ran] == ["nnUNetv2_train", "nnUNetv2_predict"]
    assert "nnUNetPlans_random_100pct_seed0" in ran[0]
    assert sorted((desk.folder / "results.csv").read_text().splitlines()) == sorted(lines)
    assert desk.call(*TINY, "--results", str(table)) == ([], 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pgl,", "byol,", "byol_50pct_fold0_seed0 is no run of this comparison"),
        ("organ", "liver", "has liver of case|lacks organ of case"),
        (",1.0,1.0,0.0", ",0.5,1.0,0.0", "has other values than the table given"),
        ("init,", "start,", "column init is missing"),
    ],
)
def test_results_of_another_comparison_are_refused(
    desk: Desk, tmp_path: Path, old: str, new: str, message: str
) -> None:
    desk.call(*TINY)
    table = tmp_path / "elsewhere.csv"
    table.write_text((desk.folder / "results.csv").read_text().replace(old, new))
    before = {path: path.read_bytes() for path in (desk.folder / "metrics").iterdir()}
    assert re.search(message, desk.refused(*TINY, "--results", str(table)))
    assert {path: path.read_bytes() for path in (desk.folder / "metrics").iterdir()} == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("settings.json", '"tolerance": 1.0', '"tolerance": 2.0', "tolerance is 2.0 there, here it is 1.0"),
        ("settings.json", "nnUNetTrainerPGL", "nnUNetTrainerPGL_50epochs", "trainer is 'nnUNetTrainerPGL_50epochs'"),
        ("splits.json", "scan_1", "scan_99", "divided otherwise"),
    ],
)
def test_results_made_with_other_settings_are_refused(
    desk: Desk, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    desk.call(*TINY)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("results.csv", "settings.json", "splits.json"):
        shutil.copy(desk.folder / name, elsewhere)
    assert desk.call(*TINY, "--results", str(elsewhere / "results.csv")) == ([], 0)
    path = elsewhere / file
    path.write_text(path.read_text().replace(old, new))
    assert message in desk.refused(*TINY, "--results", str(elsewhere / "results.csv"))


def test_it_goes_on_where_it_was_killed(desk: Desk) -> None:
    """A pre-training and a training with a saved state, and a training that was done but not predicted."""
    desk.call(*TINY)
    results = desk.root / "nnUNet_results"
    (results / "PGL" / f"{NAME}_pgl" / "checkpoint_final.pth").rename(
        results / "PGL" / f"{NAME}_pgl" / "checkpoint_latest.pth"
    )
    model = results / NAME / "nnUNetTrainerPGL__nnUNetPlans_pgl_50pct_seed0__3d_fullres" / "fold_0"
    (model / "checkpoint_final.pth").rename(model / "checkpoint_latest.pth")
    for run in ("pgl_50pct_fold0_seed0", "random_100pct_fold0_seed0"):
        (desk.folder / "metrics" / f"{run}.csv").unlink()
    ran, code = desk.call(*TINY)
    assert code == 0
    assert [line.split()[0] for line in ran] == [
        "pgl_pretrain",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_predict",
    ]
    assert ran[0].endswith("--c")
    assert ran[1].endswith("-p nnUNetPlans_pgl_50pct_seed0 -device cpu --c")
    assert "nnUNetPlans_random_100pct_seed0" in ran[3]
    assert len(desk.rows()) == 4 * 3
    seconds = {run.init + str(run.fraction): run.seconds for run in studies[-1].runs}
    assert seconds["pgl0.5"] is None  # taken up again: unknown
    assert seconds["random0.5"] is not None
    logs = sorted(file.name for file in (desk.folder / "logs" / "pgl_50pct_fold0_seed0").iterdir())
    assert logs[0] == "01_nnUNetv2_train.txt"  # that of the first time is kept
    assert "03_nnUNetv2_train.txt" in logs


def test_a_failed_run_stops_no_other(desk: Desk) -> None:
    ran, code = desk.call(*TINY, broken="nnUNetPlans_random_50pct_seed0")
    assert code == 1
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 4
    assert "1 failed:" in desk.output
    log = desk.folder / "logs" / "random_50pct_fold0_seed0" / "01_nnUNetv2_train.txt"
    assert desk.output.rstrip().splitlines()[-1].endswith(str(log))
    assert "it broke" in log.read_text()
    assert studies[-1].missing == ("random_50pct_fold0_seed0",)
    ran, code = desk.call(*TINY)
    assert code == 0
    assert len(ran) == 2


def test_a_failed_pretraining_spares_the_other_starts(desk: Desk) -> None:
    ran, code = desk.call(*TINY, broken="pgl_pretrain")
    assert code == 1
    assert not [line for line in ran if "nnUNetPlans_pgl" in line]
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 2
    assert "3 failed:" in desk.output
    assert "its pre-training is not done" in desk.output


def test_a_stopped_pretraining_stops_all(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a job's time limit: what comes next would only be cut off."""
    monkeypatch.setenv("BROKEN_CODE", "75")
    ran, code = desk.call(*TINY, broken="pgl_pretrain")
    assert code == 75
    assert ran[-1].startswith("pgl_pretrain")
    assert "FAILED" not in desk.output
    ran, code = desk.call(*TINY)
    assert code == 0
    assert ran[0].startswith("pgl_pretrain")


def test_everything_failed(desk: Desk) -> None:
    _, code = desk.call(*TINY, broken="nnUNetv2_train")
    assert code == 1
    assert "4 failed:" in desk.output


def test_two_processes_share_the_trainings(desk: Desk) -> None:
    assert "not prepared for these settings" in desk.refused(*TINY, "--only", "train", "--part", "0", "2")
    desk.call(*TINY, "--only", "prepare")
    desk.call(*TINY, "--only", "pretrain")
    first, _ = desk.call(*TINY, "--only", "train", "--part", "0", "2")
    second, _ = desk.call(*TINY, "--only", "train", "--part", "1", "2")
    trained = [line for line in first + second if line.startswith("nnUNetv2_train")]
    assert len(first) == len(second) == 4
    assert len(set(trained)) == 4
    assert desk.call(*TINY, "--only", "train") == ([], 0)


def test_a_comparison_grows(desk: Desk) -> None:
    desk.call(*TINY)
    ran, code = desk.call("-d", "7", "--seeds", "2", "--init", "byol", "-device", "cpu", "-np", "1")
    assert code == 0
    assert sum(line.startswith("pgl_pretrain") for line in ran) == 1
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 12 - 4
    assert len(studies[-1].runs) == 12
    assert "--tolerance: this comparison has 1.0, you gave 2.0" in desk.refused(*TINY, "--tolerance", "2")


def test_test_cases_are_excluded_by_file_too(desk: Desk) -> None:
    """A folder with a link to the images is the same scans under other names."""
    other = desk.root / "other"
    other.mkdir()
    for index in range(10):
        image = desk.root / "nnUNet_raw" / NAME / "imagesTr" / f"scan_{index}_0000.nii.gz"
        (other / f"patient{index}.nii.gz").symlink_to(image)
    desk.call(*TINY, "--pretrain_on", str(other), "--only", "prepare")
    test = (desk.folder / "test_cases.txt").read_text().split()
    assert (desk.folder / "exclude.txt").read_text().split() == [f"patient{case[-1]}" for case in test]


def test_nothing_to_exclude(desk: Desk) -> None:
    other = desk.root / "other"
    other.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(other / "patient.nii.gz"))
    ran, _ = desk.call(*TINY, "--pretrain_on", str(other))
    (pretraining,) = [line for line in ran if line.startswith("pgl_pretrain")]
    assert pretraining.startswith(f"pgl_pretrain -d {other} -o")
    assert "-exclude" not in pretraining


def test_a_pretraining_of_somebody_else_is_not_used(desk: Desk) -> None:
    final = desk.root / "nnUNet_results" / "PGL" / f"{NAME}_pgl" / "checkpoint_final.pth"
    final.parent.mkdir(parents=True)
    final.write_bytes(b"precious")
    ran, code = desk.call(*TINY)
    assert code == 1
    assert f"--checkpoint pgl={final}" in desk.output
    assert not [line for line in ran if "nnUNetPlans_pgl" in line or line.startswith("pgl_pretrain")]
    assert final.read_bytes() == b"precious"


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in root.rglob("*")
        if path.name != "journal"
    }


def test_dry_run_changes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(desk.root)
    assert desk.call(*TINY, "--dry_run") == ([], 0)
    assert tree(desk.root) == before
    assert desk.output.count("to do") == 1 + 1 + 4  # planning, pre-training, trainings
    assert "trainings: unknown before the data set is planned" in desk.output

    desk.call(*TINY, broken="nnUNetPlans_random_50pct_seed0")
    before = tree(desk.root)
    monkeypatch.setattr(
        "pretraining.comparison.dry_run.seconds_of",
        lambda _, run: 60.0 if (run.init, run.seed) == ("pgl", 0) else None,
    )
    assert desk.call(*TINY, "--dry_run", "--seeds", "2") == ([], 0)
    assert tree(desk.root) == before
    lines = [line.split() for line in desk.output.splitlines()]
    assert ["random_50pct_fold0_seed0", "2", "to", "do"] in lines
    assert ["pgl_100pct_fold0_seed0", "5", "done"] in lines
    assert "trainings: 5 min for the 5 left, 60 s each (training and prediction as measured in 2 fin" in desk.output
    assert "disk: 0.0 GB for the 5 left" in desk.output
    assert "NOT ENOUGH" not in desk.output

    monkeypatch.setattr("pretraining.comparison.dry_run._size_of", lambda *_: 2e9)
    free = shutil.disk_usage(desk.root)._replace(free=int(9e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    desk.call(*TINY, "--dry_run", "--seeds", "2")
    assert "disk: 10.0 GB for the 5 left, 2 GB each" in desk.output
    assert "9 GB are free: NOT ENOUGH" in desk.output


def test_an_estimate_separates_longer_trainings_from_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.call(*TINY)
    monkeypatch.setattr("pretraining.comparison.dry_run._size_of", lambda *_: 1e9)
    known = {"random": 60.0, "pgl": 60.0}
    monkeypatch.setattr("pretraining.comparison.dry_run.seconds_of", lambda _, run: known.get(run.init))
    more = (*TINY, "--init", "random", "pgl", "longer:pgl", "--dry_run", "--seeds", "2")
    desk.call(*more)
    assert "trainings: 4 min for the 4 left, 60 s each" in desk.output
    assert "longer:pgl: 4 left, each longer than a usual training: by what pre-training pgl computes" in desk.output
    assert "disk: 8.0 GB for the 8 left" in desk.output
    known["longer:pgl"] = 600.0
    desk.call(*more)
    assert "trainings: 4 min for the 4 left, 60 s each" in desk.output
    assert "longer:pgl: 40 min for the 4 left, 10 min each, as measured" in desk.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-device", "cpu"), "-d is missing"),
        (("-o", "nothing", "-device", "cpu"), "-d is missing: there is no comparison"),
        (("-d", "8", "-device", "cpu"), "dataset 8 does not exist"),
        ((*TINY, "-o", "a__b"), "-o 'a__b'"),
        ((*TINY, "-tr", "nnUNetTrainer"), "-tr nnUNetTrainer: cannot start from the checkpoints"),
        ((*TINY, "-tr", "nnUNetTrainerPGLScratch"), "-tr nnUNetTrainerPGLScratch: cannot start from the checkpoints"),
        ((*TINY, "-tr", "nnUNetTrainerPGX"), "-tr nnUNetTrainerPGX: nnU-Net finds no such trainer"),
        ((*TINY, "--part", "0", "2"), "add --only pretrain or --only train"),
        ((*TINY, "--only", "train", "--part", "2", "2"), "--part 2 2: I runs from 0 to N - 1"),
        ((*TINY, "--folds", "5"), "--folds 5: folds are 0 to 4"),
        ((*TINY, "--checkpoint", "pgl"), "--checkpoint 'pgl': give NAME=PATH"),
        ((*TINY, "--test_cases", "/none.txt"), "--test_cases /none.txt: cannot be read"),
        ((*TINY, "--only", "report"), "not prepared"),
        ((*TINY, "--dry_run", "--results", "a.csv"), "--results takes in runs, --dry_run and --slurm change none"),
        ((*TINY, "--slurm", "--results", "a.csv"), "--results takes in runs, --dry_run and --slurm change none"),
        ((*TINY, "--init", "pgl", "simclr"), "--init simclr: unknown"),
        ((*TINY, "--fractions", "0"), "-fractions 0: must be above 0 and at most 1"),
        ((*TINY, "--seeds", "0"), "-seeds 0: must be at least 1"),
    ],
)
def test_wrong_input_ends_in_one_line(desk: Desk, words: tuple[str, ...], message: str) -> None:
    before = tree(desk.root)
    assert message in desk.refused(*words)
    assert tree(desk.root) == before


def test_a_cascade_is_refused_before_anything_is_trained(desk: Desk) -> None:
    """Its previous stage would have to be trained for each of the runs."""
    configurations = {
        "3d_fullres": {"data_identifier": "data"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    folder = desk.root / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    plans = {"plans_name": "nnUNetPlans", "configurations": configurations}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for words in (TINY, (*TINY, "--dry_run")):
        line = desk.refused(*words, "-c", "3d_cascade_fullres")
        assert "-c 3d_cascade_fullres: needs the segmentations of 3d_lowres for each training" in line


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_missing_variables(desk: Desk, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    assert f"export {variable}=" in desk.refused(*TINY)


def test_one_dash_or_two_and_options_as_values(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    for dash in ("-", "--"):
        words = (f"{dash}init", "random", f"{dash}predict_options", "--disable_tta", f"{dash}o", f"name{len(dash)}")
        _, code = desk.call("-d", "7", "-device", "cpu", *words, "--only", "prepare")
        assert code == 0
    stored = [
        json.loads((desk.folder.parent / name / "settings.json").read_text())["predict_options"]
        for name in ("name1", "name2")
    ]
    assert stored == ["--disable_tta", "--disable_tta"]
    _, code = desk.call(*TINY, "--fraction", "0.5")  # no abbreviations
    assert code == 2


def test_without_a_gpu_what_needs_none_still_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("-d", "7", "--init", "random", "-np", "1")
    assert desk.refused(*words) == "pgl_compare: no CUDA device was found: add -device cpu (or mps)"
    ran, code = desk.call(*words, "--only", "prepare")
    assert (len(ran), code) == (1, 0)


def test_a_random_start_beside_encoders_of_two_kinds_is_announced(desk: Desk) -> None:
    words = ("-d", "7", "-device", "cpu", "--only", "prepare", "--init", "random", "pgl", "other")
    _, code = desk.call(*words, "--define", "other=-m pgl -norm batch")
    assert code == 0
    assert "the random start has that of pgl" in desk.output


@pytest.mark.parametrize(
    ("number", "listed", "doubt"),
    [
        (3, ("scan_1", "scan_2", "another"), None),
        (3, ("scan_1", "another", "one"), "test cases too"),
        (2, None, "perhaps on test cases"),
        (1, None, "test cases too"),
    ],
)
def test_a_checkpoint_that_has_seen_test_cases_is_announced(
    desk: Desk, number: int, listed: tuple[str, ...] | None, doubt: str | None
) -> None:
    names = desk.root / "test.txt"
    names.write_text("scan_1\nscan_2\n")
    architecture = {"name": "resnet50", "norm": "batch", "centred": True, "strides": [8, 8, 8], "in_channels": 1}
    pgl = {"architecture": architecture, "datasets": [NAME], "config": {"exclude": number}}
    save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1)}, pgl, {}), desk.root / "mine.pth")
    if listed is not None:
        (desk.root / "config.json").write_text(json.dumps(PretrainConfig((NAME,), exclude=listed).to_dict()))
    words = ("--init", "random", "mine", "--checkpoint", f"mine={desk.root / 'mine.pth'}", "--test_cases", str(names))
    ran, code = desk.call("-d", "7", "-device", "cpu", "--seeds", "1", "--fractions", "1", *words)
    assert code == 0
    assert not [line for line in ran if line.startswith("pgl_pretrain")]
    warned = dict(studies[-1].facts).get("Beware")
    if doubt is None:
        assert "WARNING" not in desk.output
        assert warned is None
    else:
        assert f"WARNING: {warned}" in desk.output
        assert f"pre-trained on {NAME}, {doubt}" in warned
