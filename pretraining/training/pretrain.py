"""One pre-training run from the scans to the encoder checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_pgl.checkpoint import save_checkpoint
from pretraining.data import (
    PlannedPreprocessing,
    Scan,
    Skipped,
    Volume,
    find_scans,
    leave_out,
    preprocess,
    resolve_store,
    with_joint_channels,
)
from pretraining.data.reading.orientation import read_orientation
from pretraining.data.scan import in_few_lines
from pretraining.launching import restart
from pretraining.launching.distributed import Processes, process_group
from pretraining.launching.stopping import StopSignals
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training.export import make_checkpoint
from pretraining.training.loop import Pool, Runtime, train
from pretraining.training.manifest import Manifest
from pretraining.training.memory import explained, require_fitting_batch
from pretraining.training.preview import draw_pairs
from pretraining.training.progress import RunLog
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import TrainingState
from pretraining.training.summary import median_spacing, next_commands, opening_lines
from pretraining.views.body_axes import axis_warnings, require_lateral
from pretraining.views.rendering import largest_source_box


def pretrain(config: PretrainConfig, options: RunOptions) -> None:
    """Runs in every process that trains together; the main one prepares the data and writes.

    Raises:
        Stopped: A signal has ended the run, which can be continued.
        DataError, RunError, TrainingError, CheckpointError, OSError: With one line for the user.
        ProcessLost: In a process that ends because another one did.
    """
    folder = RunFolder.named(options.name)
    workers = loading_workers(options.device)
    with ExitStack() as held, process_group(options.device) as processes, StopSignals().caught() as stop:
        resume = processes.from_main(lambda: _open(folder, config, options, held))
        log = RunLog(folder.path if processes.is_main else None)
        if resume and not options.resume:
            log("", "Restarted by torchrun")
        if options.resume and not resume:
            log("", f"WARNING: --c, but {folder.path} holds no run to continue: starting a new one")
        volumes, sources, skipped = _prepare(config, options, processes, workers, log)
        config = _with_channels(config, volumes[0].shape[0])
        pool = split_pool(volumes, config, sources)
        from_state = processes.from_main(lambda: resume and folder.latest.exists())
        if resume and not from_state:
            log(f"{folder.latest.name} is not there yet: starting from the first step")
        if processes.is_main:
            manifest = Manifest.of_pool(config, pool)
            if not (from_state and folder.manifest.exists()):  # going on with other scans will be refused
                manifest.write(folder.manifest)
            log(*opening_lines(config, pool, options.device, processes.count))
            if not (from_state and (folder.path / "views.png").exists()):
                draw_pairs(volumes, config.views, config.seed, folder.path / "views.png")
        runtime = Runtime(options.device, processes, workers, options.save_every, stop)
        stop.note()
        with explained(config, options.device, processes, workers):
            state = train(config, pool, folder.path, runtime, log, from_state)
        if processes.is_main:
            _finish(config, folder, state, pool, skipped, manifest, log)
        processes.barrier()  # until then a signal must not end those that wait


def split_pool(volumes: Sequence[Volume], config: PretrainConfig, sources: Sequence[int] = ()) -> Pool:
    """Holds scans out for the correspondence metric, by the seed; ``sources`` are those of the volumes, if known."""
    count = config.validation_scans
    if count is None:
        count = 0 if len(volumes) < 10 else min(16, max(1, round(0.05 * len(volumes))))
    count = min(count, len(volumes) - 1)
    order = np.random.default_rng((config.seed, 2)).permutation(len(volumes))
    held_out = sorted(order[:count].tolist())
    trained = sorted(order[count:].tolist())
    of = [[sources[i] for i in part] for part in (trained, held_out)] if sources else [(), ()]
    return Pool([volumes[i] for i in trained], [volumes[i] for i in held_out], *of)


def prepare_volumes(
    config: PretrainConfig, processes: int, verify: bool = False, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    """Finds the scans and preprocesses those that are not there yet."""
    scans, skipped = _find(config)
    volumes, bad = _preprocess(config, scans, processes, verify, progress)
    return volumes, [*skipped, *bad]


def _find(config: PretrainConfig) -> tuple[list[Scan], list[Skipped]]:
    """The scans of the sources, but for those to be left out and those whose channels do not fit."""
    scans, skipped = find_scans(config.datasets, config.modality, config.use_masks)
    scans = leave_out(scans, skipped, config.exclude)
    if config.channels == "joint":
        planned = _planned(config)
        scans, others = with_joint_channels(scans, planned.channels if planned else None)
        skipped = [*skipped, *others]
    return scans, skipped


def _planned(config: PretrainConfig) -> PlannedPreprocessing | None:
    return None if config.preprocessing is None else PlannedPreprocessing.from_dict(config.preprocessing)


def _with_channels(config: PretrainConfig, channels: int) -> PretrainConfig:
    """The settings once the scans are known."""
    return replace(config, in_channels=channels if config.channels == "joint" else None)


def _preprocess(
    config: PretrainConfig, scans: Sequence[Scan], processes: int, verify: bool, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    require_lateral(map(read_orientation, scans), config.views)  # now: preprocessing may take hours
    volumes, skipped = preprocess(
        scans,
        spacing=config.spacing,
        crop_size=largest_source_box(config.views.size, config.views.scale),
        processes=processes,
        progress=progress,
        planned=_planned(config),
        verify=verify,
    )
    require_lateral((volume.orientation for volume in volumes), config.views)
    return volumes, skipped


def _open(folder: RunFolder, config: PretrainConfig, options: RunOptions, held: ExitStack) -> bool:
    """Starts a run in its folder, or says that the one there is to be continued; keeps other runs out."""
    held.enter_context(folder.locked())
    if folder.config_file.exists() and (options.resume or restart.started_here(folder.path)):
        return True
    folder.start(config)
    restart.claim(folder.path)
    return False


def _prepare(
    config: PretrainConfig, options: RunOptions, processes: Processes, workers: int, log: RunLog
) -> tuple[list[Volume], list[int], list[Skipped]]:
    """Volumes and the number of the source of each, on every process; the main one prepares, an error stops all."""

    def prepare() -> tuple[list[Volume], list[int], list[Skipped]]:
        scans, skipped = _find(config)
        if nnUNet_preprocessed.is_set():  # else that is to be said first; now: preprocessing may take hours
            resolved = _with_channels(config, len(scans[0].channels))
            require_fitting_batch(resolved, options.device, processes, workers)
        volumes, bad = _preprocess(config, scans, options.preprocessing_processes, options.verify)
        stores = [resolve_store(source) for source in config.datasets]
        source_of = {scan.name: stores.index(scan.store) for scan in scans}
        return volumes, [source_of[volume.name] for volume in volumes], [*skipped, *bad]

    log("", "Preparing the scans of " + ", ".join(config.datasets))
    with _warnings_in(log):
        volumes, sources, skipped = processes.from_main(prepare)
    log(*(f"WARNING: {line}" for line in [*in_few_lines(skipped), *axis_warnings(volumes, config.views)]))
    return volumes, sources, skipped


@contextmanager
def _warnings_in(log: RunLog) -> Iterator[None]:
    """What is said of the data while it is prepared stands in the run's log, too."""
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
    log: RunLog,
) -> None:
    """Writes the encoder checkpoint and says what was skipped and what to type next."""
    scans = [*pool.training, *pool.validation]
    is_ct = all(all(scan.is_ct) for scan in scans)
    spacing = median_spacing(scans)
    checkpoint = make_checkpoint(
        state.objective, config, spacing, is_ct, len(pool.training), state.history[-1], manifest.summary()
    )
    save_checkpoint(checkpoint, folder.final)
    restart.release(folder.path)
    if skipped:
        log(
            "",
            f"{len(skipped)} scan{'s' if len(skipped) > 1 else ''} skipped:",
            *(f"  {line}" for line in in_few_lines(skipped)),
        )
    log(
        "",
        f"Encoder: {folder.final}",
        f"Pictures: {folder.path / 'views.png'}, {folder.path / 'progress.png'}",
        *next_commands(config, folder),
    )


def loading_workers(device: str) -> int:
    """nnU-Net's number of data workers (nnUNet_n_proc_DA); one is enough to feed a CPU."""
    allowed = get_allowed_n_proc_DA()
    return min(allowed, 1) if device == "cpu" else allowed
