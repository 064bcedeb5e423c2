"""The encoder that a checkpoint is of, as a module of its own."""

from __future__ import annotations

import os

from nnunetv2_pgl.checkpoint import CheckpointError, EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.networks import Encoder, PlannedEncoder, PlannedNetwork, ResNet50Encoder


def load_encoder_network(path: str | os.PathLike[str]) -> tuple[Encoder, EncoderCheckpoint]:
    """The pre-trained encoder, in evaluation mode, and the checkpoint it is from.

    Called with views (B, channels, D, H, W) that are normalised as the checkpoint's ``pgl["intensity"]`` says, it
    returns its maps, deepest last.

    Raises:
        CheckpointError: The file cannot be used, or holds other weights than its architecture has.
    """
    checkpoint = load_checkpoint(path)
    encoder = untrained_encoder(checkpoint, str(path))
    try:
        encoder.load_state_dict(checkpoint.encoder_weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its architecture; copy it again") from error
    return encoder.eval(), checkpoint


def untrained_encoder(checkpoint: EncoderCheckpoint, name: str) -> Encoder:
    """The same network with random weights; ``name`` is the checkpoint's, for messages.

    Raises:
        CheckpointError: The architecture is not known here.
    """
    architecture = checkpoint.architecture
    try:
        channels, padding = int(architecture["in_channels"]), architecture.get("padding", "zeros")
        if "network" in architecture:
            return PlannedEncoder(PlannedNetwork.of_dict(architecture["network"], name), channels, padding)
        norm, centred = architecture["norm"], architecture["centred"]
        return ResNet50Encoder(channels, architecture["strides"], norm, centred, padding)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its architecture is not known here ({error}); see pgl_info") from error
