"""What a report describes besides the results: data, settings, commands, and the runs with their files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nnunetv2_pgl.environment import versions
from nnunetv2_pgl.trainers.plans import RANDOM
from pretraining.comparison.comparison import Comparison, find_trainer
from pretraining.comparison.derived import LONGER
from pretraining.comparison.execution import prediction_command, pretraining_command, training_command
from pretraining.comparison.files import read_json
from pretraining.comparison.runs import TrainingRun, model_folder, training_runs
from pretraining.comparison.settings import ComparisonSettings
from pretraining.option_fields import flag_of, spelled

_REFERENCES = ("pgl_nce", "pgl")  # what the others are tested against: the first that is compared


@dataclass(frozen=True)
class RunRecord(TrainingRun):
    """A run that is done.

    Attributes:
        predictions: Folder of the predicted segmentations, named as the cases.
        file_ending: Of these files.
        training_log: nnU-Net's last log of the training; earlier ones, of a training that was continued, lie beside
            it. None: there is none.
        seconds: Time it took; None: unknown.
    """

    predictions: Path
    file_ending: str
    training_log: Path | None
    seconds: float | None

    def prediction(self, case: str) -> Path:
        """File of the segmentation of a case."""
        return self.predictions / f"{case}{self.file_ending}"


@dataclass(frozen=True)
class Study:
    """What was compared, and how.

    Attributes:
        title: Of the report.
        facts: Name and value: datasets, folds, schedule and the like.
        commands: That reproduce the comparison.
        inits: In the order of the tables; the baseline "random" first where it is there.
        reference: The initialisation that the others are tested against.
        tolerance_mm: Of the surface Dice.
        runs: Those that are done.
        missing: Runs that are not done yet, by name.
        images: First channel of each test case.
        truths: Truth of each test case.
        classes: Label, or labels, of each class, in the order of the tables.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    inits: tuple[str, ...]
    reference: str
    tolerance_mm: float
    runs: tuple[RunRecord, ...]
    missing: tuple[str, ...]
    images: Mapping[str, Path]
    truths: Mapping[str, Path]
    classes: Mapping[str, int | tuple[int, ...]]


def describe_comparison(comparison: Comparison) -> Study:
    """The description of a comparison."""
    settings, dataset, test = comparison.settings, comparison.dataset, comparison.splits.test
    runs = training_runs(settings)
    done = [run for run in runs if comparison.folder.metrics(run.name).is_file()]
    inits = sorted(settings.inits, key=lambda name: name != RANDOM)
    commands = [pretraining_command(comparison, init) for init in comparison.inits if init.options]
    commands += [training_command(comparison, runs[0]), prediction_command(comparison, runs[0])]  # of the first run
    return Study(
        title=f"{comparison.folder.name}: {', '.join(inits)}",
        facts=_facts(comparison),
        commands=tuple(map(shlex.join, [_compare_command(comparison), *commands])),
        inits=tuple(inits),
        reference=reference_of(inits),
        tolerance_mm=settings.tolerance,
        runs=tuple(_record(comparison, run) for run in done),
        missing=tuple(run.name for run in runs if run not in done),
        images={case: dataset.case(case).images[0] for case in test},
        truths={case: dataset.case(case).label for case in test},
        classes=dataset.classes,
    )


def reference_of(inits: Sequence[str]) -> str:
    """The recommended method if it is compared, else the last pre-training that is not derived from another one."""
    own = [name for name in inits if ":" not in name and name != RANDOM]
    return next((name for name in _REFERENCES if name in own), own[-1] if own else RANDOM)


def _record(comparison: Comparison, run: TrainingRun) -> RunRecord:
    predictions, times = comparison.folder.predictions(run.name), comparison.folder.seconds(run.name)
    logs = sorted(model_folder(comparison, run).glob("training_log_*.txt"))
    seconds = read_json(times).get("seconds") if times.is_file() else None
    return RunRecord(
        **asdict(run),
        predictions=predictions,
        file_ending=comparison.dataset.file_ending,
        training_log=logs[-1] if logs else None,
        seconds=float(sum(seconds.values())) if seconds else None,
    )


def _compare_command(comparison: Comparison) -> list[str]:
    """The command that makes this comparison again, with every setting that is not a default."""
    settings = comparison.settings
    default = ComparisonSettings(settings.dataset, (settings.dataset,))
    command = ["pgl_compare", "-d", settings.dataset_id]
    if comparison.folder.name != settings.dataset:
        command += ["-o", comparison.folder.name]
    for of in fields(settings):
        value = getattr(settings, of.name)
        if of.name == "test_cases" and value is not None:
            value = str(comparison.folder.test_cases)
        if value != getattr(default, of.name):
            if isinstance(value, dict):
                value = tuple(f"{key}={text}" for key, text in value.items())
            command += [flag_of(of), *(spelled(v) for v in (value if isinstance(value, tuple) else (value,)))]
    return [*command, "-device", comparison.device]


def _facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    settings, splits = comparison.settings, comparison.splits
    folds = [splits.folds[fold] for fold in settings.folds]
    sizes = [f"{len(fold.training_by_seed[0])} / {len(fold.validation)}" for fold in folds]
    excluded = comparison.folder.excluded.read_text(encoding="utf-8").split()
    fractions = ", ".join(f"{100 * fraction:g} %" for fraction in settings.fractions)
    summary = (find_trainer(settings.trainer).__doc__ or "").replace("`", "").strip().partition("\n")[0]
    options = settings.predict_options
    planned = [case for case in splits.test if case in comparison.dataset.training]
    # nnU-Net's fingerprint, and so spacing, patch and intensities of the plans, is of all of imagesTr.
    planned_from = (
        f"nnU-Net planned from all of imagesTr, {len(planned)} of the test cases among them: their sizes, spacings and "
        "intensities (of CT inside their labels) are in the plans, alike for all"
        if planned
        else "The test cases had no part in the planning."
    )
    longer = []  # by how much the trainings of equal computation are
    for init in comparison.inits:
        record = comparison.folder.derived(init.name, "json")
        if init.kind == LONGER and init.source and record.is_file():
            found = read_json(record)
            text = (
                f"{found['extra_epochs']} epochs longer: {found['training_epoch_flop'] / 1e12:.3g} TFLOP an epoch, the "
                f"pre-training of {init.source.name} took {found['pretraining_flop'] / 1e12:.4g}"
            )
            longer.append((init.name, text))
    return (
        ("Dataset", settings.dataset),
        ("Pre-training on", f"{', '.join(settings.pretrain_on)}, without the test cases ({len(excluded)} left out)"),
        ("Test cases", f"{len(splits.test)}: {splits.test_from}"),
        ("Folds", f"{', '.join(map(str, settings.folds))} of {splits.folds_from}"),
        ("Training / validation cases", "; ".join(sizes)),
        ("Fractions", f"{fractions}; the cases of a smaller one are among those of a larger one"),
        ("Repetitions", f"seeds 0 to {settings.seeds - 1}: which cases a fraction has, weights, batches"),
        ("Trainer", f"{settings.trainer}: {summary}"),
        ("Plans", f"{settings.plans}, {settings.configuration}, the same for all inits. {planned_from}"),
        ("Prediction", f"nnU-Net, options {options}" if options else "nnU-Net, its defaults"),
        ("Device", comparison.device),
        *longer,
        *(("Warning", warning) for warning in comparison.warnings),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    )
