"""The steps of a comparison, all of them through the installed commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import DECODER, LONGER, SHUFFLED, extra_epochs, require_decoder, write_shuffled
from pretraining.comparison.files import write_json
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.metrics import measure_case
from pretraining.comparison.results import read_results, write_results
from pretraining.comparison.runs import (
    State,
    TrainingRun,
    model_folder,
    number_of_training_cases,
    plans_name,
    random_trainer,
    state_of_pretraining,
    state_of_training,
    training_runs,
    write_plans,
)
from pretraining.console_commands import CommandStopped

Failures = dict[str, str]
_MAX_PREDICTION_PROCESSES = 3  # nnU-Net's default


def pretrain_all(comparison: Comparison, inits: Sequence[Initialisation]) -> Failures:
    """Runs the pre-trainings that are not done; returns those that failed and why.

    Raises:
        CommandStopped: A signal has ended one; the remaining ones are left for the next call.
    """
    failures: Failures = {}
    for init in inits:
        names = {other.name for other in comparison.inits if init in (other, other.source)}
        runs = [run for run in training_runs(comparison.settings) if run.init in names]
        if all(state_of_training(comparison, run) is State.DONE for run in runs):
            continue
        try:
            _pretrain(comparison, init)
        except CommandStopped:
            raise
        except PGLError as error:
            failures[f"pre-training {init.name}"] = str(error)
            print(f"FAILED: {error}", flush=True)
    return failures


def train_all(comparison: Comparison, runs: Sequence[TrainingRun]) -> Failures:
    """Trains, predicts and measures what is not done; returns what failed and why."""
    failures: Failures = {}
    for number, run in enumerate(runs, start=1):
        if state_of_training(comparison, run) is State.DONE:
            continue
        print(f"\n=== {run.name} ({number} of {len(runs)}) ===", flush=True)
        try:
            _train(comparison, run)
        except (PGLError, OSError) as error:
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


def training_command(comparison: Comparison, run: TrainingRun) -> list[str]:
    """The command of a training from its start."""
    settings = comparison.settings
    command = ["nnUNetv2_train", settings.dataset_id, settings.configuration, str(run.fold), "-tr", settings.trainer]
    return [*command, "-p", plans_name(comparison, run), "-device", comparison.device]


def prediction_command(comparison: Comparison, run: TrainingRun) -> list[str]:
    """The command that predicts the test set."""
    folder, settings = comparison.folder, comparison.settings
    processes = str(min(comparison.processes, _MAX_PREDICTION_PROCESSES))
    command = ["nnUNetv2_predict", "-i", str(folder.test_images), "-o", str(folder.predictions(run.name))]
    command += ["-d", settings.dataset_id, "-c", settings.configuration, "-f", str(run.fold), "-tr", settings.trainer]
    command += ["-p", plans_name(comparison, run), "-device", comparison.device]
    return [*command, "-npp", processes, "-nps", processes, *shlex.split(settings.predict_options)]


def _pretrain(comparison: Comparison, init: Initialisation) -> None:
    _require_own(comparison, init)
    record, state = comparison.folder.pretraining(init.name), state_of_pretraining(comparison, init)
    if state is State.DONE:
        return
    command = pretraining_command(comparison, init)
    resumed = ["--c"] if state is State.TO_CONTINUE else []
    write_json(record, {"command": shlex.join(command)})
    begin = time.monotonic()
    on_device = ["-device", comparison.device, "-np", str(comparison.processes)]
    comparison.runner(f"pretrain_{init.name}").run([*command, *on_device, *resumed])
    write_json(record, {"command": shlex.join(command), "seconds": None if resumed else time.monotonic() - begin})


def _require_own(comparison: Comparison, init: Initialisation) -> None:
    """A PGLError if there is a pre-training of this name that was not started by this comparison."""
    run_folder = init.run_folder(comparison.folder)
    started = not init.options or comparison.folder.pretraining(init.name).is_file()
    if not started and (run_folder.final.exists() or run_folder.latest.exists()):
        raise PGLError(
            f"{run_folder.path} holds a pre-training that this comparison did not start; to use it, start another "
            f"comparison with --checkpoint {init.name}={run_folder.final}"
        )


def _train(comparison: Comparison, run: TrainingRun) -> None:
    """One training, its prediction and its metrics."""
    write_plans(comparison, run, _make_start(comparison, run))
    runner, model = comparison.runner(run.name), model_folder(comparison, run)
    begin, whole = time.monotonic(), state_of_training(comparison, run) is State.TO_DO
    if not (model / "checkpoint_final.pth").is_file():
        resumed = ["--c"] if (model / "checkpoint_latest.pth").is_file() else []
        runner.run([*training_command(comparison, run), *resumed])
    trained = time.monotonic()
    runner.run(prediction_command(comparison, run))
    seconds = {"training": trained - begin, "prediction": time.monotonic() - trained} if whole else None
    write_json(comparison.folder.seconds(run.name), {"seconds": seconds})
    _measure(comparison, run)
    collect_results(comparison)


def _make_start(comparison: Comparison, run: TrainingRun) -> int:
    """Checks or makes the checkpoint that a run starts from; returns the epochs to train longer."""
    init, folder = comparison.init(run.init), comparison.folder
    source = init.source or init  # also for a training that is as long as another one's pre-training
    checkpoint = source.checkpoint(folder)
    if checkpoint is None:
        return 0
    if not checkpoint.is_file():
        raise PGLError(f"{source.name} has no checkpoint yet ({checkpoint}): its pre-training is not done")
    _require_own(comparison, source)
    if init.kind == LONGER:
        with random_trainer(comparison) as trainer:
            return extra_epochs(checkpoint, trainer, folder.derived(init.name, "json"))
    if init.kind == DECODER:
        require_decoder(checkpoint, init.name)
    own = init.checkpoint(folder)
    if init.kind == SHUFFLED and own is not None and not own.is_file():
        write_shuffled(checkpoint, own)
    return 0


def _measure(comparison: Comparison, run: TrainingRun) -> None:
    """Compares the predictions with the truth; the file of the metrics marks the run as done."""
    folder, settings, dataset = comparison.folder, comparison.settings, comparison.dataset
    of_run = {**asdict(run), "training_cases": number_of_training_cases(comparison, run)}
    tables = []
    for case in comparison.splits.test:
        prediction = folder.predictions(run.name) / f"{case}{dataset.file_ending}"
        if not prediction.is_file():
            raise PGLError(f"{prediction} is missing: nnUNetv2_predict did not write it")
        truth = dataset.case(case).label
        measured = measure_case(truth, prediction, dataset.classes, settings.tolerance, dataset.ignore_label)
        tables.append(measured.assign(case=case, **of_run))
    write_results(pd.concat(tables), folder.metrics(run.name))


def collect_results(comparison: Comparison) -> pd.DataFrame | None:
    """Writes results.csv from the metrics of all runs that are done, and returns it; None if no run is done."""
    files = [comparison.folder.metrics(run.name) for run in training_runs(comparison.settings)]
    tables = [read_results(file) for file in files if file.is_file()]
    if not tables:
        return None
    results = pd.concat(tables, ignore_index=True)
    write_results(results, comparison.folder.results)
    return results
