"""Hands the results to the report, with what it tells about how they were made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_pgl.environment import versions
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import LONGER
from pretraining.comparison.execution import prediction_command, pretraining_command, seconds_of, training_command
from pretraining.comparison.folder import read_json
from pretraining.comparison.report import write_report
from pretraining.comparison.results import CaseResult
from pretraining.comparison.runs import TrainingRun, model_folder
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.story import BASELINE, RunRecord, Story
from pretraining.comparison.trainer import find_trainer

_REFERENCES = ("pgl_nce", "pgl")  # what the others are tested against: the first that is compared


def report(comparison: Comparison, results: Sequence[CaseResult]) -> list[Path]:
    """Writes the report; returns its files."""
    return write_report(results, _story(comparison), comparison.folder.path)


def compare_command(comparison: Comparison) -> list[str]:
    """The command that makes this comparison anew, with every setting that is not a default."""
    settings = comparison.settings
    default = ComparisonSettings(settings.dataset, (settings.dataset,))
    command = ["pgl_compare", "-d", settings.dataset_id]
    if comparison.folder.name != settings.dataset:
        command += ["-o", comparison.folder.name]
    options = {"pretrain_on": "--pretrain_on", "inits": "--init", "fractions": "--fractions", "folds": "--folds"}
    options |= {"seeds": "--seeds", "trainer": "-tr", "configuration": "-c", "plans": "-p", "tolerance": "--tolerance"}
    options |= {"checkpoints": "--checkpoint", "definitions": "--define", "pretrain_options": "--pretrain_options"}
    options |= {"predict_options": "--predict_options", "test_fraction": "--test_fraction"}
    options |= {"max_validation": "--max_validation"}
    for name, option in options.items():
        value = getattr(settings, name)
        if value != getattr(default, name):
            command += [option, *_words(value)]
    if settings.test_cases is not None:
        command += ["--test_cases", str(comparison.folder.test_cases)]
    return [*command, "-device", comparison.device]


def _words(value: object) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}={text}" for key, text in value.items()]
    if isinstance(value, tuple):
        return [f"{item:g}" if isinstance(item, float) else str(item) for item in value]
    return [f"{value:g}" if isinstance(value, float) else str(value)]


def _story(comparison: Comparison) -> Story:
    settings, splits, dataset = comparison.settings, comparison.splits, comparison.dataset
    done = [run for run in comparison.runs if comparison.folder.metrics(run.name).is_file()]
    baseline = [name for name in settings.inits if name == BASELINE]
    others = [name for name in settings.inits if name != BASELINE]
    return Story(
        title=f"{comparison.folder.name}: {', '.join([*baseline, *others])}",
        facts=_facts(comparison),
        commands=_commands(comparison),
        inits=(*baseline, *others),
        reference=_reference(others),
        tolerance_mm=settings.tolerance,
        runs=tuple(_record(comparison, run) for run in done),
        missing=tuple(run.name for run in comparison.runs if run not in done),
        images={case: dataset.case(case).images[0] for case in splits.test},
        truths={case: dataset.case(case).label for case in splits.test},
        classes=dataset.classes,
    )


def _reference(others: Sequence[str]) -> str:
    """The recommended method if it is compared, else the last with a pre-training; what is made from one is none."""
    own = [name for name in others if ":" not in name]
    return next((name for name in _REFERENCES if name in own), own[-1] if own else BASELINE)


def _record(comparison: Comparison, run: TrainingRun) -> RunRecord:
    logs = sorted(model_folder(comparison.folder, comparison.settings, run).glob("training_log_*.txt"))
    return RunRecord(
        run.init,
        run.fraction,
        run.fold,
        run.seed,
        comparison.folder.predictions(run.name),
        comparison.dataset.file_ending,
        logs[-1] if logs else None,
        seconds_of(comparison, run),
    )


def _facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    settings, splits = comparison.settings, comparison.splits
    folds = [splits.folds[fold] for fold in settings.folds]
    sizes = [f"{len(fold.orders[0])} / {len(fold.validation)}" for fold in folds]
    excluded = comparison.folder.excluded.read_text(encoding="utf-8").split()
    summary = (find_trainer(settings.trainer).__doc__ or "").replace("`", "").strip().splitlines()
    return (
        ("Data set", settings.dataset),
        ("Pre-training on", f"{', '.join(settings.pretrain_on)}, without the test cases ({len(excluded)} left out)"),
        ("Test cases", f"{len(splits.test)}: {splits.test_from}"),
        ("Folds", f"{', '.join(map(str, settings.folds))} of {splits.folds_from}"),
        ("Training / validation cases", "; ".join(sizes)),
        ("Fractions", f"{_listed(settings.fractions)}; the cases of a smaller one are among those of a larger one"),
        ("Repetitions", f"seeds 0 to {settings.seeds - 1}: which cases a fraction has, weights, batches"),
        ("Trainer", f"{settings.trainer}: {summary[0] if summary else ''}"),
        (
            "Plans",
            f"{settings.plans}, {settings.configuration}, the same for all inits. {_planned_from(comparison)}",
        ),
        (
            "Prediction",
            f"nnU-Net, options {settings.predict_options}" if settings.predict_options else "nnU-Net, its defaults",
        ),
        ("Device", comparison.device),
        *_lengths(comparison),
        *(("Beware", warning) for warning in comparison.warnings),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    )


def _lengths(comparison: Comparison) -> list[tuple[str, str]]:
    """How much longer the trainings of equal computation are."""
    lines = []
    for init in comparison.inits:
        record = comparison.folder.derived(init.file_name, "json")
        if init.kind == LONGER and init.source and record.is_file():
            found = read_json(record)
            text = (
                f"{found['extra_epochs']} epochs longer: {found['training_epoch_flop'] / 1e12:.3g} TFLOP an epoch, the "
                f"pre-training of {init.source.name} took {found['pretraining_flop'] / 1e12:.4g}"
            )
            lines.append((init.name, text))
    return lines


def _planned_from(comparison: Comparison) -> str:
    """nnU-Net's fingerprint, and so spacing, patch and intensities of the plans, is of all of imagesTr."""
    planned = [case for case in comparison.splits.test if case in comparison.dataset.training]
    if not planned:
        return "The test cases had no part in the planning."
    return (
        f"nnU-Net planned from all of imagesTr, {len(planned)} of the test cases among them: their sizes, spacings and "
        "intensities (of CT inside their labels) are in the plans, alike for all"
    )


def _listed(fractions: Sequence[float]) -> str:
    return ", ".join(f"{100 * fraction:g} %" for fraction in fractions)


def _commands(comparison: Comparison) -> tuple[str, ...]:
    """The command of the comparison, and those that it runs: the pre-trainings and, for example, the first training."""
    inner = [pretraining_command(comparison, init) for init in comparison.inits if init.options]
    first = comparison.runs[0]
    inner += [training_command(comparison, first), prediction_command(comparison, first)]
    return tuple(shlex.join(command) for command in [compare_command(comparison), *inner])
