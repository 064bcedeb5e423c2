"""Tables of weights of nnU-Net's networks: what their names and shapes tell of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nnunetv2_pgl.adaptation import blocks_per_stage, canonical
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.planned import IMPORTED, LAYERS, PLAIN, RESIDUAL, PlannedNetwork

ENCODER = "encoder."
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm3d"
_NOT_IN_DECODER = ("decoder.encoder.", "decoder.seg_layers.")
_DECODER_BLOCK = re.compile(r"^decoder\.stages\.(\d{1,3})\.(?:convs|blocks)\.(\d{1,3})\.")


@dataclass(frozen=True)
class EncoderShape:
    """What the encoder's weights tell of it.

    Attributes:
        is_residual: Whether it is the residual encoder.
        channels: Of each stage.
        kernels: Of each stage.
        blocks: Blocks, or without residuals convolutions, of each stage.
    """

    is_residual: bool
    channels: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> EncoderShape:
        """The shape of an encoder with these weights, keys as in `EncoderCheckpoint.encoder_weights`.

        Raises:
            PGLError: It is 2D, or not an encoder of nnU-Net's PlainConvUNet or ResidualEncoderUNet.
        """
        names = {canonical(key): value for key, value in weights.items()}
        blocks = blocks_per_stage(names)
        is_residual = "stem.convs.0.conv.weight" in names
        first = "stages.{}.blocks.0.conv1.conv.weight" if is_residual else "stages.{}.0.convs.0.conv.weight"
        convolutions = [names.get(first.format(stage)) for stage in range(len(blocks))]
        known = [convolution for convolution in convolutions if convolution is not None]
        if not known or len(known) < len(blocks) or any(".conv3." in key for key in names):  # conv3: of bottlenecks
            raise PGLError(
                "weights of a network that is neither nnU-Net's PlainConvUNet nor its ResidualEncoderUNet (its "
                f"encoder's begin with {next(iter(weights), 'nothing')[:60]}), which fit none of the encoders here"
            )
        if any(convolution.ndim != 5 for convolution in known):
            raise PGLError("a network of 2D convolutions; use a model of a 3D configuration such as 3d_fullres")
        kernels = tuple(tuple(convolution.shape[2:]) for convolution in known)
        counts = tuple(blocks[stage] for stage in range(len(blocks)))
        return cls(is_residual, tuple(convolution.shape[0] for convolution in known), kernels, counts)

    @classmethod
    def of_network(cls, network: PlannedNetwork) -> EncoderShape:
        """The shape that a plan describes."""
        stages, kwargs = len(network.channels), network.kwargs
        counts = np.broadcast_to(kwargs[_blocks_name(network.is_residual)], stages)
        kernels = [tuple(int(size) for size in np.broadcast_to(kernel, 3)) for kernel in kwargs["kernel_sizes"]]
        return cls(network.is_residual, network.channels, tuple(kernels), tuple(int(count) for count in counts))

    @property
    def name(self) -> str:
        """The class of the U-Net."""
        return (RESIDUAL if self.is_residual else PLAIN).rsplit(".", 1)[-1]


def split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's weights without prefix, and those of the decoder that do not depend on the classes."""
    encoder = {key.removeprefix(ENCODER): value for key, value in weights.items() if key.startswith(ENCODER)}
    decoder = {key: value for key, value in weights.items() if key.startswith(("decoder.", "aspp."))}
    return encoder, {key: value for key, value in decoder.items() if not key.startswith(_NOT_IN_DECODER)}


def has_batch_norm(weights: Mapping[str, Tensor]) -> bool:
    """Whether a norm has running statistics."""
    return any(key.endswith(".running_mean") for key in weights)


def first_convolution(weights: Mapping[str, Tensor]) -> Tensor:
    """The weight that sees the image, (out, in, z, y, x): encoders register it first."""
    return next(value for value in weights.values() if value.ndim == 5)


def network_of_weights(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> tuple[dict[str, Any], bool]:
    """The network as in ``pgl["architecture"]["network"]``, as far as its weights tell, and whether strides are known.

    Strides are the kernels of the decoder's transposed convolutions; without them they are left out.

    Raises:
        PGLError: It is not known here, see `EncoderShape.of_weights`.
    """
    shape = EncoderShape.of_weights(encoder)
    stages = len(shape.channels)
    kwargs: dict[str, Any] = {
        **LAYERS,
        "n_stages": stages,
        "features_per_stage": list(shape.channels),
        "kernel_sizes": [list(kernel) for kernel in shape.kernels],
        _blocks_name(shape.is_residual): list(shape.blocks),
        "conv_bias": any(key.endswith(".conv.bias") for key in encoder),
    }
    if has_batch_norm(encoder):
        kwargs["norm_op"] = BATCH_NORM
    ups = [decoder.get(f"decoder.transpconvs.{number}.weight") for number in reversed(range(stages - 1))]
    strides = [list(up.shape[2:]) for up in ups if up is not None]
    if is_known := len(strides) == len(ups):
        kwargs["strides"] = [[1, 1, 1], *strides]
        convolutions = [0] * len(ups)
        for match in filter(None, map(_DECODER_BLOCK.match, decoder)):
            if int(match[1]) < len(convolutions):
                convolutions[int(match[1])] = max(convolutions[int(match[1])], int(match[2]) + 1)
        kwargs["n_conv_per_stage_decoder"] = convolutions
    class_name = RESIDUAL if shape.is_residual else PLAIN
    return {"class_name": class_name, "kwargs": kwargs, "requires_import": list(IMPORTED)}, is_known


def _blocks_name(is_residual: bool) -> str:
    return "n_blocks_per_stage" if is_residual else "n_conv_per_stage"
