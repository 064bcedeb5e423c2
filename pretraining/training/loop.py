"""The training loop: the steps of a run. An epoch is an interval of the log."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import write_text
from nnunetv2_pgl.networks.hardware import autocast_type, prepare_device
from pretraining.launching.distributed import Processes
from pretraining.launching.errors import Stopped
from pretraining.launching.stopping import AnyProcess, StopSignals
from pretraining.settings.config import PretrainConfig
from pretraining.training.correspondence import calibrate_norms, measure_correspondence
from pretraining.training.experiment_loggers import ExperimentLoggers
from pretraining.training.geometry_baselines import position_warnings, validation_batches
from pretraining.training.loading import PairLoader
from pretraining.training.pool import Pool
from pretraining.training.progress import RunLog, append_text, correspondence_lines, epoch_lines, epoch_record
from pretraining.training.sampler import PairSampler, WeightedOrder
from pretraining.training.saving import SaveTimes, StateWriter
from pretraining.training.state import EpochSoFar, TrainingState, initial_state
from pretraining.training.step import Stepper
from pretraining.training.synchronised import synchronise_batch_norms
from pretraining.views import ViewPairBatch


@dataclass(frozen=True)
class Runtime:
    """Where and how a run is computed; does not change what is computed.

    Attributes:
        device: "cuda", "cpu" or "mps".
        processes: This process among those that train together.
        workers: Data loading processes; 0 reads in the training process.
        save_every: Epochs between two writes of state and curves; None: every 10 minutes.
        stop: What asks the run to end; None: nothing does.
        loggers: What gets the records besides ``metrics.jsonl``; None: nothing does.
    """

    device: str
    processes: Processes
    workers: int
    save_every: int | None = None
    stop: StopSignals | None = None
    loggers: ExperimentLoggers | None = None


def steps_per_epoch(config: PretrainConfig, training_scans: int) -> int:
    """Whole batches in an epoch, at least one."""
    return max(1, (config.pairs_per_epoch or training_scans) // config.batch_size)


def train(
    config: PretrainConfig, pool: Pool, folder: Path, runtime: Runtime, log: RunLog, resume: bool
) -> TrainingState:
    """Trains to the end of the run, writing state and curves to its folder meanwhile, and returns the last state.

    Raises:
        Stopped: If the run was asked to end, and has saved its state.
        PGLError: If the loss is not finite any more, a loading process has died or lacks memory, a scan cannot be read
            (DataError), or a run cannot be continued (CheckpointError).
        OSError: If the state cannot be written.
    """
    run = TrainingLoop(config, pool, folder, runtime, log)
    if runtime.processes.is_main:
        run.validation = validation_batches(pool.validation or pool.training, config.views, config.seed)
    if resume:
        run.restore()
    elif runtime.processes.is_main:
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # of an attempt that ended before it had saved its state
        run.measure_baseline()
    if runtime.loggers is not None:
        runtime.loggers.start(run.state.history, resume)
    run.distribute()
    with run.loader.batches(run.state.step) as batches, run.writer:
        while run.state.epoch < config.epochs:
            run.epoch(batches)
    return run.state


class TrainingLoop:
    """What the steps of one run share.

    Attributes:
        validation: Pairs to measure the correspondence with, in the main process.
    """

    def __init__(self, config: PretrainConfig, pool: Pool, folder: Path, runtime: Runtime, log: RunLog):
        self.config, self.folder, self.log = config, folder, log
        self.processes, self.signals, self.loggers = runtime.processes, runtime.stop, runtime.loggers
        self.device = self.processes.device(runtime.device)
        prepare_device(self.device)
        self.precision = autocast_type(self.device)
        self.steps_per_epoch = steps_per_epoch(config, len(pool.training))
        self.steps = self.steps_per_epoch * config.epochs
        self.state = initial_state(config, self.device, self.precision)
        self.state.steps_per_epoch = self.steps_per_epoch
        self.state.scans = [scan.name for scan in pool.training]
        scans, rank, world_size = pool.training, self.processes.rank, self.processes.world_size
        weighted = WeightedOrder(pool.sources, config.weights, config.seed) if config.weights else None
        sampler = PairSampler(
            len(scans), self.steps, config.batch_size, config.accumulate, config.seed, rank, world_size, weighted
        )
        local = self.processes.local_world_size
        self.loader = PairLoader(scans, config, sampler, runtime.workers, self.device, local)
        self.validation: list[ViewPairBatch] = []
        self.step = self._stepper(self.state.objective)
        self.times = SaveTimes(runtime.save_every, self.steps_per_epoch)
        self.writer = StateWriter(folder)
        self._any_must_stop = AnyProcess(self.processes, self.device)

    def _stepper(self, model: nn.Module) -> Stepper:
        warmup = self.steps_per_epoch * self.config.warmup_epochs
        return Stepper(self.config, self.steps, warmup, self.state, model, self.processes.rank)

    def restore(self) -> None:
        """Continues from ``checkpoint_latest.pth``; records of epochs after it are dropped.

        Raises:
            CheckpointError: See `TrainingState.restore`.
        """
        self.state.restore(self.folder / "checkpoint_latest.pth")
        steps, epoch = self.state.so_far.steps, self.state.epoch
        where = f"step {steps} of epoch {epoch}" if steps else f"epoch {epoch} of {self.config.epochs}"
        self.log(f"Continuing after {where}")
        if self.processes.is_main:
            lines = [json.dumps(record) + "\n" for record in self.state.history]
            write_text(self.folder / "metrics.jsonl", "".join(lines))

    def measure_baseline(self) -> None:
        """The correspondence of the untrained encoder, after its norms have seen a few batches."""
        encoder, size = self.state.objective.encoder, self.config.views.size
        calibrate_norms(encoder, self.validation, size, self.device, self.precision)
        with self.times.measuring():
            self.state.baseline = self._correspondence()
        self.log("Before training:", *correspondence_lines(self.state.baseline))
        self.log(*position_warnings(self.state.baseline))

    def distribute(self) -> None:
        """Joins the processes' networks, which become those of the main process.

        Only after the baseline, which the main process measures alone: synchronised norms would wait for the others.
        """
        if self.processes.world_size == 1:
            return
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # of 1-channel weights
        module = synchronise_batch_norms(self.state.objective)
        devices = [self.processes.local_rank] if self.device.type == "cuda" else None
        # The only buffers are the norms' running statistics, which come out alike; older torch lacks the new option.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        self.step = self._stepper(DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False))

    def epoch(self, batches: Iterator[ViewPairBatch]) -> None:
        """The steps of an epoch that are left, and its record. Saves when it is time, and ends when it is asked to."""
        so_far = self.state.so_far
        shown = {"unit": "step", "leave": False, "mininterval": 0.5, "disable": not self.processes.is_main}
        with tqdm(desc=f"Epoch {self.state.epoch}", total=self.steps_per_epoch, initial=so_far.steps, **shown) as bar:
            while so_far.steps < self.steps_per_epoch:
                started = time.perf_counter()
                so_far.add(*self.step(self.state.step, batches))
                self.state.step += 1
                if so_far.steps % 10 == 1 or so_far.steps == self.steps_per_epoch:
                    bar.set_postfix(loss=f"{self._require_finite_loss():.3f}", refresh=False)
                so_far.seconds += time.perf_counter() - started
                bar.update()
                if so_far.steps < self.steps_per_epoch:
                    self._save_or_stop(bar)
        self._end_epoch()
        self._save_or_stop(bar)

    def _end_epoch(self) -> None:
        """Adds the record of the epoch to the log."""
        state = self.state
        means = self.processes.mean(state.so_far.total) / self.steps_per_epoch
        if self.processes.is_main:
            record = epoch_record(state, self.config, state.objective.output(*means.tolist())._asdict())
            if state.step == self.steps or self.times.measuring_is_due(state.step):
                with self.times.measuring():
                    record |= self._correspondence()
            state.history.append(record)
            seconds = [record["seconds"] for record in state.history[-5:]]
            left = self.config.epochs - len(state.history)
            self.log(*epoch_lines(record, left * sum(seconds) / len(seconds)))
            append_text(self.folder / "metrics.jsonl", json.dumps(record) + "\n")
            if self.loggers is not None:
                self.loggers.add(record)
        state.so_far = EpochSoFar()

    def _save_or_stop(self, bar: tqdm[NoReturn]) -> None:
        is_done = self.state.step == self.steps
        if self.signals is not None and self._any_must_stop(self.signals.received is not None) and not is_done:
            bar.close()
            self._stop(self.signals.received or "a signal to another process")
        if self.processes.is_main:
            self.writer.check()
            if is_done or self.times.is_due(self.state.step):
                self._save()

    def _save(self) -> None:
        if self.state.so_far.steps:
            self._require_finite_loss()
        self.writer.write(self.state)
        self.times.saved()

    def _stop(self, signal: str) -> NoReturn:
        """Saves and ends the run, on all processes."""
        so_far = self.state.so_far
        if so_far.steps:
            self._require_finite_loss()
            so_far.sums = self.processes.mean(so_far.total)  # each process continues with the mean, so the mean is kept
        if self.processes.is_main:
            self._save()
            self.writer.wait()
        self.processes.barrier()  # a process that exits early would make the others fail
        done, epoch = so_far.steps or self.steps_per_epoch, self.state.epoch - (not so_far.steps)
        raise Stopped(
            f"stopped by {signal} after step {done} of {self.steps_per_epoch} in epoch {epoch}, which "
            f"{self.folder / 'checkpoint_latest.pth'} holds. Add --c to continue"
        )

    def _require_finite_loss(self) -> float:
        """The mean loss of the epoch until now; it is not finite if that of a step, or a gradient, was not."""
        so_far = self.state.so_far
        loss = float(so_far.total[0]) / so_far.steps
        if not math.isfinite(loss):
            raise PGLError(
                f"the loss or its gradient is not finite in epoch {self.state.epoch} of {self.folder}, and nothing was "
                "saved since: start a new run with a lower -lr"
            )
        return loss

    def _correspondence(self) -> dict[str, float]:
        config = self.config
        views = 2 * config.batch_size // (config.accumulate * self.processes.world_size)  # at once, as in a step
        how = (config.views.size, self.device, self.precision, config.stages[-1], views)
        return measure_correspondence(self.state.objective.encoder, self.validation, *how).to_record()
