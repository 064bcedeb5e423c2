"""A small comparison with its results, images and predictions, as `pgl_compare` hands it to the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from pretraining.comparison.metrics import measure_case
from pretraining.comparison.results import COLUMNS
from pretraining.comparison.study import RunRecord, Study

Compared = tuple[pd.DataFrame, Study]
CLASSES: dict[str, Any] = {"head": 1, "whole": (1, 2)}
INITS = ("random", "byol", "pgl")
SPACING = (1.2, 1.1, 2.0)  # x, y, z
LOG = """
2026-01-01 00:00:00.000001: Epoch 0
2026-01-01 00:00:00.000001: Current learning rate: 0.01
2026-01-01 00:00:01.000001: train_loss 0.5
2026-01-01 00:00:01.000001: val_loss 20.5
2026-01-01 00:00:01.000001: Pseudo dice [np.float32(0.25), np.float32(nan)]
2026-01-01 00:00:01.000001: Epoch time: 1.0 s
2026-01-01 00:00:01.000001: Epoch 1
2026-01-01 00:00:02.000001: train_loss -0.25
2026-01-01 00:00:02.000001: val_loss -1e-05
2026-01-01 00:00:02.000001: Pseudo dice [0.5, 0.7]
"""


def write_image(voxels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))
    return path


def labels(shift: int) -> np.ndarray:
    voxels = np.zeros((8, 20, 16), np.uint8)
    voxels[2:6, 4 + shift : 12 + shift, 3:9] = 1
    voxels[2:6, 12 + shift : 16 + shift, 3:9] = 2
    return voxels


def run_of(root: Path, init: str, fraction: float, seed: int, cases: Sequence[str]) -> RunRecord:
    """Predictions that are worse, by the shift of a box, for random and for some cases."""
    folder = root / f"{init}_{fraction}_{seed}"
    for number, case in enumerate(cases):
        shift = 1 + (number % 3 == seed) + (number == 5)
        write_image(labels({"random": shift + 1, "byol": shift, "pgl": shift - 1}[init]), folder / f"{case}.nii.gz")
    log = folder / "training_log_2026.txt"
    log.write_text(LOG)
    return RunRecord(init, fraction, 0, seed, folder, ".nii.gz", log, 60.0 + seed)


def measured(run: RunRecord, study: Study) -> pd.DataFrame:
    where = dict(zip(COLUMNS, (run.init, run.fraction, round(40 * run.fraction), run.fold, run.seed), strict=False))
    of_cases = {
        case: measure_case(truth, run.prediction(case), study.classes, study.tolerance_mm)
        for case, truth in study.truths.items()
    }
    return pd.concat([of_case.assign(case=case, **where) for case, of_case in of_cases.items()])


def make_comparison(root: Path) -> Compared:
    """Results and description of three initialisations at two fractions, two seeds each."""
    cases = [f"case_{i}" for i in range(11)]
    noise = np.random.default_rng(0).normal(size=(8, 20, 16)).astype(np.float32)
    images = {case: write_image(noise + labels(0), root / "images" / f"{case}.nii.gz") for case in cases}
    truths = {case: write_image(labels(0), root / "truths" / f"{case}.nii.gz") for case in cases}
    write_image(np.where(labels(0) == 1, 0, labels(0)), truths["case_2"])  # without a head
    runs = [run_of(root, init, f, seed, cases) for init in INITS for f in (0.2, 1.0) for seed in range(2)]
    write_image(0 * labels(0), runs[0].prediction("case_4"))  # random at 20 %, seed 0 misses both classes
    study = Study(
        title="A <b>bold</b> | title",
        facts=(("Dataset", "Dataset001_A|B"), ("Trainer", "a * b <c>")),
        commands=("pgl_compare -d 1 > log",),
        inits=INITS,
        reference="pgl",
        tolerance_mm=1.5,
        runs=tuple(runs),
        missing=("pgl_50pct_fold0_seed7",),
        images=images,
        truths=truths,
        classes=CLASSES,
    )
    return pd.concat([measured(run, study) for run in runs], ignore_index=True)[list(COLUMNS)], study


def head_of(results: pd.DataFrame) -> dict[str, Any]:
    """A row of a head that is there."""
    row: dict[str, Any] = results.query("class_name == 'head' and truth_voxels > 0").iloc[0].to_dict()
    return row


def markdown_tables(text: str) -> list[list[list[str]]]:
    parts = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines()] for part in parts]
    return [[[cell.strip() for cell in row] for i, row in enumerate(table) if i != 1] for table in rows]
