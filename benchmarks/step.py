"""Goals 1 and 2: a training step over its bare networks, and these over what the hardware can do.

The step is the training loop's own: pairs from stored scans through the data loader, rendering and intensity changes,
both paths, alignment, loss, backward pass, optimiser (LARS) and target update. The bare networks are the same encoder
and heads in the same precision, online path forward and backward and target path forward, on views that are already in
place. The two take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.hardware import convolution_rate, product_rate
from benchmarks.report import Figure, Settings, alternating, synchronise
from benchmarks.scans import VIEW_SIZE, store_scans
from pretraining.config import PretrainConfig
from pretraining.launching.distributed import Processes
from pretraining.pretrain import loading_workers
from pretraining.training.loop import Pool, Run, Runtime
from pretraining.training.progress import RunLog
from pretraining.views import ViewPairBatch, ViewSettings

_CPU_BATCH, _CUDA_BATCH = 16, 128
_PAPER_STEPS, _PAPER_BATCH = 7060, 128  # section 5.1: 500 epochs of 1808 scans


def measure(settings: Settings) -> list[Figure]:
    """Runs whole steps and bare networks in turn, then convolutions and a matrix product."""
    rounds = 2 if settings.quick else 9
    on_gpu = settings.device.type == "cuda"
    in_a_row = 10 if on_gpu else 1  # a GPU is told of the next step before it has done this one
    batch = settings.batch or (2 if settings.quick else _default_batch(settings.device))
    run = _make_run(settings, batch, steps=in_a_row * (rounds + 2))
    bare = BareNetworks(run.state.objective, batch, VIEW_SIZE, run.precision)
    with run.loader.batches() as batches:
        functions = {
            "step": _in_a_row(_next_step(run, batches), in_a_row, run.device),
            "network": _in_a_row(bare.step, in_a_row, run.device),
        }
        seconds = alternating(functions, rounds, warmup=2)
    step, network = (median(seconds[name]) / in_a_row for name in ("step", "network"))
    rate = bare.flop() / network
    convolution, product = (of(run.device, run.precision) for of in (convolution_rate, product_rate))
    return [
        Figure("batch", batch, "pairs", f"of two views of {' x '.join(map(str, VIEW_SIZE))} per step"),
        Figure("step_seconds", step, "s", "a training step, data loading included"),
        Figure("network_seconds", network, "s", "its bare encoder and heads"),
        Figure(
            "step_over_network",
            step / network,
            "",
            "a training step over its bare networks",
            "<= 1.15" if on_gpu else "<= 1.10",
        ),
        Figure("network_gflops", rate / 1e9, "GFLOP/s", "of the bare networks"),
        Figure("convolution_gflops", convolution / 1e9, "GFLOP/s", "of one large convolution, forward and backward"),
        Figure("product_gflops", product / 1e9, "GFLOP/s", "of one large matrix product"),
        Figure(
            "network_over_hardware",
            rate / (product if on_gpu else convolution),
            "",
            "bare networks over the large " + ("matrix product" if on_gpu else "convolution"),
            ">= 0.35" if on_gpu else ">= 0.85",
        ),
        Figure(
            "own_convolutions_over_network",
            bare.seconds_of_convolutions() / network,
            "",
            "each convolution of the networks on its own, added up, over the networks",
        ),
        Figure("steps_per_second", 1 / step, "1/s", "training steps"),
        Figure(
            "paper_schedule_hours",
            _PAPER_STEPS * _PAPER_BATCH / batch * step / 3600,
            "h",
            "the paper's 7,060 steps of 128 pairs at this rate, data loading included",
        ),
    ]


def _default_batch(device: torch.device) -> int:
    return _CUDA_BATCH if device.type == "cuda" else _CPU_BATCH


def _make_run(settings: Settings, batch: int, steps: int) -> Run:
    """A run as `pgl_pretrain` makes it, on stored phantoms, before its first step."""
    scans = store_scans(settings.folder / "scans", 2 if settings.quick else 8)
    config = PretrainConfig(
        ("benchmark",),
        views=ViewSettings(VIEW_SIZE),
        epochs=1,
        batch_size=batch,
        pairs_per_epoch=batch * steps,
        optimizer="lars",
    )
    runtime = Runtime(settings.device.type, Processes(), loading_workers(settings.device.type))
    return Run(config, Pool(scans, scans[:1]), settings.folder, runtime, RunLog(None))


def _next_step(run: Run, batches: Iterator[ViewPairBatch]) -> Callable[[], None]:
    """A function that makes the next training step each time it is called."""
    numbers = iter(range(run.steps))
    return lambda: run.step(next(numbers), batches)


def _in_a_row(function: Callable[[], object], times: int, device: torch.device) -> Callable[[], None]:
    def call() -> None:
        for _ in range(times):
            function()
        synchronise(device)

    return call
