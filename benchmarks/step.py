"""Goals 1 and 2: a training step over its bare networks, and these over what the hardware can do.

The step is the training loop's own: pairs from stored scans through the data loader, rendering and intensity changes,
both paths, alignment, loss, backward pass, optimiser (LARS) and target update. The bare networks are the same encoder
and heads in the same precision, online path forward and backward and target path forward, on views that are already in
place. The two take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.hardware import convolution_rate, product_rate
from benchmarks.report import Figure, Settings, alternating, synchronise
from benchmarks.scans import VIEW_SIZE, store_scans
from pretraining.data import Volume
from pretraining.launching.distributed import Processes
from pretraining.settings.config import PretrainConfig
from pretraining.training.loop import Runtime, TrainingLoop
from pretraining.training.pool import Pool
from pretraining.training.pretrain import loading_workers
from pretraining.training.progress import RunLog
from pretraining.views import ViewPairBatch, ViewSettings

_CPU_BATCH = 16
PAPER_STEPS, PAPER_BATCH = 7000, 128  # section 5.1: 500 epochs of 1808 scans, 14 whole batches each


def measure(settings: Settings) -> Iterator[Figure]:
    """Runs whole steps and bare networks in turn, then convolutions and a matrix product."""
    on_gpu, views = settings.device.type == "cuda", " x ".join(map(str, view_size(settings)))
    batch = settings.batch or (2 if settings.quick else default_batch(settings.device))
    step, network, bare = step_and_network(settings, paper(settings, batch))
    hours = PAPER_STEPS * PAPER_BATCH / batch * step / 3600
    goal = "<= 1.15" if on_gpu else "<= 1.10"
    yield Figure("batch", batch, "pairs", f"of two views of {views} per step")
    yield Figure("step_seconds", step, "s", "a training step, data loading included")
    yield Figure("network_seconds", network, "s", "its bare encoder and heads")
    yield Figure("step_over_network", step / network, "", "a training step over its bare networks", goal)
    yield Figure("steps_per_second", 1 / step, "1/s", "training steps")
    yield Figure(
        "paper_schedule_hours", hours, "h", "the paper's 7,000 steps of 128 pairs at this rate, data loading included"
    )
    rate = bare.flop() / network
    product = product_rate(settings.device, bare.precision, settings.quick)
    convolution = convolution_rate(settings.device, bare.precision, settings.quick)
    large, kind, goal = (product, "matrix product", ">= 0.35") if on_gpu else (convolution, "convolution", ">= 0.85")
    yield Figure("network_gflops", rate / 1e9, "GFLOP/s", "of the bare networks")
    yield Figure("product_gflops", product / 1e9, "GFLOP/s", "of one large matrix product")
    yield Figure("convolution_gflops", convolution / 1e9, "GFLOP/s", "of one large convolution, forward and backward")
    yield Figure("network_over_hardware", rate / large, "", f"bare networks over the large {kind}", goal)
    yield Figure(
        "own_convolutions_over_network",
        bare.seconds_of_convolutions() / network,
        "",
        "each convolution of the networks on its own, added up, over the networks",
    )


def step_and_network(settings: Settings, config: PretrainConfig) -> tuple[float, float, BareNetworks]:
    """Seconds of a training step, data loading included, and of its bare networks, in turn; and these networks."""
    rounds, warmup = (1, 1) if settings.quick else (9, 2)
    in_a_row = 10 if settings.device.type == "cuda" else 1  # the next step is queued before a GPU has finished this one
    run = make_run(settings, config, steps=in_a_row * (rounds + warmup))
    bare = BareNetworks(run.state.objective, config.batch_size, config.views.size, run.precision)
    with run.loader.batches() as batches:
        functions = {
            "step": times(in_a_row, next_step(run, batches), run.device),
            "network": times(in_a_row, bare.step, run.device),
        }
        seconds = alternating(functions, rounds, warmup, limit=settings.share(0.6))
    return median(seconds["step"]) / in_a_row, median(seconds["network"]) / in_a_row, bare


def paper(settings: Settings, batch: int) -> PretrainConfig:
    """The paper's settings but for the pairs per step; pool and length are of no matter here."""
    return PretrainConfig(("benchmark",), views=ViewSettings(view_size(settings)), batch_size=batch, optimizer="lars")


def view_size(settings: Settings) -> tuple[int, int, int]:
    """The paper's, or a small one."""
    return (8, 32, 32) if settings.quick else VIEW_SIZE


def default_batch(device: torch.device) -> int:
    """Pairs per step: the paper's on a GPU."""
    return PAPER_BATCH if device.type == "cuda" else _CPU_BATCH


def make_run(settings: Settings, config: PretrainConfig, steps: int, workers: int | None = None) -> TrainingLoop:
    """A run of one epoch as `pgl_pretrain` makes it, on stored phantoms, before its first step."""
    scans, kind = stored_scans(settings), settings.device.type
    config = replace(config, epochs=1, pairs_per_epoch=config.batch_size * steps)
    runtime = Runtime(kind, Processes(), loading_workers(kind) if workers is None else workers)
    return TrainingLoop(config, Pool(scans, scans[:1]), settings.folder, runtime, RunLog(None))


def stored_scans(settings: Settings) -> list[Volume]:
    """Phantoms on the grid of a CT, or a few small ones."""
    folder = settings.folder / "scans"
    return store_scans(folder, 2, (24, 80, 80)) if settings.quick else store_scans(folder, 8)


def next_step(run: TrainingLoop, batches: Iterator[ViewPairBatch]) -> Callable[[], None]:
    """A function that makes the next training step each time it is called."""
    numbers = iter(range(run.steps))
    return lambda: run.step(next(numbers), batches)


def times(count: int, function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """A function that calls another one so often, and waits for the device at the end."""

    def call() -> None:
        for _ in range(count):
            function()
        synchronise(device)

    return call
