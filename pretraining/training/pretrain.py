"""One pre-training run from the scans to the encoder checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_pgl.checkpoint import save_checkpoint
from nnunetv2_pgl.errors import counted
from nnunetv2_pgl.files import write_text
from pretraining.data import Skipped, Volume
from pretraining.data.scan import summarise_skipped
from pretraining.launching.distributed import Processes, process_group
from pretraining.launching.stopping import StopSignals
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training.encoder_checkpoint import make_checkpoint, recorded_preprocessing
from pretraining.training.experiment_loggers import ExperimentLoggers
from pretraining.training.loop import Runtime, train
from pretraining.training.memory import require_fitting_batch, suggesting_a_smaller_batch
from pretraining.training.pool import (
    Manifest,
    Pool,
    described_sources,
    find_pool,
    median_spacing,
    preprocess_pool,
    sources_of,
    split_pool,
)
from pretraining.training.preview import draw_pairs
from pretraining.training.progress import RunLog
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import TrainingState
from pretraining.training.summary import licence_line, next_commands, opening_lines
from pretraining.views.body_axes import axis_warnings


def pretrain(config: PretrainConfig, options: RunOptions) -> None:
    """Runs in every process that trains together; the main one prepares the data and writes.

    Raises:
        Stopped: A signal has ended the run, which can be continued.
        PGLError, OSError: With one line for the user.
        ProcessLost: In a process that ends because another one did.
    """
    folder = RunFolder.from_name(options.name)
    workers = loading_workers(options.device)
    with ExitStack() as held, process_group(options.device) as processes, StopSignals().caught() as stop:
        continues = processes.run_on_main(lambda: folder.open(config, options.resume, held))
        log = RunLog(folder.path if processes.is_main else None)
        if continues and not options.resume:
            log("", "Restarted by torchrun")
        if options.resume and not continues:
            log("", f"WARNING: --c, but {folder.path} holds no run to continue: starting a new one")

        log("", "Preparing the scans of " + ", ".join(config.datasets))
        with _warnings_in(log):
            prepared = processes.run_on_main(lambda: _prepare(config, options, processes, workers))
        config, volumes, sources, skipped = prepared
        for line in (*summarise_skipped(skipped), *axis_warnings(volumes, config.views)):
            log(f"WARNING: {line}")
        pool = split_pool(volumes, config, sources)

        has_state = processes.run_on_main(lambda: continues and folder.latest.exists())
        if continues and not has_state:
            log(f"{folder.latest.name} is not there yet: starting from the first step")
        if processes.is_main:
            manifest = Manifest.from_pool(config, pool)
            if not (has_state and folder.manifest.exists()):  # continuing with other scans will be refused
                write_text(folder.manifest, manifest.text)
            described = described_sources(config, pool)
            log(*opening_lines(config, pool, options.device, processes.world_size), licence_line(described))
            if not (has_state and folder.pictures.exists()):
                draw_pairs(volumes, config.views, config.seed, folder.pictures)

        loggers = None
        if processes.is_main:
            loggers = held.enter_context(ExperimentLoggers(options, folder.path, config, log))
        runtime = Runtime(options.device, processes, workers, options.save_every, stop, loggers)
        stop.defer()
        with suggesting_a_smaller_batch(config, options.device, processes, workers):
            state = train(config, pool, folder.path, runtime, log, has_state)
        if processes.is_main:
            _finish(config, folder, state, pool, skipped, manifest, described, log)
        processes.barrier()  # until then a signal must not end those that wait


def loading_workers(device: str) -> int:
    """nnU-Net's number of data workers (nnUNet_n_proc_DA); one is enough to feed a CPU."""
    allowed = get_allowed_n_proc_DA()
    return min(allowed, 1) if device == "cpu" else allowed


def _prepare(
    config: PretrainConfig, options: RunOptions, processes: Processes, workers: int
) -> tuple[PretrainConfig, list[Volume], list[int], list[Skipped]]:
    """The settings with the number of channels, the preprocessed scans, the source of each, and what is left out."""
    scans, skipped = find_pool(config)
    config = replace(config, in_channels=len(scans[0].channels) if config.channels == "joint" else None)
    if nnUNet_preprocessed.is_set():  # else that must be reported first; now: preprocessing may take hours
        require_fitting_batch(config, options.device, processes, workers)
    volumes, bad = preprocess_pool(config, scans, options.preprocessing_processes, options.verify)
    return config, volumes, sources_of(config, scans, volumes), [*skipped, *bad]


@contextmanager
def _warnings_in(log: RunLog) -> Iterator[None]:
    """Writes the warnings of the preparation to the run's log too."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: log(f"WARNING: {record.getMessage()}")  # type: ignore[method-assign]
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _finish(
    config: PretrainConfig,
    folder: RunFolder,
    state: TrainingState,
    pool: Pool,
    skipped: Sequence[Skipped],
    manifest: Manifest,
    described: Sequence[dict[str, Any]],
    log: RunLog,
) -> None:
    """Writes the encoder checkpoint and reports what was skipped and what to type next."""
    is_ct = all(all(volume.is_ct) for volume in pool.volumes)
    spacing, last = median_spacing(pool.volumes), state.history[-1]
    checkpoint = make_checkpoint(
        *(state.objective, config, spacing, is_ct, len(pool.training), last, manifest.summary()),
        sources=described,
        baseline=state.baseline,
        preprocessing=recorded_preprocessing(pool.volumes, config),
    )
    save_checkpoint(checkpoint, folder.final)
    folder.release()
    if skipped:
        heading = f"{counted(len(skipped), 'scan')} skipped:"
        log("", heading, *(f"  {line}" for line in summarise_skipped(skipped)))
    pictures = f"Pictures: {folder.pictures}, {folder.path / 'progress.png'}"
    log("", f"Encoder: {folder.final}", pictures, *next_commands(config, folder))
