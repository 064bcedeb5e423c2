"""Weights of an encoder checkpoint into networks: every key fits, or nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_pgl.checkpoint import CheckpointError, EncoderCheckpoint
from nnunetv2_pgl.networks import PGLSegmenter


@dataclass(frozen=True)
class LoadReport:
    """Which keys of an encoder came from a checkpoint: unchanged (``loaded``) or ``adapted`` to more channels."""

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]

    def __str__(self) -> str:
        adapted = f"; adapted to the number of input channels: {', '.join(self.adapted)}" if self.adapted else ""
        total = len(self.loaded) + len(self.adapted)
        return f"{total} of {total} encoder tensors loaded{adapted}"


def load_encoder(encoder: torch.nn.Module, weights: Mapping[str, Tensor], name: str) -> LoadReport:
    """Copies a checkpoint's weights into an encoder; every key must fit.

    A stem for one channel is repeated over the encoder's input channels and divided by their number, so that an image
    repeated over all channels gives the same features.

    Args:
        encoder: The encoder to fill.
        weights: `EncoderCheckpoint.encoder_weights`.
        name: The checkpoint's path, for messages.

    Raises:
        CheckpointError: If a key is missing, left over, or of another shape; the encoder is then unchanged.
    """
    own = encoder.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{name}: does not fit this encoder: {len(missing)} keys are missing ({_some(missing)}), {len(unexpected)} "
            f"are left over ({_some(unexpected)}); check with pgl_info which architecture and norm it is for"
        )
    adapted = {key: _adapt_channels(value, own[key].shape) for key, value in weights.items()}
    wrong = [
        f"{key} {tuple(adapted[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if adapted[key].shape != own[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{name}: an encoder of another size: {_some(wrong)}; check with pgl_info which architecture it is for"
        )
    encoder.load_state_dict(adapted)
    changed = tuple(key for key in own if weights[key].shape != own[key].shape)
    return LoadReport(tuple(key for key in own if key not in changed), changed)


def load_decoder(segmenter: PGLSegmenter, checkpoint: EncoderCheckpoint, name: str) -> int:
    """Copies ASPP and decoder from a checkpoint that has them; every key must fit. The head stays as it is.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: If the checkpoint has no decoder, or another one; the segmenter is then unchanged.
    """
    own, weights = segmenter.decoder_weights(), checkpoint.decoder_weights
    if not weights:
        raise CheckpointError(
            f"{name}: holds no decoder, since {checkpoint.pgl.get('method')} trains none; start from its encoder alone"
        )
    wrong = sorted(own.keys() ^ weights.keys()) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise CheckpointError(
            f"{name}: its decoder does not fit this segmenter ({_some(wrong)}); pre-train with the encoder strides of "
            "the plan (-strides), or start from the encoder alone"
        )
    segmenter.load_state_dict(weights, strict=False)
    return len(weights)


def _adapt_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Repeats a convolution's weight for one input channel over the channels of ``shape``."""
    needs_it = weight.ndim == 5 and len(shape) == 5 and weight.shape[1] == 1 and shape[1] > 1
    return weight.repeat(1, shape[1], 1, 1, 1) / shape[1] if needs_it else weight


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "") if items else "none"
