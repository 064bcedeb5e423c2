"""Which network a model is: the paper's segmenter, or the plan's own. The plans keep it under ``pgl_network``.

{"architecture": "resnet50", "norm": "instance", "centred": true}, or {"architecture": "plan"}; the names of encoders of
nnU-Net's networks (plain, resenc_m, ...), as `pgl_compare` writes them, mean the plan's network too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks import PAPER_STRIDES, PGLSegmenter, PlanError, PlannedName, PlannedNetwork
from nnunetv2_pgl.networks.strided import Triple
from nnunetv2_pgl.precision import autocast_type

PLANS_KEY = "pgl_network"
RESNET = "resnet50"
PLAN = "plan"


class NetworkError(PGLError):
    """A network that cannot be built from the plans; the message says why and what would work."""


@dataclass(frozen=True)
class ModelNetwork:
    """What the plans do not say about the network.

    Attributes:
        architecture: "resnet50", "plan", or the name of one of nnU-Net's encoders.
        norm: Of the ResNet-50: its checkpoint's; without one instance norm, since batch norm is no good at nnU-Net's
            two patches per batch.
        centred: See `ResNet50Encoder`.
    """

    architecture: str = RESNET
    norm: str = "instance"
    centred: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelNetwork:
        """The inverse of `to_dict`; also reads ``pgl["architecture"]`` of a checkpoint, which has a ``name``.

        Raises:
            NetworkError: It is not known here.
        """
        architecture = values.get("architecture", values.get("name", RESNET))
        if architecture not in (RESNET, PLAN, *get_args(PlannedName)):
            raise NetworkError(
                f"the network {architecture} is not known to this nnunetv2-pgl, which has "
                f"{', '.join((RESNET, *get_args(PlannedName)))}; install a newer version"
            )
        return cls(architecture, values.get("norm", cls.norm), values.get("centred", cls.centred))

    @property
    def is_planned(self) -> bool:
        """Whether it is the plan's own network."""
        return self.architecture != RESNET

    def to_dict(self) -> dict[str, Any]:
        """What is stored; all encoders of nnU-Net's networks lead to the same entry, since the plans say the rest."""
        if self.is_planned:
            return {"architecture": PLAN}
        return {"architecture": RESNET, "norm": self.norm, "centred": self.centred}

    def require_plan(self, plans: PlansManager, configuration: ConfigurationManager, name: str) -> None:
        """Refuses plans whose network is of another class than the encoder is made for.

        Args:
            plans: Of the training.
            configuration: Of them.
            name: What the encoder is, for messages.

        Raises:
            NetworkError: It says what the plan has, what the encoder is for, and how to plan for it.
        """
        if not self.is_planned:
            return
        where = f"{plans.plans_name} of {plans.dataset_name}"
        try:
            planned = PlannedNetwork.of_configuration(configuration, where)
        except PlanError as error:
            raise NetworkError(f"{error}; {name} needs {how_to_plan(self.architecture, plans)}") from error
        if self.architecture != PLAN and planned.is_residual != (self.architecture != "plain"):
            needed = "PlainConvUNet" if self.architecture == "plain" else "ResidualEncoderUNet"
            raise NetworkError(
                f"{where} has a {planned.class_name.rsplit('.', 1)[-1]}, {name} is for a {needed}: "
                f"{how_to_plan(self.architecture, plans)}"
            )


def how_to_plan(architecture: str, plans: PlansManager) -> str:
    """The command that plans for the network of an encoder, and the option that trains with it."""
    dataset = plans.dataset_name.split("_")[0].removeprefix("Dataset").lstrip("0")
    plan = f"nnUNetv2_plan_experiment -d {dataset}"
    if architecture in ("plain", PLAN):
        return f"plan with {plan} and train with -p nnUNetPlans"
    size = architecture.removeprefix("resenc_").upper()
    return f"plan with {plan} -pl nnUNetPlannerResEnc{size} and train with -p nnUNetResEncUNet{size}Plans"


def build_network(
    plans: PlansManager, configuration: ConfigurationManager, inputs: int, outputs: int, deep_supervision: bool
) -> nn.Module:
    """The network that the plans name under ``pgl_network``, with random weights: nnU-Net's own, or the segmenter.

    Raises:
        NetworkError: It is not known here.
    """
    network = ModelNetwork.of(plans.plans.get(PLANS_KEY) or {})
    if network.is_planned:
        planned: nn.Module = nnUNetTrainer.build_network_architecture(
            plans, configuration, inputs, outputs, deep_supervision
        )
        return planned
    return PGLSegmenter(
        inputs,
        outputs,
        strides=network_strides(configuration),
        norm=network.norm,  # type: ignore[arg-type]
        centred=network.centred,
        cpu_bfloat16=autocast_type(torch.device("cpu")) is torch.bfloat16,
    )


def network_strides(configuration_manager: ConfigurationManager) -> Triple:
    """Total stride per axis: the paper's (8, 16, 16), or what the plan itself pools to where that is less.

    Small or isotropic patches so keep the resolution nnU-Net planned for them; the weights do not depend on it.
    """
    pooled = np.prod(np.array(configuration_manager.pool_op_kernel_sizes), axis=0)
    z, y, x = (min(paper, 1 << (int(plan).bit_length() - 1)) for paper, plan in zip(PAPER_STRIDES, pooled, strict=True))
    return (z, y, x)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DDP's and torch.compile's wrappers."""
    module = getattr(network, "module", network)
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner
