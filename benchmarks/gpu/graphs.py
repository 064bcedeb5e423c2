"""Bare networks replayed as a CUDA graph over the same called kernel by kernel: what launching costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.report import Figure, Settings, alternating
from benchmarks.step import make_run, paper, times, view_size

_WARMUP = 3  # on another stream, as torch asks for before a capture


def measure(settings: Settings) -> Iterator[Figure | str]:
    """A few pairs, where it should count, and the paper's batch."""
    for pairs in (2,) if settings.quick else (8, 128):
        bare = bare_networks(settings, pairs)
        if settings.device.type != "cuda":
            yield "only CUDA has graphs: the networks are compared with themselves"
        replayed = _captured(bare) if settings.device.type == "cuda" else bare.step
        yield from compared(settings, {"graph": replayed, "eager": bare.step}, pairs, "a CUDA graph of")


def bare_networks(settings: Settings, pairs: int) -> BareNetworks:
    """Those of the paper's settings."""
    run = make_run(settings, paper(settings, pairs), steps=1, workers=0)
    return BareNetworks(run.state.objective, pairs, view_size(settings), run.precision)


def compared(
    settings: Settings, functions: dict[str, Callable[[], object]], pairs: int, words: str
) -> Iterator[Figure]:
    """Figures of two functions that take turns: the changed networks, and "eager" ones."""
    in_a_row = 1 if settings.quick else 5
    rounds = 1 if settings.quick else 7
    calls = {name: times(in_a_row, function, settings.device) for name, function in functions.items()}
    seconds = alternating(calls, rounds, warmup=1, limit=settings.share(0.3))
    (name,) = functions.keys() - {"eager"}
    changed, eager = (median(seconds[key]) / in_a_row for key in (name, "eager"))
    yield Figure(f"network_seconds_{name}_{pairs}", changed, "s", f"{words} the bare networks, {pairs} pairs")
    yield Figure(f"network_{name}_over_eager_{pairs}", changed / eager, "", "the same over them as they are")


def _captured(bare: BareNetworks) -> Callable[[], None]:
    """A replay of one step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARMUP):
            bare.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bare.step()
    return graph.replay
