"""One pre-training run from the scans to the encoder checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_pgl.checkpoint import save_checkpoint
from pretraining.citations import citations_of
from pretraining.config import PretrainConfig
from pretraining.data import Scan, Skipped, Volume, find_scans, leave_out, preprocess
from pretraining.preview import draw_pairs
from pretraining.run_folder import RunFolder
from pretraining.training import restart
from pretraining.training.distributed import Processes, process_group
from pretraining.training.export import make_checkpoint
from pretraining.training.loop import Pool, Runtime, steps_per_epoch, train
from pretraining.training.memory import explained, require_fitting_batch
from pretraining.training.progress import RunLog
from pretraining.training.state import TrainingState
from pretraining.views.rendering import largest_source_box


@dataclass(frozen=True)
class RunOptions:
    """How to run, as opposed to what (`PretrainConfig`).

    Attributes:
        name: Name of the run folder.
        resume: Continue the run that is there.
        device: "cuda", "cpu" or "mps".
        preprocessing_processes: Workers of the preprocessing.
        save_every: Epochs between two writes of the state.
    """

    name: str
    resume: bool
    device: str
    preprocessing_processes: int
    save_every: int


def pretrain(config: PretrainConfig, options: RunOptions) -> None:
    """Runs in every process that trains together; the main one prepares the data and writes.

    Raises:
        DataError, RunError, TrainingError, CheckpointError, OSError: With one line for the user.
        ProcessLost: In a process that ends because another one did.
    """
    folder = RunFolder.named(options.name)
    workers = loading_workers(options.device)
    with process_group(options.device) as processes:
        resume = processes.from_main(lambda: _open(folder, config, options))
        log = RunLog(folder.path if processes.is_main else None)
        if resume and not options.resume:
            log("", "Restarted by torchrun")
        volumes, skipped = _prepare(config, options, processes, workers, log)
        pool = split_pool(volumes, config)
        if processes.is_main:
            _announce(config, options, pool, processes, log)
            if not resume:
                draw_pairs(volumes, config.views, config.seed, folder.path / "views.png")
        runtime = Runtime(options.device, processes, workers, options.save_every)
        from_state = processes.from_main(lambda: resume and folder.latest.exists())
        with explained(config, options.device, processes, workers):
            state = train(config, pool, folder.path, runtime, log, from_state)
        if processes.is_main:
            _finish(config, folder, state, pool, skipped, log)


def split_pool(volumes: Sequence[Volume], config: PretrainConfig) -> Pool:
    """Holds scans out for the correspondence metric, by the seed."""
    count = config.validation_scans
    if count is None:
        count = 0 if len(volumes) < 10 else min(16, max(1, round(0.05 * len(volumes))))
    count = min(count, len(volumes) - 1)
    order = np.random.default_rng((config.seed, 2)).permutation(len(volumes))
    held_out = set(order[:count].tolist())
    training = [volume for i, volume in enumerate(volumes) if i not in held_out]
    return Pool(training, [volumes[i] for i in sorted(held_out)])


def prepare_volumes(
    config: PretrainConfig, processes: int, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    """Finds the scans and preprocesses those that are not there yet."""
    scans, skipped = _find(config)
    volumes, bad = _preprocess(config, scans, processes, progress)
    return volumes, [*skipped, *bad]


def _find(config: PretrainConfig) -> tuple[list[Scan], list[Skipped]]:
    """The scans of the sources, but for those to be left out."""
    scans, skipped = find_scans(config.datasets, config.modality)
    return leave_out(scans, skipped, config.exclude), skipped


def _preprocess(
    config: PretrainConfig, scans: Sequence[Scan], processes: int, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    return preprocess(
        scans,
        spacing=config.spacing,
        crop_size=largest_source_box(config.views.size, config.views.scale),
        processes=processes,
        progress=progress,
    )


def _open(folder: RunFolder, config: PretrainConfig, options: RunOptions) -> bool:
    """Starts a run in its folder, or says that the one there is to be continued."""
    if options.resume or restart.started_here(folder.path):
        return True
    folder.start(config)
    restart.claim(folder.path)
    return False


def _prepare(
    config: PretrainConfig, options: RunOptions, processes: Processes, workers: int, log: RunLog
) -> tuple[list[Volume], list[Skipped]]:
    """Volumes on every process, prepared by the main one; an error there stops all."""

    def prepare() -> tuple[list[Volume], list[Skipped]]:
        scans, skipped = _find(config)
        if nnUNet_preprocessed.is_set():  # else that is to be said first
            require_fitting_batch(config, options.device, processes, workers)  # now: preprocessing may take hours
        volumes, bad = _preprocess(config, scans, options.preprocessing_processes)
        return volumes, [*skipped, *bad]

    log("", "Preparing the scans of " + ", ".join(config.datasets))
    volumes, skipped = processes.from_main(prepare)
    log(*(f"WARNING: {item}" for item in skipped))
    return volumes, skipped


def _announce(config: PretrainConfig, options: RunOptions, pool: Pool, processes: Processes, log: RunLog) -> None:
    spacing = _median_spacing([*pool.training, *pool.validation])
    held_out = f"{len(pool.validation)} held out" if pool.validation else "none held out, the metric uses the same"
    log(
        "Please cite the following when using this encoder:",
        *(text for entry in citations_of(config.method) for text in entry["apa_citations"]),
        "",
        f"{len(pool.training)} scans to train on, {held_out}; spacing {_numbers(spacing)} mm (z, y, x)",
        f"views of {_numbers(config.views.size)} voxels, encoder strides {_numbers(config.encoder_strides)}",
        f"{config.epochs} epochs of {steps_per_epoch(config, len(pool.training))} steps of {config.batch_size} pairs, "
        f"{config.optimizer}, peak learning rate {config.peak_learning_rate:g}",
        f"device {options.device}, {processes.count} process(es)",
    )


def _finish(
    config: PretrainConfig,
    folder: RunFolder,
    state: TrainingState,
    pool: Pool,
    skipped: Sequence[Skipped],
    log: RunLog,
) -> None:
    """Writes the encoder checkpoint and says what was skipped and what to type next."""
    scans = [*pool.training, *pool.validation]
    is_ct = all(all(scan.is_ct) for scan in scans)
    spacing = _median_spacing(scans)
    checkpoint = make_checkpoint(state.objective, config, spacing, is_ct, len(pool.training), state.history[-1])
    save_checkpoint(checkpoint, folder.final)
    restart.release(folder.path)
    if skipped:
        log("", f"{len(skipped)} scan{'s' if len(skipped) > 1 else ''} skipped:", *(f"  {item}" for item in skipped))
    log(
        "",
        f"Encoder: {folder.final}",
        f"Pictures: {folder.path / 'views.png'}, {folder.path / 'progress.png'}",
        "Next, for a data set with labels (DATASET is its id):",
        "  nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres",
        '  export nnUNet_extTrainer="$(pgl_extension)"',
        f'  export PGL_CHECKPOINT="{folder.final}"',
        "  nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL",
    )


def _median_spacing(volumes: Sequence[Volume]) -> tuple[float, float, float]:
    z, y, x = np.median([volume.spacing for volume in volumes], axis=0).tolist()
    return (z, y, x)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def loading_workers(device: str) -> int:
    """nnU-Net's number of data workers (nnUNet_n_proc_DA); one is enough to feed a CPU."""
    allowed = get_allowed_n_proc_DA()
    return min(allowed, 1) if device == "cpu" else allowed
