"""Results of runs that were done elsewhere: on another machine, or before the models were deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pretraining.comparison.comparison import Comparison
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import ComparisonFolder
from pretraining.comparison.results import CaseResult, read_results, write_results
from pretraining.comparison.runs import TrainingRun
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Splits

_DECISIVE = ("trainer", "configuration", "plans", "definitions", "pretrain_options", "predict_options", "tolerance")


def add_results(comparison: Comparison, files: Sequence[Path]) -> int:
    """Takes in the runs that tables like ``results.csv`` hold; returns how many were new.

    A run counts as done then: it is not trained again. Nothing is written unless all files can be used. Where
    settings.json and splits.json of the other comparison lie beside a table, they must say the same as here; the table
    itself does not tell trainer, plans, tolerance and training cases.

    Raises:
        ComparisonError: A file is no such table, has a run that the comparison has not, not all its test cases and
            classes, or other values than are there; or it was made with other settings.
    """
    for file in files:
        _require_same_settings(comparison, file.parent)
    found: dict[TrainingRun, list[CaseResult]] = {}
    for file in files:
        for run, rows in _by_run(read_results(file)).items():
            _require_whole(comparison, run, rows, file)
            if not _same(rows, found.setdefault(run, rows)):
                raise ComparisonError(f"{file}: {run.name} has other values than in another file; give one of them")
    new = []
    for run, rows in found.items():
        metrics = comparison.folder.metrics(run.name)
        if not metrics.is_file():
            new.append(run)
        elif not _same(rows, read_results(metrics)):
            raise ComparisonError(f"{run.name}: {metrics} has other values than the table given; remove one of them")
    for run in new:
        write_results(found[run], comparison.folder.metrics(run.name))
    return len(new)


def _require_same_settings(comparison: Comparison, folder: Path) -> None:
    other = ComparisonFolder(folder)
    if other.settings.is_file():
        settings = ComparisonSettings.load(other.settings)
        for name in _DECISIVE:
            ours, theirs = getattr(comparison.settings, name), getattr(settings, name)
            if name == "definitions":  # one of the two may have grown
                ours, theirs = ({init: both[init] for init in ours.keys() & theirs.keys()} for both in (ours, theirs))
            if ours != theirs:
                raise ComparisonError(f"{other.settings}: {name} is {theirs!r} there, here it is {ours!r}")
    if other.splits.is_file():
        splits = Splits.load(other.splits)
        pairs = zip(comparison.splits.folds, splits.folds, strict=False)
        same = all(a == b for ours, theirs in pairs for a, b in zip(ours.orders, theirs.orders, strict=False))
        if not same or splits.test != comparison.splits.test:
            raise ComparisonError(f"{other.splits}: the cases are divided otherwise there")


def _by_run(rows: Sequence[CaseResult]) -> dict[TrainingRun, list[CaseResult]]:
    runs: dict[TrainingRun, list[CaseResult]] = {}
    for row in rows:
        runs.setdefault(TrainingRun(row.init, row.fraction, row.fold, row.seed), []).append(row)
    return runs


def _require_whole(comparison: Comparison, run: TrainingRun, rows: Sequence[CaseResult], file: Path) -> None:
    if run not in comparison.runs:
        raise ComparisonError(f"{file}: {run.name} is no run of this comparison; check --init, --fractions and --seeds")
    wanted = {(case, name) for case in comparison.splits.test for name in comparison.dataset.classes}
    there = {(row.case, row.class_name) for row in rows}
    if there != wanted:
        case, name = sorted(there ^ wanted)[0]
        raise ComparisonError(
            f"{file}: {run.name} {'lacks' if (case, name) in wanted else 'has'} {name} of case {case}: is it of "
            "another test set?"
        )
    cases = len(comparison.splits.folds[run.fold].training(run.fraction, run.seed))
    if {row.training_cases for row in rows} != {cases}:
        raise ComparisonError(f"{file}: {run.name} was trained on {rows[0].training_cases} cases, here it is {cases}")


def _same(rows: Sequence[CaseResult], others: Sequence[CaseResult]) -> bool:
    """Whether two tables hold the same, in whatever order (nan is not equal to itself, its text is)."""
    return sorted(map(repr, rows)) == sorted(map(repr, others))
