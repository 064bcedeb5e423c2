"""What a run starts from: the device's settings, the networks and the optimiser."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nnunetv2_pgl.networks import (
    Encoder,
    PGLSegmenter,
    PlannedEncoder,
    PlannedSegmenter,
    ResNet50Encoder,
    Segmenter,
)
from pretraining.objectives import BYOL, MAE, PGL, PGLMAE, PGLNCE, ModelsGenesis, Objective
from pretraining.settings.config import Method, PretrainConfig
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
    """The networks with their random weights, on torch's default device."""
    torch.manual_seed(config.seed)
    objective = _OBJECTIVES[config.method](config, precision)
    return objective.train()


def _of_pgl(config: PretrainConfig, precision: torch.dtype | None) -> dict[str, Any]:
    """What all methods that align are told."""
    return {
        "view_size": config.views.size,
        "hidden_channels": config.hidden_channels,
        "out_channels": config.out_channels,
        "levels": config.levels,
        "interpolated_only": config.interpolated_only,
        "precision": precision,
    }


def _pgl(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    return PGL(make_encoder(config), **_of_pgl(config, precision))


def _pgl_nce(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    return PGLNCE(make_encoder(config), **_of_pgl(config, precision), temperature=config.temperature)


def _pgl_mae(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    masking: dict[str, Any] = {"mask_ratio": config.mask_ratio, "restoration_weight": config.restoration_weight}
    return PGLMAE(_segmenter(config), **_of_pgl(config, precision), **masking)


def _byol(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    return BYOL(make_encoder(config), config.hidden_channels, config.out_channels, precision)


def _models_genesis(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    return ModelsGenesis(_segmenter(config), precision=precision)


def _mae(config: PretrainConfig, precision: torch.dtype | None) -> Objective:
    return MAE(_segmenter(config), config.mask_block, config.mask_ratio, precision)


_OBJECTIVES: dict[Method, Callable[[PretrainConfig, torch.dtype | None], Objective]] = {
    "pgl": _pgl,
    "pgl_nce": _pgl_nce,
    "pgl_mae": _pgl_mae,
    "byol": _byol,
    "models_genesis": _models_genesis,
    "mae": _mae,
}


def draw_of(method: Method) -> Draw:
    """`Objective.draw` of a method, which needs no networks."""
    return ModelsGenesis.draw if method == "models_genesis" else Objective.draw


def bytes_drawn(config: PretrainConfig) -> int:
    """Of what a loading process draws for a view besides its geometry and intensity."""
    drawn = draw_of(config.method)(config.views.size, np.random.default_rng(0))
    return sum(values.nbytes for values in drawn.values())


def make_encoder(config: PretrainConfig) -> Encoder:
    """The encoder alone, with random weights, on torch's default device."""
    network = config.planned_network
    if network is not None:
        return PlannedEncoder(network, config.encoder_channels, config.padding)
    return ResNet50Encoder(config.encoder_channels, config.encoder_strides, config.norm, padding=config.padding)


def _segmenter(config: PretrainConfig) -> Segmenter:
    network, channels = config.planned_network, config.encoder_channels
    if network is not None:
        return PlannedSegmenter(network, channels, channels, config.padding)
    return PGLSegmenter(channels, channels, config.encoder_strides, config.norm, padding=config.padding)


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
