"""The recommended settings, those of a run without options: few pairs, so that launching kernels counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.report import Figure, Settings
from benchmarks.step import step_and_network, view_size
from pretraining.settings.config import recommended


def measure(settings: Settings) -> Iterator[Figure]:
    """A step over its bare networks, as `benchmarks.step` does it with the paper's."""
    config = recommended()
    if settings.quick:
        config = replace(config, batch_size=2, views=replace(config.views, size=view_size(settings)))
    step, network, _ = step_and_network(settings, config)
    about = f"recommended settings, {config.batch_size} pairs"
    yield Figure("recommended_step_seconds", step, "s", f"{about}: a training step, data loading included")
    yield Figure("recommended_network_seconds", network, "s", f"{about}: its bare encoder and heads")
    yield Figure("recommended_step_over_network", step / network, "", f"{about}: one over the other")
    yield Figure("recommended_samples_per_second", config.batch_size / step, "pairs/s", f"{about}, loading included")
