"""What a run starts from: the device's settings, the networks and the optimiser."""

from __future__ import annotations

import ctypes
import sys

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
from pretraining.training.optimisation import make_optimizer
from pretraining.training.state import TrainingState
from pretraining.views.pairs import Draw

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_device(device: torch.device) -> None:
    """Settings of the whole process that make steps of always the same sizes fast."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


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


def drawing_function(method: str) -> Draw:
    """`Objective.draw` of a method, which needs no networks."""
    return OBJECTIVES[method].objective.draw


def bytes_drawn(config: PretrainConfig) -> int:
    """Bytes that a loading process draws for a view besides its geometry and intensity."""
    drawn = drawing_function(config.method)(config.views.size, np.random.default_rng(0))
    return sum(values.nbytes for values in drawn.values())


def initial_state(config: PretrainConfig, device: torch.device, precision: torch.dtype | None) -> TrainingState:
    """A run before its first epoch."""
    objective = make_objective(config, precision).to(device)
    optimizer = make_optimizer(config.optimizer_name, objective, config.peak_learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type) if precision is torch.float16 else None
    return TrainingState(objective, optimizer, config=config.to_dict(), scaler=scaler)


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
