"""Throughput of one and of two training processes on a CPU, each with one thread and a batch of the same size.

What is timed are the epochs of `train` as `pgl_pretrain` runs them: crops from disk, views, both paths, exchange of
gradients and of the norms' statistics, update; not the measurement of the correspondence after each epoch.
"""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.multiprocessing import spawn

from benchmarks.report import Figure, Settings
from benchmarks.scans import SCALE, VIEW_SIZE, store_scans
from pretraining.data import Volume
from pretraining.launching.distributed import process_group
from pretraining.settings.config import PretrainConfig
from pretraining.training import loop
from pretraining.training.geometry_baselines import validation_batches
from pretraining.training.progress import RunLog
from pretraining.views import ViewSettings

_PAIRS = 4  # per process and step


def measure(settings: Settings) -> list[Figure]:
    """Pairs per second of one process and of two, on CPUs only: several GPUs are measured where they are."""
    if settings.device.type != "cpu":
        return []
    pairs = 2 if settings.quick else settings.batch or _PAIRS
    volumes = store_scans(settings.folder / "scale_out", 2, (20, 60, 60) if settings.quick else (40, 200, 200))
    one, two = (_pairs_per_second(settings, volumes, pairs, count) for count in (1, 2))
    each = f"{pairs} pairs per step, one thread"
    return [
        Figure("scale_out_1_process_pairs_per_second", one, "pairs/s", f"training in one process: {each}"),
        Figure("scale_out_2_processes_pairs_per_second", two, "pairs/s", f"in two processes over gloo, each: {each}"),
        Figure("scale_out_efficiency", two / (2 * one), "", "two processes over twice one"),
    ]


def _pairs_per_second(settings: Settings, volumes: list[Volume], pairs: int, count: int) -> float:
    """Median over the epochs after the first, of all processes together."""
    steps, epochs = (1, 2) if settings.quick else (3, 4)
    size = (6, 12, 16) if settings.quick else VIEW_SIZE
    config = PretrainConfig(
        datasets=(),
        views=ViewSettings(size=size, scale=SCALE),
        epochs=epochs,
        batch_size=count * pairs,
        pairs_per_epoch=steps * count * pairs,
        optimizer="lars",
    )
    folder = settings.folder / f"scale_out_{count}"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_train, (count, port, config, volumes, folder), count)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return median(record["scans_per_second"] for record in records[1:])


def _train(rank: int, count: int, port: int, config: PretrainConfig, volumes: list[Volume], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    loop.validation_batches = partial(validation_batches, pairs=2)  # not timed, so as few as possible
    with process_group("cpu") as processes:
        torch.set_num_threads(1)
        runtime = loop.Runtime("cpu", processes, workers=0, save_every=config.epochs)
        loop.train(config, loop.Pool(volumes, []), folder, runtime, RunLog(None), resume=False)
