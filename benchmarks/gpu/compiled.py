"""Bare networks compiled by torch.compile over the same as they are, with and without its own CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.gpu.graphs import bare_networks, compared
from benchmarks.report import Figure, Settings, synchronise
from benchmarks.step import default_batch


def measure(settings: Settings) -> Iterator[Figure]:
    """The paper's batch; the time of the first step is mostly that of compiling."""
    pairs = 2 if settings.quick else default_batch(settings.device)
    options = {"compiled": {}, "compiled_with_graphs": {"mode": "reduce-overhead"}}
    if settings.device.type != "cuda":  # a compiler of C++ would take minutes
        options = {"compiled": {"backend": "aot_eager"}}
    for name, chosen in options.items():
        torch.compiler.reset()
        eager, compiled = bare_networks(settings, pairs), bare_networks(settings, pairs)
        _compile(compiled, chosen)
        begin = time.perf_counter()
        compiled.step()
        synchronise(settings.device)
        yield Figure(f"seconds_until_{name}", time.perf_counter() - begin, "s", "first step of the compiled networks")
        yield from compared(settings, {name: compiled.step, "eager": eager.step}, pairs, "torch.compile of")


def _compile(bare: BareNetworks, options: dict[str, str]) -> None:
    """In place: encoders and heads of both paths."""
    objective = bare.objective
    heads = (objective.projectors[0], objective.predictors[0], objective.target_projectors[0])
    for module in (objective.encoder, objective.target_encoder, *heads):
        module.compile(dynamic=False, **options)
