"""The training loop: runs and their epochs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nnunetv2_pgl.precision import has_bfloat16
from pretraining.config import PretrainConfig
from pretraining.data import Volume
from pretraining.objectives import target_decay
from pretraining.training.correspondence import (
    Correspondence,
    correspondence_lines,
    measure_correspondence,
    validation_batches,
)
from pretraining.training.distributed import Processes
from pretraining.training.errors import Stopped, TrainingError
from pretraining.training.loading import PairLoader
from pretraining.training.places import place_warnings
from pretraining.training.progress import RunLog, epoch_lines, plot_progress, write_metrics
from pretraining.training.sampler import PairSampler
from pretraining.training.shares import SharedOrder
from pretraining.training.start import initial_state, prepare_device
from pretraining.training.state import EpochSoFar, TrainingState
from pretraining.training.step import Stepper
from pretraining.training.stopping import Agreement, StopSignals
from pretraining.training.synchronised import synchronise_batch_norms
from pretraining.views import ViewPairBatch

_CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class Pool:
    """Scans to train on and scans held out for the correspondence metric.

    Attributes:
        sources: Which of the settings' ``datasets`` each training scan is from; needed where these have weights.
        validation_sources: The same of the scans held out.
    """

    training: Sequence[Volume]
    validation: Sequence[Volume]
    sources: Sequence[int] = ()
    validation_sources: Sequence[int] = ()


@dataclass(frozen=True)
class Runtime:
    """Where and how a run is computed; does not change what is computed.

    Attributes:
        device: "cuda", "cpu" or "mps".
        processes: This process among those that train together.
        workers: Data loading processes; 0 reads in the training process.
        save_every: Epochs between two writes of ``checkpoint_latest.pth``.
        stop: What asks the run to end; None: nothing does.
    """

    device: str
    processes: Processes
    workers: int
    save_every: int = 1
    stop: StopSignals | None = None


def steps_per_epoch(config: PretrainConfig, training_scans: int) -> int:
    """Whole batches in an epoch, at least one."""
    return max(1, (config.pairs_per_epoch or training_scans) // config.batch_size)


def train(
    config: PretrainConfig, pool: Pool, folder: Path, runtime: Runtime, log: RunLog, resume: bool
) -> TrainingState:
    """Trains, writing state and pictures to the run folder after every epoch, and returns the last state.

    Raises:
        Stopped: If the run was asked to end, and has saved its state.
        TrainingError: If the loss is not finite any more, or a loading process has died.
        DataError: If a scan cannot be read.
        CheckpointError: If a run cannot be continued.
        OSError: If the state cannot be written.
    """
    run = Run(config, pool, folder, runtime, log)
    if resume:
        run.state.restore(folder / "checkpoint_latest.pth")
        steps = run.state.so_far.steps
        where = f"step {steps} of epoch {run.state.epoch}" if steps else f"epoch {run.state.epoch} of {config.epochs}"
        log(f"Continuing after {where}")
    elif runtime.processes.is_main:
        run.measure_baseline()
    run.distribute()
    with run.loader.explaining_deaths():
        while run.state.epoch < config.epochs:
            run.epoch()
    return run.state


class Run:
    """What the epochs of one run share."""

    def __init__(self, config: PretrainConfig, pool: Pool, folder: Path, runtime: Runtime, log: RunLog):
        self.config, self.folder, self.runtime, self.log = config, folder, runtime, log
        self.processes = runtime.processes
        self.device = self.processes.device(runtime.device)
        prepare_device(self.device)
        self.precision = torch.bfloat16 if has_bfloat16(self.device) else None
        self.steps = steps_per_epoch(config, len(pool.training))
        self.state = initial_state(config, self.device, self.precision)
        self.state.scans = [scan.name for scan in pool.training]
        sampler = PairSampler(
            len(pool.training),
            self.steps,
            config.batch_size,
            config.accumulate,
            config.seed,
            self.processes.rank,
            self.processes.count,
            SharedOrder(pool.sources, config.weights, config.seed) if config.weights else None,
        )
        self.loader = PairLoader(pool.training, config, sampler, runtime.workers, pin=self.device.type == "cuda")
        scans = pool.validation or pool.training
        self.validation = validation_batches(scans, config.views, config.seed) if self.processes.is_main else []
        self.step = self._stepper(self.state.objective)
        self._any_wants_to_stop = Agreement(self.processes, self.device)

    def _stepper(self, model: nn.Module) -> Stepper:
        config = self.config
        steps, warmup = self.steps * config.epochs, self.steps * config.warmup_epochs
        return Stepper(config, steps, warmup, self.state, model, self.processes.rank)

    def distribute(self) -> None:
        """Joins the processes' networks, which become those of the main process.

        Not before the baseline: it runs on the main process alone, where synchronised norms would wait for the others.
        """
        if self.processes.count == 1:
            return
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # of 1-channel weights
        on_gpu = self.device.type == "cuda"
        synchronise = nn.SyncBatchNorm.convert_sync_batchnorm if on_gpu else synchronise_batch_norms
        module = synchronise(self.state.objective)
        self.step = self._stepper(
            DistributedDataParallel(module, device_ids=[self.processes.local_rank] if on_gpu else None)
        )

    def measure_baseline(self) -> None:
        """The correspondence of the untrained encoder, after its norms have seen a few batches."""
        encoder = self.state.objective.encoder
        with torch.no_grad(), self._autocast():
            for batch in self.validation[:_CALIBRATION_BATCHES]:
                encoder(batch.to(self.device).render(self.config.views.size))
        self.state.baseline = self._correspondence().to_record()
        self.log("Before training:", *correspondence_lines(self.state.baseline))
        self.log(*place_warnings(self.state.baseline))

    def epoch(self) -> None:
        """One pass over the pool, or what is left of it, then log, curves and state."""
        so_far = self.state.so_far
        with self.loader.epoch(self.state.epoch, so_far.steps) as batches:
            self._steps(batches, so_far)
        means = self.state.objective.output(*(self.processes.mean(so_far.total) / self.steps).tolist())
        record = self._record(so_far, means._asdict())
        self.state.epoch += 1
        self.state.so_far = EpochSoFar()
        if self.processes.is_main:
            self._report(record)
        self.processes.barrier()

    def _steps(self, batches: Iterator[ViewPairBatch], so_far: EpochSoFar) -> None:
        """The steps of an epoch that are still to do."""
        started = time.perf_counter() - so_far.seconds
        bar = tqdm(
            range(so_far.steps, self.steps),
            desc=f"Epoch {self.state.epoch}",
            total=self.steps,
            initial=so_far.steps,
            unit="step",
            leave=False,
            disable=not self.processes.is_main,
        )
        for step in bar:
            so_far.add(*self.step(self.state.epoch * self.steps + step, batches))
            so_far.seconds = time.perf_counter() - started
            if step % 10 == 0 or step == self.steps - 1:
                bar.set_postfix(loss=f"{self._require_finite_loss(so_far):.3f}", refresh=False)
            stop = self.runtime.stop
            if stop is not None and self._any_wants_to_stop(stop.received is not None):
                bar.close()
                self._stop(so_far, stop.received or "a signal to another process")

    def _require_finite_loss(self, so_far: EpochSoFar) -> float:
        """The mean loss of the epoch until now; it is not finite if that of a step, or a gradient, was not."""
        loss = float(so_far.total[0]) / so_far.steps
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss or its gradient is not finite in epoch {self.state.epoch} of {self.folder}, and nothing of "
                "it was saved: start a new run with a lower -lr"
            )
        return loss

    def _stop(self, so_far: EpochSoFar, signal: str) -> NoReturn:
        """Saves the epoch under way and ends the run, on all processes."""
        self._require_finite_loss(so_far)
        so_far.sums = self.processes.mean(so_far.total)  # each process goes on with the mean, so the mean is kept
        if self.processes.is_main:
            self.state.save(self.folder / "checkpoint_latest.pth")
        self.processes.barrier()  # who ends first brings the others to an end
        raise Stopped(
            f"stopped by {signal} after step {so_far.steps} of {self.steps} in epoch {self.state.epoch}, which "
            f"{self.folder / 'checkpoint_latest.pth'} holds. Add --c to go on"
        )

    def _record(self, so_far: EpochSoFar, means: dict[str, float]) -> dict[str, Any]:
        config, epoch, seconds = self.config, self.state.epoch, so_far.seconds
        pairs = self.steps * config.batch_size
        last_step = (epoch + 1) * self.steps - 1
        tau = target_decay(last_step, self.steps * config.epochs, config.target_decay)
        return {
            "epoch": epoch,
            **means,
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            **({"tau": tau} if self.state.objective.has_target else {}),
            "seconds": seconds,
            "scans_per_second": pairs / seconds,
            "views_per_second": 2 * pairs / seconds,
            "waiting": so_far.waited / seconds,
        }

    def _report(self, record: dict[str, Any]) -> None:
        """Measures the correspondence, logs the epoch, draws the curves and saves the state."""
        record |= self._correspondence().to_record()
        self.state.history.append(record)
        recent = [r["seconds"] for r in self.state.history[-5:]]
        left = self.config.epochs - self.state.epoch
        self.log(*epoch_lines(record, left * sum(recent) / len(recent)))
        write_metrics(self.state.history, self.folder / "metrics.jsonl")
        plot_progress(self.state.history, self.state.baseline, self.folder / "progress.png")
        if self.state.epoch % self.runtime.save_every == 0 or left == 0:
            self.state.save(self.folder / "checkpoint_latest.pth")

    def _correspondence(self) -> Correspondence:
        encoder, size, level = self.state.objective.encoder, self.config.views.size, self.config.levels[-1]
        return measure_correspondence(encoder, self.validation, size, self.device, self.precision, level)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)
