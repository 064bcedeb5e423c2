"""Feeding: view pairs per second and core, from the files to augmented views, ours and a reference pipeline's.

One thread, files in the page cache, pairs of 16 x 96 x 96 views of several scans of 120 x 400 x 400. Ours and the
reference take turns. Seconds are the process's CPU time: what one thread takes on a core that it has for itself, even
if other programs run beside the benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks import reference_pipeline
from benchmarks.reference_pipeline import ReferencePipeline
from benchmarks.report import Figure, Settings, alternating, paired_ratio
from benchmarks.scans import SCAN_SHAPE, make_scan, store_scan
from pretraining.data import Volume
from pretraining.views import ViewPairBatch, ViewPairDataset, ViewSettings, sample_view_pair, source_box
from pretraining.views.rendering import render_crops

_QUICK_SHAPE = (40, 160, 160)


def measure(settings: Settings) -> list[Figure]:
    """Reading, our whole CPU path and the reference, taking turns; the device plays no part."""
    shape = _QUICK_SHAPE if settings.quick else SCAN_SHAPE
    scans, pairs, rounds = (2, 2, 2) if settings.quick else (6, settings.batch or 16, 20)
    views = ViewSettings()
    volumes = []
    for seed in range(scans):
        image = make_scan(seed, shape)
        volumes.append(store_scan(image, settings.folder / "ours" / f"scan_{seed}.b2nd"))
        reference_pipeline.store(image, settings.folder / "nnunet", f"scan_{seed}", views.size)
    references = {
        "reference": ReferencePipeline(settings.folder / "nnunet", views),
        "lean reference": ReferencePipeline(settings.folder / "nnunet", views, lean=True),
    }
    with _one_thread():
        seconds = alternating(_functions(volumes, views, references, pairs), rounds, warmup=3, clock=time.process_time)
    return _figures({name: [value / pairs for value in values] for name, values in seconds.items()})


def _functions(
    volumes: list[Volume], views: ViewSettings, references: dict[str, ReferencePipeline], pairs: int
) -> dict[str, Callable[[], object]]:
    """What takes turns; each call works on other pairs."""
    dataset = ViewPairDataset(volumes, views, seed=0)
    read_draws, feed_draws, boxes = count(), count(1 << 20), _boxes(volumes, views)

    def read(draws: Iterator[int]) -> ViewPairBatch:
        numbers = [next(draws) for _ in range(pairs)]
        return ViewPairBatch.collate([dataset[number, number % len(volumes)] for number in numbers])

    batch = read(count(1 << 21))
    indices = [number % len(volumes) for number in range(pairs)]

    def read_alone() -> None:
        for _ in range(2 * pairs):
            volume, start, stop = next(boxes)
            volume.read(0, start, stop)

    return {
        "read": lambda: read(read_draws),
        "read alone": read_alone,
        "feed": lambda: read(feed_draws).render(views.size),
        "reference": lambda: references["reference"].batch(indices),
        "lean reference": lambda: references["lean reference"].batch(indices),
        "reference read": lambda: [references["reference"].read(index) for index in indices],
        "render": lambda: _render(batch, views),
        "render, intensity": lambda: batch.render(views.size),
    }


def _render(batch: ViewPairBatch, views: ViewSettings) -> Tensor:
    """What `ViewPairBatch.render` does before the intensity changes."""
    rendered = render_crops(batch.crops, batch.origins, batch.extents, batch.geometries, views.size)
    return rendered.sub_(batch.mean.view(-1, 1, 1, 1, 1)).div_(batch.std.view(-1, 1, 1, 1, 1))


def _boxes(volumes: list[Volume], views: ViewSettings) -> Iterator[tuple[Volume, tuple[int, ...], tuple[int, ...]]]:
    """Boxes to read, drawn beforehand, so that drawing them is not measured."""
    rng = np.random.default_rng(1)
    drawn = []
    for number in range(256):
        volume = volumes[number % len(volumes)]
        for geometry in sample_view_pair(volume.shape[1:], views.size, rng):
            drawn.append((volume, *source_box(geometry, volume.shape[1:])))
    while True:
        yield from drawn


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _figures(seconds: dict[str, list[float]]) -> list[Figure]:
    """From seconds per pair."""
    per_second = {name: 1 / median(values) for name, values in seconds.items()}
    ms = {name: 1000 * median(values) for name, values in seconds.items()}
    each = "per pair"
    return [
        Figure(
            "read_pairs_per_second_per_core",
            per_second["read"],
            "pairs/s",
            "drawing geometry and intensity, reading both crops, collating",
            ">= 300",
        ),
        Figure("read_alone_pairs_per_second_per_core", per_second["read alone"], "pairs/s", "Volume.read, two crops"),
        Figure("read_alone_crops_per_second_per_core", 2 * per_second["read alone"], "crops/s", "Volume.read"),
        Figure(
            "feed_over_reference",
            paired_ratio(seconds, "reference", "feed"),
            "",
            "whole CPU path over nnU-Net's store and batchgeneratorsv2",
            ">= 3",
        ),
        Figure(
            "feed_over_lean_reference",
            paired_ratio(seconds, "lean reference", "feed"),
            "",
            "the same, had batchgeneratorsv2 a transform that resizes axis by axis",
        ),
        Figure("feed_pairs_per_second_per_core", per_second["feed"], "pairs/s", "our whole CPU path"),
        Figure("reference_pairs_per_second_per_core", per_second["reference"], "pairs/s", "the reference's"),
        Figure("feed_read_ms", ms["read"], "ms", f"our reading with drawing and collating, {each}"),
        Figure("feed_render_ms", ms["render"], "ms", f"our rendering and z-scoring, {each}"),
        Figure(
            "feed_intensity_ms",
            ms["render, intensity"] - ms["render"],
            "ms",
            f"our noise, blur, brightness and gamma, {each}",
        ),
        Figure("reference_read_ms", ms["reference read"], "ms", f"the reference's reading, {each}"),
        Figure(
            "reference_transform_ms",
            ms["reference"] - ms["reference read"],
            "ms",
            f"the reference's transforms, {each}",
        ),
    ]
