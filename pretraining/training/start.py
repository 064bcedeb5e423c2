"""What a run starts from: the device's settings, the networks and the optimiser."""

from __future__ import annotations

import torch

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.config import PretrainConfig
from pretraining.objectives import PGL
from pretraining.training.heap import keep_freed_memory
from pretraining.training.optimisation import make_optimizer
from pretraining.training.state import TrainingState


def prepare_device(device: torch.device) -> None:
    """Settings of the whole process that make steps of always the same sizes fast."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def make_objective(config: PretrainConfig, precision: torch.dtype | None) -> PGL:
    """The networks with their random weights, on torch's default device."""
    torch.manual_seed(config.seed)
    encoder = ResNet50Encoder(1, config.encoder_strides, config.norm)
    views = config.views.size
    objective = PGL(encoder, views, config.hidden_channels, config.out_channels, config.interpolated_only, precision)
    objective.train()
    return objective


def initial_state(config: PretrainConfig, device: torch.device, precision: torch.dtype | None) -> TrainingState:
    """A run before its first epoch."""
    objective = make_objective(config, precision).to(device)
    optimizer = make_optimizer(config.optimizer, objective, config.peak_learning_rate, config.weight_decay)
    return TrainingState(objective, optimizer, config=config.to_dict())
