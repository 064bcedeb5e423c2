"""A comparison through the real commands, from a raw dataset to the report."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk

from pretraining.comparison.metrics import measure_case
from pretraining.comparison.results import read_results
from pretraining.demo.datasets import write_labelled_dataset
from pretraining.demo.phantoms import LABELS

pytestmark = pytest.mark.slow

NAME = "Dataset502_Torso"
# A trainer of two iterations. Batch norms have seen too little by then for nnU-Net's half-precision sums, hence -norm.
TRAINER = """
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from nnunetv2_pgl.trainers.variants import with_length

short = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "initial_lr": 1e-5}
nnUNetTrainerPGL_twoSteps = with_length(nnUNetTrainerPGL, "twoSteps", **short)
nnUNetTrainerPGL_twoSteps.__module__ = __name__
"""
PRETRAIN = "-patch 6 12 16 -epochs 1 -b 2 -pairs 2 -optimizer adamw -lr 1e-4 -norm instance"
COMPARE = (
    "-d",
    "502",
    "--init",
    "random",
    "pgl",
    "--fractions",
    "0.5",
    "--seeds",
    "1",
    "-tr",
    "nnUNetTrainerPGL_twoSteps",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("compare")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "trainers"):
        (root / name).mkdir()
    (root / "trainers" / "two_steps.py").write_text(TRAINER)
    write_labelled_dataset(root / "nnUNet_raw", 502, "Torso", 8, 0, 0, shape=(8, 12, 16), spacing=(36, 26, 24))
    yield root
    shutil.rmtree(root)  # gigabytes of checkpoints


def compare(root: Path, *words: str) -> str:
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    few = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_extTrainer": str(root / "trainers")}
    code = "from pretraining.comparison.command import compare_entry; compare_entry()"
    result = subprocess.run(
        [sys.executable, "-c", code, *COMPARE, "--pretrain_options", PRETRAIN, "-device", "cpu", "-np", "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **folders, **few},
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def output(root: Path) -> str:
    return compare(root, "--predict_options", "--disable_tta")


def model(root: Path, init: str) -> Path:
    plans = f"nnUNetPlans_{init}_50pct_seed0"
    return root / "nnUNet_results" / NAME / f"nnUNetTrainerPGL_twoSteps__{plans}__3d_fullres" / "fold_0"


def test_what_is_measured_is_what_was_predicted(root: Path, output: str) -> None:
    folder = root / "nnUNet_results" / "PGL_compare" / NAME
    test = (folder / "test_cases.txt").read_text().split()
    with (folder / "results.csv").open() as file:
        rows = {(row["init"], row["case"], row["class_name"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * len(test) * len(LABELS)
    labels = root / "nnUNet_raw" / NAME / "labelsTr"
    for init in ("random", "pgl"):
        for case in test:
            prediction = folder / "predictions" / f"{init}_50pct_fold0_seed0" / f"{case}.nii.gz"
            truth = labels / f"{case}.nii.gz"
            assert sitk.ReadImage(str(prediction)).GetSize() == sitk.ReadImage(str(truth)).GetSize()
            for metrics in measure_case(truth, prediction, LABELS, 1.0).itertuples():
                row = rows[init, case, metrics.class_name]
                assert (row["dice"], row["hd"]) == (repr(metrics.dice), repr(metrics.hd))


def test_nobody_has_seen_the_test_cases(root: Path, output: str) -> None:
    results = root / "nnUNet_results"
    test = set((results / "PGL_compare" / NAME / "test_cases.txt").read_text().split())
    config = json.loads((results / "PGL" / f"{NAME}_pgl" / "config.json").read_text())
    assert set(config["exclude"]) == test
    volumes = {path.stem for path in (root / "nnUNet_preprocessed" / NAME).glob("PGL*/**/*.json")}
    assert volumes
    assert not volumes & test
    for init in ("random", "pgl"):
        plans = json.loads((model(root, init).parent / "plans.json").read_text())
        cases = plans["pgl_run"]["folds"]["0"]
        assert not test & {*cases["training_cases"], *cases["validation_cases"]}
        validated = {file.name.removesuffix(".nii.gz") for file in (model(root, init) / "validation").glob("*.nii.gz")}
        assert validated == set(cases["validation_cases"])


def test_each_start_is_what_it_says(root: Path, output: str) -> None:
    logs = {init: next(model(root, init).glob("training_log*.txt")).read_text() for init in ("random", "pgl")}
    assert "start from random weights" in logs["random"]
    assert "Starting from the encoder" not in logs["random"]
    final = root / "nnUNet_results" / "PGL" / f"{NAME}_pgl" / "checkpoint_final.pth"
    assert f"Starting from the encoder {final} (named by the plans" in logs["pgl"]


def test_the_report_is_there(root: Path, output: str) -> None:
    folder = root / "nnUNet_results" / "PGL_compare" / NAME
    assert len(read_results(folder / "results.csv")) > 0
    for name in ("report.md", "report.html"):
        assert str(folder / name) in output
        assert "random" in (folder / name).read_text(encoding="utf-8")


def test_again_there_is_nothing_to_do(root: Path, output: str) -> None:
    assert "\n$ " in output
    assert "\n$ " not in compare(root)


def test_an_estimate_before_the_first_run(root: Path, output: str) -> None:
    before = sorted(map(str, root.rglob("*")))
    text = compare(root, "-o", "other", "--dry_run")
    assert sorted(map(str, root.rglob("*"))) == before
    assert "Planning and preprocessing: done" in text
    assert "1 epochs of 2 steps of" in text
    assert "timed now on cpu" in text
    estimate = re.search(r"disk: .* for the 2 left, (\S+) GB each", text)
    assert estimate is not None
    saved = sum(file.stat().st_size for file in model(root, "random").glob("checkpoint_*.pth"))
    assert float(estimate[1]) == pytest.approx(saved / 1e9, rel=0.05)


def test_controls_are_trained_beside_the_others(root: Path, output: str) -> None:
    folder = root / "nnUNet_results" / "PGL_compare" / NAME
    compare(root, "--init", "random", "pgl", "shuffled:pgl", "longer:pgl")
    assert set(read_results(folder / "results.csv")["init"]) == {"random", "pgl", "shuffled:pgl", "longer:pgl"}
    logs = {
        init: next(model(root, init).glob("training_log*.txt")).read_text() for init in ("shuffled-pgl", "longer-pgl")
    }
    assert f"Starting from the encoder {folder / 'derived' / 'shuffled-pgl.pth'}" in logs["shuffled-pgl"]
    record = json.loads((folder / "derived" / "longer-pgl.json").read_text())
    assert f"start from random weights, {record['extra_epochs']} epochs longer" in logs["longer-pgl"]
    assert len(re.findall(r": Epoch \d+", logs["longer-pgl"])) == 1 + record["extra_epochs"]
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert f"| longer:pgl | {record['extra_epochs']} epochs longer" in report
    assert "shuffled:NAME: the encoder of NAME" in report
