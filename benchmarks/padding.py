"""What replicate padding costs: bare networks with it over the same with zeros, in turn.

On a GPU zeros are part of the convolution and cost nothing; replicated cells are a gather before it. On a CPU oneDNN
leaves out the products with zeros, a large part of all in maps of a few cells, which replicated cells cannot: there the
ratio is arithmetic, not copying. `tests/networks/test_padding.py` counts that no other memory layout is made.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.report import Figure, Settings, alternating, synchronise
from nnunetv2_pgl.networks import Encoder, PaddingName, PlannedEncoder, PlannedNetwork, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import autocast_type
from pretraining.objectives import PGL

_PADDINGS: tuple[PaddingName, ...] = ("replicate", "zeros")
_VIEWS = {"resnet50_paper": (16, 96, 96), "resnet50": (32, 40, 32), "plain": (32, 64, 64), "resenc_m": (32, 64, 64)}


def measure(settings: Settings) -> list[Figure]:
    """One ratio for each network."""
    return [_ratio(name, size, settings) for name, size in _VIEWS.items()]


def _ratio(name: str, size: tuple[int, int, int], settings: Settings) -> Figure:
    pairs = 1 if settings.quick else settings.batch or (64 if settings.device.type == "cuda" else 2)
    steps: dict[str, Callable[[], object]] = {
        padding: _step(name, size, pairs, padding, settings.device) for padding in _PADDINGS
    }
    seconds = alternating(steps, 2 if settings.quick else 5, warmup=1)
    ratio = median(seconds["replicate"]) / median(seconds["zeros"])
    about = f"{name}, views of {' x '.join(map(str, size))}: replicate padding over zeros"
    return Figure(f"padding_{name}", ratio, "", about, "<= 1.05")


def _step(
    name: str, size: tuple[int, int, int], pairs: int, padding: PaddingName, device: torch.device
) -> Callable[[], None]:
    precision = autocast_type(device)
    objective = PGL(_encoder(name, size, padding), size, precision=precision).to(device)
    bare = BareNetworks(objective, pairs, size, precision)

    def step() -> None:
        bare.step()
        synchronise(device)

    return step


def _encoder(name: str, size: tuple[int, int, int], padding: PaddingName) -> Encoder:
    if name == "resnet50_paper":
        return ResNet50Encoder(norm="batch", padding=padding)
    if name == "resnet50":
        return ResNet50Encoder(strides=(8, 8, 8), norm="instance", padding=padding)
    network = PlannedNetwork.from_preset("plain" if name == "plain" else "resenc_m", size, (1.0, 1.0, 1.0))
    return PlannedEncoder(network, padding=padding)
