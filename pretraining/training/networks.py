"""The networks of a run, with random weights: the method's, its encoder alone, its segmenter."""

from __future__ import annotations

import numpy as np
import torch

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import (
    Encoder,
    PGLSegmenter,
    PlannedEncoder,
    PlannedSegmenter,
    ResNet50Encoder,
    Segmenter,
)
from pretraining.objectives import Objective
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig


def make_objective(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    """The method's networks with random weights, on torch's default device."""
    torch.manual_seed(config.seed)
    network = make_segmenter(config) if METHODS[config.method].has_decoder else make_encoder(config)
    objective, options = OBJECTIVES[config.method]
    return objective(network, **options(config), precision=precision).train()


def make_encoder(config: PretrainConfig) -> Encoder:
    """The encoder alone, with random weights, on torch's default device."""
    network = config.planned_network
    if network is not None:
        return PlannedEncoder(network, config.encoder_channels, config.padding)
    return ResNet50Encoder(config.encoder_channels, config.encoder_strides, config.norm, padding=config.padding)


def make_segmenter(config: PretrainConfig) -> Segmenter:
    """The encoder with a decoder that has as many output as input channels."""
    network, channels = config.planned_network, config.encoder_channels
    if network is not None:
        return PlannedSegmenter(network, channels, channels, config.padding)
    return PGLSegmenter(channels, channels, config.encoder_strides, config.norm, padding=config.padding)


def bytes_drawn(config: PretrainConfig) -> int:
    """Bytes that a loading process draws for a view besides its geometry and intensity."""
    drawn = OBJECTIVES[config.method].objective.draw(config.views.size, np.random.default_rng(0))
    return sum(values.nbytes for values in drawn.values())
