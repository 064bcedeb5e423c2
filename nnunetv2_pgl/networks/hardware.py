"""How networks are computed on CPUs and GPUs: precision, memory and its layout, and an instance norm without copies."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that networks are computed in, None for float32.

    bfloat16 on CUDA from Ampere on and on CPUs with AMX. On Volta and Turing (compute capability 7), whose tensor cores
    know no other type, float16: gradients need a loss scaler there. Older GPUs have no tensor cores.

    CPUs with AVX512-BF16 alone (AMD's Zen 4, Intel's Cooper Lake) could, but there oneDNN 3.12 (torch 2.14) returns
    arbitrary weight gradients for 3 x 3 x 3 convolutions of maps two voxels deep, such as the deepest ones of the
    paper's views, and for strided ones of maps one voxel high it writes beyond its memory.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        generation, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if generation >= 8 else torch.float16 if generation == 7 else None
    if device.type == "cpu":
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return torch.bfloat16 if has_amx is not None and has_amx() else None
    return None


def train_in_cpu_bfloat16(network: nn.Module) -> nn.Module:
    """Makes a network run under bfloat16 autocast when it trains on a CPU, with outputs in float32; returns it.

    nnU-Net uses autocast on CUDA only. In evaluation nothing changes, so that predictions are those of stock nnU-Net to
    the last bit. The network, which takes one tensor and returns logits or a list of them (deep supervision), gets a
    class derived from the one it has; its parameters and their names stay.
    """
    own = type(network)
    network.__class__ = type(own.__name__, (_CPUBfloat16, own), {"__module__": own.__module__, "__doc__": own.__doc__})
    return network


class _CPUBfloat16(nn.Module):
    """Comes before the class of a network."""

    def forward(self, x: Tensor) -> Any:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = super().forward(x)
        return [level.float() for level in logits] if isinstance(logits, list) else logits.float()


def memory_format_for(norm: str) -> torch.memory_format:
    """Channels last for batch norm, channels first for instance norm.

    Convolutions and batch norm are fastest with channels last. torch's instance norm copies such maps to channels
    first and leaves them there, so that every norm and every convolution would change the layout.
    """
    return torch.contiguous_format if norm == "instance" else torch.channels_last_3d


def lay_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """(B, C, D, H, W) in a memory format, copied only where it lies otherwise.

    Images of one channel are in both formats, but convolutions go by their strides: those of channels first are made
    sure of.
    """
    if memory_format == torch.contiguous_format:
        return x.flatten(1).view(x.shape)
    return x.contiguous(memory_format=memory_format)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's instance norm, made cheap to follow by an activation that works in place.

    torch returns a view of another tensor. Changed in place, that makes the backward pass copy the whole map three
    times: norm and activation together took 183 instead of 113 ms on a core (4 views of 64 x 16 x 48 x 48).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return torch.ops.aten._unsafe_view(super().forward(x), x.shape)


def use_own_instance_norm(network: nn.Module) -> None:
    """Replaces torch's instance norm by `InstanceNorm3d` everywhere in a network; weights and their names stay."""
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d:
            module.__class__ = InstanceNorm3d


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of DistributedDataParallel and torch.compile."""
    module = getattr(network, "module", network)
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def prepare_device(device: torch.device) -> None:
    """Settings of the whole process that make steps of always the same sizes fast."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep freed memory for the next step, on a CPU; returns whether that was possible.

    By default every tensor of more than 32 MiB is mapped when it is made and unmapped when it is freed, so each step
    asks the system for the same zeroed pages again: 680,000 page faults and a quarter of the time of a step of 32 views
    of 16 x 96 x 96. Kept, the step's peak stays reserved, which training needs anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
