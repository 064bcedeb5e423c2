"""One pre-training or training of a comparison, through the installed commands, and the table of all results."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict

import pandas as pd

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import DECODER, LONGER, SHUFFLED, extra_epochs, require_decoder, write_shuffled
from pretraining.comparison.files import file_name, write_json
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.metrics import measure_case
from pretraining.comparison.results import read_results, write_results
from pretraining.comparison.runs import (
    State,
    TrainingRun,
    model_folder,
    number_of_training_cases,
    plans_name,
    pretraining_name,
    random_trainer,
    state_of_pretraining,
    state_of_training,
    training_runs,
    write_plans,
)
from pretraining.comparison.settings import ComparisonSettings
from pretraining.file_lock import FileLock

_MAX_PREDICTION_PROCESSES = 3  # nnU-Net's default


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


def pretrain(comparison: Comparison, init: Initialisation, lock: FileLock) -> None:
    """Runs or continues a pre-training, unless it is done; the lock is that of the pre-training.

    Raises:
        CommandStopped: A signal has ended it.
        PGLError: It has failed.
    """
    _require_own(comparison, init)
    record, state = comparison.folder.pretraining(init.name), state_of_pretraining(comparison, init)
    if state is State.DONE:
        return
    command = pretraining_command(comparison, init)
    resumed = ["--c"] if state is State.TO_CONTINUE else []
    write_json(record, {"command": shlex.join(command)})
    begin = time.monotonic()
    on_device = ["-device", comparison.device, "-np", str(comparison.processes)]
    comparison.runner(pretraining_name(init), lock).run([*command, *on_device, *resumed])
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


def train(comparison: Comparison, run: TrainingRun, lock: FileLock) -> None:
    """One training, its prediction and its metrics; the lock is that of the run.

    Raises:
        PGLError, OSError: It has failed.
    """
    write_plans(comparison, run, _make_start(comparison, run))
    runner, model = comparison.runner(run.name, lock), model_folder(comparison, run)
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
    if init.kind == SHUFFLED and own is not None:
        with comparison.alone(file_name(init.name), f"the weights of {init.name}"):
            if not own.is_file():
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
    """Writes results.csv from the metrics of all runs that are done, and returns it; None if no run is done.

    The runs are those of the stored settings, which another process may have extended.
    """
    folder = comparison.folder
    with comparison.alone("results", str(folder.results)):
        files = [folder.metrics(run.name) for run in training_runs(ComparisonSettings.load(folder.settings))]
        tables = [read_results(file) for file in files if file.is_file()]
        if not tables:
            return None
        results = pd.concat(tables, ignore_index=True)
        write_results(results, folder.results)
        return results
