"""``pgl_compare``: which commands run, in which order, and what failures do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.comparison.study import reference_of
from tests.stand_in_commands import NAME, TINY, CompareCommand, studies

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")


def test_the_whole_in_order(compare: CompareCommand) -> None:
    ran, code = compare.call(*TINY, "--predict_options", "--disable_tta", "--pretrain_options", "-epochs 3")
    assert code == 0
    test = (compare.folder / "test_cases.txt").read_text().split()
    excluded = compare.folder / "exclude.txt"
    assert len(test) == 3
    assert excluded.read_text().split() == test
    assert ran[0].startswith("nnUNetv2_plan_and_preprocess -d 7 -c 3d_fullres")
    options = f"--paper -m pgl -norm instance -epochs 3 -exclude {excluded} -device cpu -np 1"
    assert ran[1] == f"pgl_pretrain -d {NAME} -o {NAME}_pgl {options}"
    plans = [f"nnUNetPlans_{init}_{percent}pct_seed0" for percent in (50, 100) for init in ("random", "pgl")]
    for plan, train, predict in zip(plans, ran[2::2], ran[3::2], strict=True):
        assert train == f"nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerPGL -p {plan} -device cpu"
        assert predict.startswith(f"nnUNetv2_predict -i {compare.folder / 'test_images'}")
        assert f"-p {plan} -device cpu" in predict
        assert predict.endswith("--disable_tta")
    assert {entry["PGL_CHECKPOINT"] for entry in compare.entries} == {None}
    extension, own = compare.entries[0]["nnUNet_extTrainer"].split(os.pathsep)
    assert Path(extension).name == "extension"
    assert own == str(compare.root)
    rows = compare.rows()
    assert len(rows) == 4 * 3
    assert {row["dice"] for row in rows} == {"1.0"}
    assert {row["case"] for row in rows} == set(test)
    images = sorted(image.name for image in (compare.folder / "test_images").iterdir())
    assert images == [f"{case}_0000.nii.gz" for case in test]
    study = studies[-1]
    assert (study.inits, study.reference, study.missing) == (("random", "pgl"), "pgl", ())
    assert len(study.runs) == 4
    assert all(run.prediction(case).is_file() for run in study.runs for case in test)


def test_called_again_it_only_reports(compare: CompareCommand) -> None:
    compare.call(*TINY)
    assert compare.call(*TINY) == ([], 0)
    assert compare.call("-o", NAME, "-device", "cpu") == ([], 0)  # settings are remembered


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


def test_it_goes_on_where_it_was_killed(compare: CompareCommand) -> None:
    """A pre-training and a training with a saved state, and a training that was done but not predicted."""
    compare.call(*TINY)
    results = compare.root / "nnUNet_results"
    (results / "PGL" / f"{NAME}_pgl" / "checkpoint_final.pth").rename(
        results / "PGL" / f"{NAME}_pgl" / "checkpoint_latest.pth"
    )
    model = results / NAME / "nnUNetTrainerPGL__nnUNetPlans_pgl_50pct_seed0__3d_fullres" / "fold_0"
    (model / "checkpoint_final.pth").rename(model / "checkpoint_latest.pth")
    for run in ("pgl_50pct_fold0_seed0", "random_100pct_fold0_seed0"):
        (compare.folder / "metrics" / f"{run}.csv").unlink()
    ran, code = compare.call(*TINY)
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
    assert len(compare.rows()) == 4 * 3
    seconds = {run.init + str(run.fraction): run.seconds for run in studies[-1].runs}
    assert seconds["pgl0.5"] is None  # taken up again: unknown
    assert seconds["random0.5"] is not None
    logs = sorted(file.name for file in (compare.folder / "logs" / "pgl_50pct_fold0_seed0").iterdir())
    assert logs[0] == "01_nnUNetv2_train.txt"  # that of the first time is kept
    assert "03_nnUNetv2_train.txt" in logs


def test_a_failed_run_stops_no_other(compare: CompareCommand) -> None:
    ran, code = compare.call(*TINY, broken="nnUNetPlans_random_50pct_seed0")
    assert code == 1
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 4
    assert "1 failed:" in compare.output
    log = compare.folder / "logs" / "random_50pct_fold0_seed0" / "01_nnUNetv2_train.txt"
    assert compare.output.rstrip().splitlines()[-1].endswith(str(log))
    assert "it broke" in log.read_text()
    assert studies[-1].missing == ("random_50pct_fold0_seed0",)
    ran, code = compare.call(*TINY)
    assert code == 0
    assert len(ran) == 2


def test_a_failed_pretraining_spares_the_other_starts(compare: CompareCommand) -> None:
    ran, code = compare.call(*TINY, broken="pgl_pretrain")
    assert code == 1
    assert not [line for line in ran if "nnUNetPlans_pgl" in line]
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 2
    assert "3 failed:" in compare.output
    assert "its pre-training is not done" in compare.output


def test_a_stopped_pretraining_stops_all(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a job's time limit: what comes next would only be cut off."""
    monkeypatch.setenv("BROKEN_CODE", "75")
    ran, code = compare.call(*TINY, broken="pgl_pretrain")
    assert code == 75
    assert ran[-1].startswith("pgl_pretrain")
    assert "FAILED" not in compare.output
    ran, code = compare.call(*TINY)
    assert code == 0
    assert ran[0].startswith("pgl_pretrain")


def test_everything_failed(compare: CompareCommand) -> None:
    _, code = compare.call(*TINY, broken="nnUNetv2_train")
    assert code == 1
    assert "4 failed:" in compare.output


def test_two_processes_share_the_trainings(compare: CompareCommand) -> None:
    assert "not prepared for these settings" in compare.refused(*TINY, "--only", "train", "--part", "0", "2")
    compare.call(*TINY, "--only", "prepare")
    compare.call(*TINY, "--only", "pretrain")
    first, _ = compare.call(*TINY, "--only", "train", "--part", "0", "2")
    second, _ = compare.call(*TINY, "--only", "train", "--part", "1", "2")
    trained = [line for line in first + second if line.startswith("nnUNetv2_train")]
    assert len(first) == len(second) == 4
    assert len(set(trained)) == 4
    assert compare.call(*TINY, "--only", "train") == ([], 0)


def test_a_comparison_grows(compare: CompareCommand) -> None:
    compare.call(*TINY)
    ran, code = compare.call("-d", "7", "--seeds", "2", "--init", "byol", "-device", "cpu", "-np", "1")
    assert code == 0
    assert sum(line.startswith("pgl_pretrain") for line in ran) == 1
    assert sum(line.startswith("nnUNetv2_train") for line in ran) == 12 - 4
    assert len(studies[-1].runs) == 12
    assert "--tolerance: this comparison has 1.0, you gave 2.0" in compare.refused(*TINY, "--tolerance", "2")


def test_test_cases_are_excluded_by_file_too(compare: CompareCommand) -> None:
    """A folder with a link to the images is the same scans under other names."""
    other = compare.root / "other"
    other.mkdir()
    for index in range(10):
        image = compare.root / "nnUNet_raw" / NAME / "imagesTr" / f"scan_{index}_0000.nii.gz"
        (other / f"patient{index}.nii.gz").symlink_to(image)
    compare.call(*TINY, "--pretrain_on", str(other), "--only", "prepare")
    test = (compare.folder / "test_cases.txt").read_text().split()
    assert (compare.folder / "exclude.txt").read_text().split() == [f"patient{case[-1]}" for case in test]


def test_nothing_to_exclude(compare: CompareCommand) -> None:
    other = compare.root / "other"
    other.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(other / "patient.nii.gz"))
    ran, _ = compare.call(*TINY, "--pretrain_on", str(other))
    (pretraining,) = [line for line in ran if line.startswith("pgl_pretrain")]
    assert pretraining.startswith(f"pgl_pretrain -d {other} -o")
    assert "-exclude" not in pretraining


@pytest.mark.parametrize("kind", ["final", "latest"])
def test_a_pretraining_of_somebody_else_is_not_used(compare: CompareCommand, kind: str) -> None:
    folder = compare.root / "nnUNet_results" / "PGL" / f"{NAME}_pgl"
    folder.mkdir(parents=True)
    (folder / f"checkpoint_{kind}.pth").write_bytes(b"precious")
    ran, code = compare.call(*TINY)
    assert code == 1
    assert f"--checkpoint pgl={folder / 'checkpoint_final.pth'}" in compare.output
    assert not [line for line in ran if "nnUNetPlans_pgl" in line or line.startswith("pgl_pretrain")]
    assert (folder / f"checkpoint_{kind}.pth").read_bytes() == b"precious"
