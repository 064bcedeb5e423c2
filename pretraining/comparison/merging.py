"""Results of runs that were done elsewhere: on another machine, or before the models were deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.files import ComparisonFolder
from pretraining.comparison.results import ROW, RUN, read_results, write_results
from pretraining.comparison.runs import TrainingRun, number_of_training_cases, training_runs
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Splits

_MUST_MATCH = ("trainer", "configuration", "plans", "definitions", "pretrain_options", "predict_options", "tolerance")


def add_results(comparison: Comparison, files: Sequence[Path]) -> int:
    """Adds the runs that tables like ``results.csv`` hold; returns how many were new.

    A run counts as done then: it is not trained again. Nothing is written unless all files can be used. Where
    settings.json and splits.json of the other comparison lie beside a table, they must say the same as here; the table
    itself does not contain trainer, plans, tolerance and training cases.

    Raises:
        PGLError: A file is not such a table, has a run that the comparison has not, lacks test cases or classes, has
            other values than those stored, or was made with other settings.
    """
    for file in files:
        _require_same_settings(comparison, file.parent)
    found: dict[TrainingRun, pd.DataFrame] = {}
    for file in files:
        for key, rows in read_results(file).groupby(RUN, sort=False):
            run = TrainingRun(*key)
            _require_complete(comparison, run, rows, file)
            if not _same(rows, found.setdefault(run, rows)):
                raise PGLError(f"{file}: {run.name} has other values than in another file; give one of them")
    new = {}
    for run, rows in found.items():
        metrics = comparison.folder.metrics(run.name)
        if not metrics.is_file():
            new[metrics] = rows
        elif not _same(rows, read_results(metrics)):
            raise PGLError(f"{run.name}: {metrics} has other values than the table given; remove one of them")
    for metrics, rows in new.items():
        write_results(rows, metrics)
    return len(new)


def _require_same_settings(comparison: Comparison, folder: Path) -> None:
    other = ComparisonFolder(folder)
    if other.settings.is_file():
        settings = ComparisonSettings.load(other.settings)
        for name in _MUST_MATCH:
            ours, theirs = getattr(comparison.settings, name), getattr(settings, name)
            if name == "definitions":  # one of the two may have grown
                ours, theirs = ({init: both[init] for init in ours.keys() & theirs.keys()} for both in (ours, theirs))
            if ours != theirs:
                raise PGLError(f"{other.settings}: {name} is {theirs!r} there, here it is {ours!r}")
    if other.splits.is_file():
        splits = Splits.load(other.splits)
        pairs = zip(comparison.splits.folds, splits.folds, strict=False)
        orders = (zip(ours.training_by_seed, theirs.training_by_seed, strict=False) for ours, theirs in pairs)
        if splits.test != comparison.splits.test or any(a != b for of_fold in orders for a, b in of_fold):
            raise PGLError(f"{other.splits}: its cases are divided differently")


def _require_complete(comparison: Comparison, run: TrainingRun, rows: pd.DataFrame, file: Path) -> None:
    if run not in training_runs(comparison.settings):
        raise PGLError(f"{file}: {run.name} is not a run of this comparison; check --init, --fractions and --seeds")
    wanted = {(case, name) for case in comparison.splits.test for name in comparison.dataset.classes}
    there = set(zip(rows["case"], rows["class_name"], strict=True))
    if there != wanted:
        case, name = min(there ^ wanted)
        problem = "lacks" if (case, name) in wanted else "has"
        raise PGLError(f"{file}: {run.name} {problem} {name} of case {case}: is it of another test set?")
    cases = number_of_training_cases(comparison, run)
    if set(rows["training_cases"]) != {cases}:
        trained_on = rows["training_cases"].iloc[0]
        raise PGLError(f"{file}: {run.name} was trained on {trained_on} cases, here it is {cases}")


def _same(rows: pd.DataFrame, others: pd.DataFrame) -> bool:
    """Whether two tables hold the same rows, in whatever order."""
    return rows.sort_values(ROW, ignore_index=True).equals(others.sort_values(ROW, ignore_index=True))
