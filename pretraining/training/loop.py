"""The training loop: runs and their epochs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nnunetv2_pgl.precision import has_bfloat16
from pretraining.config import PretrainConfig
from pretraining.data import Volume
from pretraining.objectives import target_decay
from pretraining.training.correspondence import Correspondence, measure_correspondence, validation_batches
from pretraining.training.distributed import Processes
from pretraining.training.errors import TrainingError
from pretraining.training.loading import PairLoader
from pretraining.training.progress import RunLog, epoch_lines, plot_progress, write_metrics
from pretraining.training.sampler import PairSampler
from pretraining.training.shares import SharedOrder
from pretraining.training.start import initial_state, prepare_device
from pretraining.training.state import TrainingState
from pretraining.training.step import Stepper
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
    """

    device: str
    processes: Processes
    workers: int
    save_every: int = 1


def steps_per_epoch(config: PretrainConfig, training_scans: int) -> int:
    """Whole batches in an epoch, at least one."""
    return max(1, (config.pairs_per_epoch or training_scans) // config.batch_size)


def train(
    config: PretrainConfig, pool: Pool, folder: Path, runtime: Runtime, log: RunLog, resume: bool
) -> TrainingState:
    """Trains, writing state and pictures to the run folder after every epoch, and returns the last state.

    Raises:
        TrainingError: If the loss is not finite any more, or a loading process has died.
        DataError: If a scan cannot be read.
        CheckpointError: If a run cannot be continued.
        OSError: If the state cannot be written.
    """
    run = Run(config, pool, folder, runtime, log)
    if resume:
        run.state.restore(folder / "checkpoint_latest.pth")
        log(f"Continuing after epoch {run.state.epoch} of {config.epochs}")
    elif runtime.processes.is_main:
        run.measure_baseline()
    run.distribute()
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
        measured = self._correspondence()
        self.state.baseline = {"correspondence": measured.share, "miss_distance": measured.distance}
        self.log(f"Before training: {measured}")

    def epoch(self) -> None:
        """One pass over the pool, then log, curves and state."""
        started = time.perf_counter()
        with self.loader.epoch(self.state.epoch) as batches:
            sums, waited = self._steps(batches)
        seconds = time.perf_counter() - started
        means = self.state.objective.output(*(self.processes.mean(sums) / self.steps).tolist())
        record = self._record(seconds, waited, means._asdict())
        self.state.epoch += 1
        if self.processes.is_main:
            self._report(record)
        self.processes.barrier()

    def _steps(self, batches: Iterator[ViewPairBatch]) -> tuple[torch.Tensor, float]:
        """The steps of an epoch: the sum of their outputs, and the seconds waited for batches."""
        sums = torch.zeros(len(self.state.objective.output._fields), device=self.device)
        waited = 0.0
        name = f"Epoch {self.state.epoch}"
        bar = tqdm(range(self.steps), desc=name, unit="step", leave=False, disable=not self.processes.is_main)
        for step in bar:
            output, waiting = self.step(self.state.epoch * self.steps + step, batches)
            sums += output
            waited += waiting
            if step % 10 == 0 or step == self.steps - 1:
                loss = float(sums[0]) / (step + 1)
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss is not finite in epoch {self.state.epoch} of {self.folder}: start a new run with a "
                        "lower -lr"
                    )
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        return sums, waited

    def _record(self, seconds: float, waited: float, means: dict[str, float]) -> dict[str, Any]:
        config, epoch = self.config, self.state.epoch
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
            "waiting": waited / seconds,
        }

    def _report(self, record: dict[str, Any]) -> None:
        """Measures the correspondence, logs the epoch, draws the curves and saves the state."""
        measured = self._correspondence()
        record |= {
            "correspondence": measured.share,
            "miss_distance": measured.distance,
            "chance": measured.chance,
        }
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
