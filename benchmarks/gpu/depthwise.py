"""Depthwise convolutions of the segmenter, in each precision and memory layout: cuDNN has kernels for few of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.bare_networks import calls_of, layer_seconds
from benchmarks.finetuning import extent_of
from benchmarks.nnunet_networks import BATCH
from benchmarks.report import Figure, Settings
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.networks.aspp import DepthwiseConv
from nnunetv2_pgl.networks.hardware import prepare_device

_LAYOUTS = {"channels_last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def measure(settings: Settings) -> Iterator[Figure | str]:
    """All of them for one fine-tuning batch, forward and backward, each on its own, added up."""
    prepare_device(settings.device)
    patch = extent_of(settings).patch
    network = PGLSegmenter(1, 3, norm="instance").to(settings.device)
    with torch.no_grad(), calls_of(network, DepthwiseConv) as calls:
        network(torch.zeros(BATCH, 1, *patch, device=settings.device))
    rounds = 1 if settings.quick else 5
    slowest: list[str] = []
    for name, dtype in _TYPES.items():
        for layout, memory_format in _LAYOUTS.items():
            network.to(memory_format=memory_format)
            seconds = [layer_seconds(layer, shape, dtype, memory_format, rounds) for layer, shape in calls]
            words = f"{len(calls)} depthwise convolutions, {BATCH} patches of {' x '.join(map(str, patch))}, {layout}"
            yield Figure(f"depthwise_seconds_{name}_{layout}", sum(seconds), "s", f"{words}, {name}")
            longest, (layer, shape) = max(zip(seconds, calls, strict=True), key=lambda pair: pair[0])
            slowest.append(f"{name} {layout} {longest:.3g} s for {shape[1]} channels of {tuple(shape[2:])}, {layer}")
    yield from ("slowest of them:", *slowest)
