"""Iterations of fine-tuning with networks compiled as nnU-Net compiles them on CUDA unless told not to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median

from benchmarks.finetuning import extent_of, iteration
from benchmarks.nnunet_networks import BATCH, NETWORKS, make_plans, make_trainer, nnunet_folders
from benchmarks.report import Figure, Settings, alternating


def measure(settings: Settings) -> Iterator[Figure]:
    """One network after the other, since compiling takes long; ratios to those that are there."""
    os.environ.update(nnUNet_compile="t")
    extent = extent_of(settings)
    patch = " x ".join(map(str, extent.patch))
    seconds: dict[str, float] = {}
    with nnunet_folders(settings.folder):
        for name, (_, planner) in NETWORKS.items():
            trainer = make_trainer(name, make_plans(planner, extent.patch), settings.device)
            measured = alternating({name: iteration(trainer)}, extent.rounds, extent.warmup, limit=settings.share(0.1))
            seconds[name] = median(measured[name])
            about = f"{name}, compiled: training iteration, {BATCH} patches of {patch}"
            yield Figure(f"finetune_seconds_{name}_compiled", seconds[name], "s", about)
    for peer in ("default", "resenc_l"):
        yield Figure(f"finetune_over_{peer}_compiled", seconds["pgl"] / seconds[peer], "", "both compiled")
