"""The steps of a comparison, all of them through the installed commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict

from nnunetv2_pgl.checkpoint import CheckpointError
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import (
    DECODER,
    LONGER,
    SHUFFLED,
    extra_epochs,
    require_decoder,
    write_shuffled,
)
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import read_json, write_json
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.metrics import measure_case
from pretraining.comparison.plan_files import plans_of_run, write_plans
from pretraining.comparison.results import CaseResult, read_results, write_results
from pretraining.comparison.runs import (
    State,
    TrainingRun,
    model_folder,
    plans_name,
    state_of_pretraining,
    state_of_training,
)
from pretraining.comparison.timing import random_trainer
from pretraining.launching.commands import CommandError, CommandStopped
from pretraining.training.run_folder import RunError

Failures = dict[str, str]
_MOST_PREDICTION_PROCESSES = 3  # nnU-Net's default


def pretrain_all(comparison: Comparison, inits: Sequence[Initialisation]) -> Failures:
    """Runs the pre-trainings that are not done; returns those that failed and why.

    Raises:
        CommandStopped: A signal has ended one; those to come are left for the next call.
    """
    failures: Failures = {}
    for init in inits:
        if not _is_needed(comparison, init):
            continue
        try:
            if not (_is_own(comparison, init) and state_of_pretraining(comparison.folder, init) is State.DONE):
                _pretrain(comparison, init)
        except CommandStopped:
            raise
        except (CommandError, ComparisonError, RunError) as error:
            failures[f"pre-training {init.name}"] = str(error)
            print(f"FAILED: {error}", flush=True)
    return failures


def _is_needed(comparison: Comparison, init: Initialisation) -> bool:
    """Whether a run is left that starts from it, or from one made from it."""
    folder, settings = comparison.folder, comparison.settings
    names = {other.name for other in comparison.inits if init in (other, other.source)}
    runs = [run for run in comparison.runs if run.init in names]
    return any(state_of_training(folder, settings, run) is not State.DONE for run in runs)


def train_all(comparison: Comparison, runs: Sequence[TrainingRun]) -> Failures:
    """Trains, predicts and measures what is not done; returns what failed and why."""
    failures: Failures = {}
    for number, run in enumerate(runs, start=1):
        if state_of_training(comparison.folder, comparison.settings, run) is State.DONE:
            continue
        print(f"\n=== {run.name} ({number} of {len(runs)}) ===", flush=True)
        try:
            _train(comparison, run)
        except (CheckpointError, CommandError, ComparisonError, OSError) as error:
            failures[run.name] = str(error)
            print(f"FAILED: {error}", flush=True)
    return failures


def pretraining_command(comparison: Comparison, init: Initialisation) -> list[str]:
    """The command of a pre-training, without ``--c``."""
    folder, settings = comparison.folder, comparison.settings
    command = ["pgl_pretrain", "-d", *settings.pretrain_on, "-o", init.run_folder(folder).path.name, *init.options]
    if folder.excluded.is_file() and folder.excluded.read_text(encoding="utf-8").strip():
        command += ["-exclude", str(folder.excluded)]
    return command


def _pretrain(comparison: Comparison, init: Initialisation) -> None:
    command = pretraining_command(comparison, init)
    record = comparison.folder.pretraining(init.name)
    resumed = _is_own(comparison, init) and state_of_pretraining(comparison.folder, init) is State.TO_CONTINUE
    write_json(record, {"command": shlex.join(command)})
    on_device = ["-device", comparison.device, "-np", str(comparison.processes), *(["--c"] if resumed else [])]
    begin = time.monotonic()
    comparison.runner(f"pretrain_{init.name}").run([*command, *on_device])
    seconds = None if resumed else time.monotonic() - begin
    write_json(record, {"command": shlex.join(command), "seconds": seconds})


def _is_own(comparison: Comparison, init: Initialisation) -> bool:
    """Whether the pre-training that is there was started by this comparison; True also if there is none to run.

    Raises:
        ComparisonError: There is one of the same name that was not.
    """
    if not init.options:
        return True
    run_folder = init.run_folder(comparison.folder)
    started = comparison.folder.pretraining(init.name).is_file()
    if not started and (run_folder.final.exists() or run_folder.latest.exists()):
        raise ComparisonError(
            f"{run_folder.path} holds a pre-training that this comparison did not start; to use it, start another "
            f"comparison with --checkpoint {init.name}={run_folder.final}"
        )
    return started


def _train(comparison: Comparison, run: TrainingRun) -> None:
    """One training, its prediction and its metrics."""
    folder, settings = comparison.folder, comparison.settings
    _require_checkpoint(comparison, run)
    longer = _make_derived(comparison, run)
    write_plans(settings, plans_of_run(folder, settings, comparison.splits, comparison.inits, run, longer))
    runner = comparison.runner(run.name)
    model = model_folder(folder, settings, run)
    begin, whole = time.monotonic(), state_of_training(folder, settings, run) is State.TO_DO
    if not (model / "checkpoint_final.pth").is_file():
        resumed = ["--c"] if (model / "checkpoint_latest.pth").is_file() else []
        runner.run([*training_command(comparison, run), *resumed])
    trained = time.monotonic()
    runner.run(prediction_command(comparison, run))
    predicted = time.monotonic()
    seconds = {"training": trained - begin, "prediction": predicted - trained} if whole else None
    write_json(folder.seconds(run.name), {"seconds": seconds})
    _measure(comparison, run)
    collect_results(comparison)


def _require_checkpoint(comparison: Comparison, run: TrainingRun) -> None:
    init = comparison.init_of(run)
    needed = init.source or init  # also for a training that is as long as another one's pre-training
    checkpoint = needed.checkpoint(comparison.folder)
    if checkpoint is not None and not checkpoint.is_file():
        raise ComparisonError(f"{needed.name} has no checkpoint yet ({checkpoint}): its pre-training is not done")
    _is_own(comparison, needed)


def _make_derived(comparison: Comparison, run: TrainingRun) -> int:
    """Makes what an initialisation needs that is made from another one; returns the epochs to train longer."""
    init, folder = comparison.init_of(run), comparison.folder
    checkpoint = init.source.checkpoint(folder) if init.source else None
    if checkpoint is None:
        return 0
    if init.kind == LONGER:
        return extra_epochs(checkpoint, random_trainer(comparison), folder.derived(init.file_name, "json"))
    if init.kind == DECODER:
        require_decoder(checkpoint, init.name)
    own = init.checkpoint(folder)
    if init.kind == SHUFFLED and own is not None and not own.is_file():
        write_shuffled(checkpoint, own)
    return 0


def training_command(comparison: Comparison, run: TrainingRun) -> list[str]:
    """The command of a training from its start."""
    settings = comparison.settings
    command = ["nnUNetv2_train", settings.dataset_id, settings.configuration, str(run.fold), "-tr", settings.trainer]
    return [*command, "-p", plans_name(comparison.folder, settings, run), "-device", comparison.device]


def prediction_command(comparison: Comparison, run: TrainingRun) -> list[str]:
    """The command that predicts the test set."""
    folder, settings = comparison.folder, comparison.settings
    processes = str(min(comparison.processes, _MOST_PREDICTION_PROCESSES))
    command = ["nnUNetv2_predict", "-i", str(folder.test_images), "-o", str(folder.predictions(run.name))]
    command += ["-d", settings.dataset_id, "-c", settings.configuration, "-f", str(run.fold), "-tr", settings.trainer]
    command += ["-p", plans_name(folder, settings, run), "-device", comparison.device]
    return [*command, "-npp", processes, "-nps", processes, *shlex.split(settings.predict_options)]


def _measure(comparison: Comparison, run: TrainingRun) -> None:
    """Compares the predictions with the truth; the file of the metrics says that the run is done."""
    folder, settings, dataset = comparison.folder, comparison.settings, comparison.dataset
    training = len(comparison.splits.folds[run.fold].training(run.fraction, run.seed))
    results = []
    for case in comparison.splits.test:
        prediction = folder.predictions(run.name) / f"{case}{dataset.file_ending}"
        if not prediction.is_file():
            raise ComparisonError(f"{prediction} is missing: nnUNetv2_predict did not write it")
        truth = dataset.case(case).label
        measured = measure_case(truth, prediction, dataset.classes, settings.tolerance, dataset.ignore_label)
        results += [
            CaseResult(run.init, run.fraction, training, run.fold, run.seed, case, **asdict(metrics))
            for metrics in measured
        ]
    write_results(results, folder.metrics(run.name))


def collect_results(comparison: Comparison) -> list[CaseResult]:
    """Writes results.csv from the metrics of all runs that are done, and returns its rows."""
    files = [comparison.folder.metrics(run.name) for run in comparison.runs]
    results = [row for file in files if file.is_file() for row in read_results(file)]
    if results:
        write_results(results, comparison.folder.results)
    return results


def seconds_of(comparison: Comparison, run: TrainingRun) -> float | None:
    """How long training and prediction of a run took; None if it is not done or was interrupted."""
    file = comparison.folder.seconds(run.name)
    seconds = read_json(file).get("seconds") if file.is_file() else None
    return float(sum(seconds.values())) if seconds else None


def seconds_of_pretraining(comparison: Comparison, init: Initialisation) -> float | None:
    """How long a pre-training took; None if this comparison did not run it to its end in one go."""
    record = comparison.folder.pretraining(init.name)
    seconds = read_json(record).get("seconds") if record.is_file() else None
    return None if seconds is None else float(seconds)
