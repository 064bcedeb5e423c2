"""nnU-Net's own networks, as its plans tell them: PlainConvUNet and ResidualEncoderUNet."""

from __future__ import annotations

import json
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.strided import Triple

PlannedName = Literal["plain", "resenc_m", "resenc_l", "resenc_xl"]

_MODULE = "dynamic_network_architectures.architectures.unet"
_PLAIN, _RESIDUAL = f"{_MODULE}.PlainConvUNet", f"{_MODULE}.ResidualEncoderUNet"
# nnU-Net's default and residual planners (experiment_planning.experiment_planners, version 2.8.1): M, L and XL differ
# in the memory that they plan for, thus in patch and batch, not in blocks or widths.
_WIDTH, _MOST_WIDTH, _LEAST_CELLS = 32, 320, 4
_LARGEST = 2**16  # channels and strides of a network that could be built
_RESIDUAL_BLOCKS = (1, 3, 4, *(6,) * 10)


class PlanError(PGLError):
    """A plan whose network cannot be used; the message says why and what would work."""


@dataclass(frozen=True)
class PlannedNetwork:
    """What nnU-Net's plans say of a network; `build` gives the network that nnU-Net gives.

    Attributes:
        class_name: Full name of its class.
        kwargs: Its arguments, plain values.
        requires_import: Those of them that are names of classes.
    """

    class_name: str
    kwargs: Mapping[str, Any]
    requires_import: tuple[str, ...]

    @classmethod
    def of_configuration(cls, configuration: ConfigurationManager, name: str) -> PlannedNetwork:
        """The network of a configuration, whichever form its plans have.

        Raises:
            PlanError: It is not one of nnU-Net's 3D U-Nets; the message starts with ``name``.
        """
        values = {
            "class_name": configuration.network_arch_class_name,
            "kwargs": configuration.network_arch_init_kwargs,
            "requires_import": configuration.network_arch_init_kwargs_req_import,
        }
        return cls.of_dict(values, name)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any], name: str) -> PlannedNetwork:
        """The inverse of `to_dict`.

        Raises:
            PlanError: It is not a 3D PlainConvUNet or ResidualEncoderUNet, is incomplete, or names something else than
                PyTorch's layers, which nnU-Net would call; the message starts with ``name``.
        """
        try:
            imports = tuple(map(str, values["requires_import"]))
            network = cls(str(values["class_name"]), dict(values["kwargs"]), imports)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{name}: what it says of the network is incomplete ({error!r}); plan anew") from error
        class_name, kwargs = network.class_name, network.kwargs
        if class_name not in (_PLAIN, _RESIDUAL):
            raise PlanError(
                f"{name}: the network {class_name.rsplit('.', 1)[-1]} is not known here; PlainConvUNet and "
                "ResidualEncoderUNet are"
            )
        if not str(kwargs.get("conv_op")).endswith("Conv3d"):
            raise PlanError(f"{name}: a network of 2D convolutions; use a 3D configuration such as 3d_fullres")
        network._check(name)
        return network

    @classmethod
    def preset(cls, name: PlannedName, patch_size: Sequence[int], spacing: Sequence[float]) -> PlannedNetwork:
        """The network that nnU-Net plans for patches of this size and spacing (its topology, widths and blocks)."""
        _, strides, kernels, _, _ = get_pool_and_conv_props(list(spacing), list(patch_size), _LEAST_CELLS, 999999)
        stages = len(strides)
        kwargs: dict[str, Any] = {
            "n_stages": stages,
            "features_per_stage": [min(_MOST_WIDTH, _WIDTH * 2**stage) for stage in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "strides": [list(stride) for stride in strides],
        }
        if name == "plain":
            kwargs |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
        else:
            kwargs |= {"n_blocks_per_stage": list(_RESIDUAL_BLOCKS[:stages])}
            kwargs |= {"n_conv_per_stage_decoder": [1] * (stages - 1)}
        kwargs |= {
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        return cls(_PLAIN if name == "plain" else _RESIDUAL, kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"))

    def _check(self, name: str) -> None:
        for key in self.requires_import:
            layer = self.kwargs.get(key)
            if layer is not None and not _is_layer(layer):
                raise PlanError(f"{name}: its {key} is {str(layer)[:80]!r}, which is no layer of PyTorch; plan anew")
        try:
            numbers = (*self.channels, *(n for strides in self.strides for n in strides))
            is_sound = len(self.channels) == len(self.strides) == self.kwargs["n_stages"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"{name}: the stages of its network are not told ({error!r}); plan anew") from error
        if not is_sound or not all(0 < number <= _LARGEST for number in numbers):
            raise PlanError(f"{name}: the stages of its network contradict each other; plan anew")

    @property
    def is_residual(self) -> bool:
        """Whether it is a ResidualEncoderUNet."""
        return self.class_name == _RESIDUAL

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
        try:
            network: nn.Module = get_network_from_plans(
                self.class_name,
                dict(self.kwargs),
                self.requires_import,
                in_channels,
                classes,
                allow_init=True,
                deep_supervision=deep_supervision,
            )
        except Exception as error:  # whatever the values of a plan provoke
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PlanError(f"the plan's {self.class_name.rsplit('.', 1)[-1]} cannot be built ({reason})") from error
        return network

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kwargs = json.loads(json.dumps(dict(self.kwargs)))
        return {"class_name": self.class_name, "kwargs": kwargs, "requires_import": list(self.requires_import)}


def _is_layer(name: object) -> bool:
    """Whether a name is of a class of layers; what is found on the way there is imported, so that must be PyTorch."""
    if not isinstance(name, str) or not name.startswith("torch.nn."):
        return False
    found = pydoc.locate(name)
    return isinstance(found, type) and issubclass(found, nn.Module)
