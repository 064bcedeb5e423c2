"""nnU-Net's own networks, PlainConvUNet and ResidualEncoderUNet, as its plans describe them."""

from __future__ import annotations

import json
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.resnet3d import PAPER_STRIDES
from nnunetv2_pgl.networks.strided import Triple


class Planner(NamedTuple):
    """How nnU-Net plans a network: its title, the planner's class, and the plans that this one writes."""

    title: str
    planner: str
    plans: str


# nnU-Net's own networks, as `pgl_pretrain -a` names them.
PLANNERS = {
    "plain": Planner("PlainConvUNet", "ExperimentPlanner", "nnUNetPlans"),
    "resenc_m": Planner("ResEnc-M", "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": Planner("ResEnc-L", "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": Planner("ResEnc-XL", "nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}

_MODULE = "dynamic_network_architectures.architectures.unet"
PLAIN, RESIDUAL = f"{_MODULE}.PlainConvUNet", f"{_MODULE}.ResidualEncoderUNet"
# nnU-Net's default and residual planners (experiment_planning.experiment_planners, version 2.8.1): M, L and XL differ
# in the memory that they plan for, thus in patch and batch, not in blocks or widths.
_FIRST_CHANNELS, _MAX_CHANNELS, _MIN_CELLS = 32, 320, 4
_RESIDUAL_BLOCKS = (1, 3, 4, *(6,) * 10)
# What both have in common; nnssl's preset "ResEncL" has the same.
IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")
LAYERS: dict[str, Any] = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
_MAX_CHANNELS_OR_STRIDE = 2**16  # of a network that could be built


class PlanError(PGLError):
    """A plan whose network cannot be used; the message says why and what would work."""


@dataclass(frozen=True)
class PlannedNetwork:
    """A network as nnU-Net's plans describe it; `build` gives the network that nnU-Net gives.

    Attributes:
        class_name: Full name of its class.
        kwargs: Its arguments, plain values.
        requires_import: Those of them that are names of classes.
    """

    class_name: str
    kwargs: Mapping[str, Any]
    requires_import: tuple[str, ...]

    @classmethod
    def from_configuration(cls, configuration: ConfigurationManager, origin: str) -> PlannedNetwork:
        """The network of a configuration, whichever form its plans have; see `from_dict`."""
        values = {
            "class_name": configuration.network_arch_class_name,
            "kwargs": configuration.network_arch_init_kwargs,
            "requires_import": configuration.network_arch_init_kwargs_req_import,
        }
        return cls.from_dict(values, origin)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> PlannedNetwork:
        """The inverse of `to_dict`.

        Args:
            values: As in plans and checkpoints.
            origin: Where they are from, with which an error starts.

        Raises:
            PlanError: It is not a 3D PlainConvUNet or ResidualEncoderUNet, is incomplete, or names something else than
                PyTorch's layers, which nnU-Net would call.
        """
        try:
            imports, kwargs = tuple(map(str, values["requires_import"])), dict(values["kwargs"])
            network = cls(str(values["class_name"]), kwargs, imports)
            if network.class_name not in (PLAIN, RESIDUAL):
                known = "PlainConvUNet and ResidualEncoderUNet are"
                raise PlanError(f"{origin}: the network {network.short_name} is not known here; {known}")
            if not str(kwargs.get("conv_op")).endswith("Conv3d"):
                raise PlanError(f"{origin}: a network of 2D convolutions; use a 3D configuration such as 3d_fullres")
            for key in imports:
                layer = kwargs.get(key)
                if layer is not None and not _is_layer(layer):
                    found = repr(str(layer)[:80])
                    raise PlanError(f"{origin}: its {key} is {found}, which is not a layer of PyTorch; plan again")
            numbers = (*network.channels, *(stride for stage in network.strides for stride in stage))
            stages = {len(network.channels), len(network.strides), kwargs["n_stages"]}
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(
                f"{origin}: its description of the network is incomplete ({error!r}); plan again"
            ) from error
        if len(stages) > 1 or not all(0 < number <= _MAX_CHANNELS_OR_STRIDE for number in numbers):
            raise PlanError(f"{origin}: the stages of its network contradict each other; plan again")
        return network

    @classmethod
    def from_preset(cls, name: str, patch_size: Sequence[int], spacing: Sequence[float]) -> PlannedNetwork:
        """The network that nnU-Net plans for patches of this size and spacing (its topology, widths and blocks)."""
        _, strides, kernels, _, _ = get_pool_and_conv_props(list(spacing), list(patch_size), _MIN_CELLS, 999999)
        stages = len(strides)
        is_plain = name == "plain"
        kwargs: dict[str, Any] = {
            "n_stages": stages,
            "features_per_stage": [min(_MAX_CHANNELS, _FIRST_CHANNELS * 2**stage) for stage in range(stages)],
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "strides": [list(stride) for stride in strides],
            "n_conv_per_stage_decoder": [2 if is_plain else 1] * (stages - 1),
            **LAYERS,
        }
        if is_plain:
            return cls(PLAIN, {**kwargs, "n_conv_per_stage": [2] * stages}, IMPORTED)
        return cls(RESIDUAL, {**kwargs, "n_blocks_per_stage": list(_RESIDUAL_BLOCKS[:stages])}, IMPORTED)

    @property
    def short_name(self) -> str:
        """Name of its class without the module."""
        return self.class_name.rsplit(".", 1)[-1]

    @property
    def is_residual(self) -> bool:
        """Whether it is a ResidualEncoderUNet."""
        return self.class_name == RESIDUAL

    @property
    def norm_name(self) -> str:
        """The kind of norm: "instance", unless the plan names another one."""
        return "instance" if "InstanceNorm" in str(self.kwargs.get("norm_op")) else "batch"

    @property
    def strides(self) -> tuple[Triple, ...]:
        """Total stride per axis of each stage."""
        total = np.cumprod(np.array([np.broadcast_to(stride, 3) for stride in self.kwargs["strides"]]), axis=0)
        return tuple((int(z), int(y), int(x)) for z, y, x in total)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(int(width) for width in self.kwargs["features_per_stage"])

    def build(self, in_channels: int, classes: int, deep_supervision: bool = False) -> nn.Module:
        """The network with nnU-Net's initialisation.

        Raises:
            PlanError: Its class does not take the plan's arguments, or not with these values.
        """
        description = self.class_name, dict(self.kwargs), self.requires_import
        try:
            network: nn.Module = get_network_from_plans(
                *description, in_channels, classes, allow_init=True, deep_supervision=deep_supervision
            )
        except Exception as error:  # whatever the values of a plan provoke
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PlanError(f"the plan's {self.short_name} cannot be built ({reason})") from error
        return network

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kwargs = json.loads(json.dumps(dict(self.kwargs)))
        return {"class_name": self.class_name, "kwargs": kwargs, "requires_import": list(self.requires_import)}


def network_strides(configuration_manager: ConfigurationManager) -> Triple:
    """Total stride per axis: the paper's (8, 16, 16), or what the plan itself pools to where that is less.

    So small or isotropic patches keep the resolution that nnU-Net planned for them; the weights do not depend on it.
    """
    pooled = np.prod(np.array(configuration_manager.pool_op_kernel_sizes), axis=0)
    z, y, x = (min(paper, 1 << (int(plan).bit_length() - 1)) for paper, plan in zip(PAPER_STRIDES, pooled, strict=True))
    return (z, y, x)


def _is_layer(name: object) -> bool:
    """Whether a name is of a class of layers; what is found on the way there is imported, so that must be PyTorch."""
    if not isinstance(name, str) or not name.startswith("torch.nn."):
        return False
    found = pydoc.locate(name)
    return isinstance(found, type) and issubclass(found, nn.Module)
