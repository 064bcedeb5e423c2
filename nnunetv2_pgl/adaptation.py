"""Weights of a convolution for other channels, axes or kernels, where a rule keeps what it computes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.errors import counted

CHANNEL_RULE = "number of input channels"
KERNEL_RULE = "kernel size"

_ALIAS = re.compile(r"\.all_modules\.(\d+)\.")
_BLOCK = re.compile(r"^stages\.(\d+)\.(?:blocks|0\.convs)\.(\d+)\.")


@dataclass(frozen=True)
class Adapted:
    """A weight that was made to fit, which of `CHANNEL_RULE` and `KERNEL_RULE` that took, and how, in words."""

    weight: Tensor
    rules: tuple[str, ...]
    how: str


def canonical(key: str) -> str:
    """The first of the two names that nnU-Net's networks have for a parameter.

    Their blocks hold a convolution as ``conv`` and as ``all_modules.0``, its norm as ``norm`` and as a later entry of
    ``all_modules``. Checkpoints have both names, or one of them.
    """
    return _ALIAS.sub(lambda match: ".conv." if match[1] == "0" else ".norm.", key)


def unaliased(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One entry per parameter, under its `canonical` name; a ValueError if its two names have different values."""
    kept: dict[str, Tensor] = {}
    for key, value in weights.items():
        former = kept.setdefault(canonical(key), value)
        if former.data_ptr() != value.data_ptr() and not torch.equal(former, value):
            raise ValueError(f"{canonical(key)} and {key} are one parameter in nnU-Net's networks, but differ")
    return kept


def blocks_per_stage(keys: Iterable[str]) -> dict[int, int]:
    """How many blocks (or convolutions, without residuals) each stage of an nnU-Net encoder has, by its keys."""
    blocks: dict[int, int] = {}
    for match in filter(None, map(_BLOCK.match, keys)):
        blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    return blocks


def stage_of(key: str) -> int | None:
    """The stage of an nnU-Net encoder that a key belongs to; None for a stem and for other encoders."""
    match = _BLOCK.match(key)
    return int(match[1]) if match else None


def adapt(weight: Tensor, shape: torch.Size, is_first: bool, image_channels: int | None = None) -> Adapted | None:
    """A convolution's weight (out, in, z, y, x) in another shape, or None where no rule is sound.

    One image channel becomes n by repeating and dividing by n: an image repeated over n channels gives the same
    features. n become one by summing: the image gives what it gave in all n channels. Input channels after those of the
    image, in nnU-Net's cascade the one-hot segmentation of the previous stage, get zeros: the features are those of the
    image alone, whatever that stage has found. A kernel of one voxel along an axis becomes one of three with zeros on
    both sides: the same function. One of three becomes one of one by summing: the same on images that are constant
    along that axis.

    Args:
        weight: As in the checkpoint; all its input channels are images.
        shape: As in the network.
        is_first: Whether it is the convolution that sees the image; only there channels may differ.
        image_channels: How many of its input channels in the network, the first ones, are images; None for all.
    """
    if weight.ndim != 5 or len(shape) != 5 or weight.shape[0] != shape[0]:
        return None
    rules: list[str] = []
    how: list[str] = []
    images = image_channels if is_first and image_channels is not None else shape[1]
    if weight.shape[1] != images or images != shape[1]:
        if not is_first or not channels_fit(weight.shape[1], images):
            return None
        rules.append(CHANNEL_RULE)
        weight, how = _with_channels(weight, images, shape[1] - images)
    if weight.shape[2:] != shape[2:]:
        sizes = zip(weight.shape[2:], shape[2:], strict=True)
        if any(before != after and {before, after} != {1, 3} for before, after in sizes):
            return None
        rules.append(KERNEL_RULE)
        how.append("kernel " + " to ".join(" x ".join(map(str, size[2:])) for size in (weight.shape, shape)))
        thinner = [axis for axis in (2, 3, 4) if weight.shape[axis] > shape[axis]]
        weight = weight.sum(dim=thinner, keepdim=True) if thinner else weight
        beside = [(shape[axis] - weight.shape[axis]) // 2 for axis in (4, 3, 2)]  # F.pad counts from the last axis
        weight = F.pad(weight, [cells for cells in beside for _ in ("before", "after")])
    return Adapted(weight, tuple(rules), ", ".join(how))


def with_axes(weights: Mapping[str, Tensor], axes: Sequence[int]) -> dict[str, Tensor]:
    """Weights for images whose axes come in another order; what they compute is turned with the image.

    Args:
        weights: Convolutions are (out, in, z, y, x), transposed ones (in, out, z, y, x).
        axes: For each axis of the new images, which of the old ones it is.
    """
    order = (0, 1, *(2 + axis for axis in axes))
    return {key: weight.permute(order) if weight.ndim == 5 else weight for key, weight in weights.items()}


def channels_fit(there: int, here: int) -> bool:
    """Whether there is a rule from this number of image channels to that one."""
    return there == here or min(there, here) == 1


def _with_channels(weight: Tensor, images: int, others: int) -> tuple[Tensor, list[str]]:
    """The weight for another number of input channels, and what was done, in words."""
    there = weight.shape[1]
    if there == images:
        how = [f"unchanged for {counted(images, 'image channel')}"]
    elif there == 1:
        weight = weight.repeat(1, images, 1, 1, 1) / images
        how = [f"repeated over {images} channels and divided by {images}"]
    else:
        weight = weight.sum(dim=1, keepdim=True)
        how = [f"summed over {there} channels"]
    if others:
        weight = torch.cat((weight, weight.new_zeros(weight.shape[0], others, *weight.shape[2:])), dim=1)
        how.append(f"zeros for {counted(others, 'channel')} of the previous stage")
    return weight, how
