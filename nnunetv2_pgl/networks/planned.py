"""nnU-Net's own networks, PlainConvUNet and ResidualEncoderUNet: as its plans describe them, and their encoders."""

from __future__ import annotations

import json
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.feature_grid import FeatureGrid
from nnunetv2_pgl.networks.hardware import lay_out, memory_format_for, use_own_instance_norm
from nnunetv2_pgl.networks.padding import PaddingName, pad_by_replication, require_padding
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
_WIDTH, _MOST_WIDTH, _LEAST_CELLS = 32, 320, 4
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
_LARGEST = 2**16  # channels and strides of a network that could be built


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
    def from_configuration(cls, configuration: ConfigurationManager, name: str) -> PlannedNetwork:
        """The network of a configuration, whichever form its plans have.

        Raises:
            PlanError: It is not one of nnU-Net's 3D U-Nets; the message starts with ``name``.
        """
        values = {
            "class_name": configuration.network_arch_class_name,
            "kwargs": configuration.network_arch_init_kwargs,
            "requires_import": configuration.network_arch_init_kwargs_req_import,
        }
        return cls.from_dict(values, name)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str) -> PlannedNetwork:
        """The inverse of `to_dict`.

        Raises:
            PlanError: It is not a 3D PlainConvUNet or ResidualEncoderUNet, is incomplete, or names something else than
                PyTorch's layers, which nnU-Net would call; the message starts with ``name``.
        """
        try:
            imports = tuple(map(str, values["requires_import"]))
            network = cls(str(values["class_name"]), dict(values["kwargs"]), imports)
            class_name, kwargs = network.class_name, network.kwargs
            if class_name not in (PLAIN, RESIDUAL):
                raise PlanError(
                    f"{name}: the network {network.short_name} is not known here; PlainConvUNet and "
                    "ResidualEncoderUNet are"
                )
            if not str(kwargs.get("conv_op")).endswith("Conv3d"):
                raise PlanError(f"{name}: a network of 2D convolutions; use a 3D configuration such as 3d_fullres")
            for key in imports:
                layer = kwargs.get(key)
                if layer is not None and not _is_layer(layer):
                    raise PlanError(
                        f"{name}: its {key} is {str(layer)[:80]!r}, which is not a layer of PyTorch; plan again"
                    )
            numbers = (*network.channels, *(stride for stage in network.strides for stride in stage))
            stages = {len(network.channels), len(network.strides), kwargs["n_stages"]}
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"{name}: its description of the network is incomplete ({error!r}); plan again") from error
        if len(stages) > 1 or not all(0 < number <= _LARGEST for number in numbers):
            raise PlanError(f"{name}: the stages of its network contradict each other; plan again")
        return network

    @classmethod
    def from_preset(cls, name: str, patch_size: Sequence[int], spacing: Sequence[float]) -> PlannedNetwork:
        """The network that nnU-Net plans for patches of this size and spacing (its topology, widths and blocks)."""
        _, strides, kernels, _, _ = get_pool_and_conv_props(list(spacing), list(patch_size), _LEAST_CELLS, 999999)
        stages = len(strides)
        kwargs: dict[str, Any] = {
            "n_stages": stages,
            "features_per_stage": [min(_MOST_WIDTH, _WIDTH * 2**stage) for stage in range(stages)],
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "strides": [list(stride) for stride in strides],
            **LAYERS,
        }
        if name == "plain":
            kwargs |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
            return cls(PLAIN, kwargs, IMPORTED)
        kwargs |= {
            "n_blocks_per_stage": list(_RESIDUAL_BLOCKS[:stages]),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        }
        return cls(RESIDUAL, kwargs, IMPORTED)

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
            raise PlanError(f"the plan's {self.short_name} cannot be built ({reason})") from error
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


class PlannedEncoder(nn.Module):
    """The encoder of one of nnU-Net's networks; keys of its state are those under ``encoder.`` there.

    Args:
        network: As the plans describe it.
        in_channels: Number of image channels.
        padding: "zeros", which is what nnU-Net's networks do, or "replicate"; see `ResNet50Encoder`.

    Attributes:
        strides: Total stride per axis of the deepest map.
        stage_strides: Total stride per axis of each map.
        stage_channels: Channels of each map.
        norm_name: "instance", unless the plan says otherwise.
    """

    centred = False

    def __init__(self, network: PlannedNetwork, in_channels: int = 1, padding: PaddingName = "zeros"):
        super().__init__()
        self.padding: PaddingName = require_padding(padding)
        encoder: Any = network.build(in_channels, 1).encoder
        self.network, self.in_channels = network, in_channels
        self.stem: nn.Module | None = getattr(encoder, "stem", None)
        self.stages: nn.Sequential = encoder.stages
        self.stage_strides, self.stage_channels = network.strides, network.channels
        self.strides: Triple = self.stage_strides[-1]
        if padding == "replicate":
            pad_by_replication(self)
        use_own_instance_norm(self)
        self.norm_name = network.norm_name

    def forward(self, x: Tensor, deepest: int = -1) -> list[Tensor]:
        """(B, in_channels, D, H, W) -> a map of each stage up to ``deepest``, sizes divided by `stage_strides`."""
        maps = []
        x = x if self.stem is None else self.stem(x)
        for stage in self.stages[: deepest % len(self.stages) + 1]:
            x = stage(x)
            maps.append(x)
        return maps

    @property
    def memory_format(self) -> torch.memory_format:
        """In which images and weights are fastest; maps have that of the images."""
        if self.network.is_residual:
            return torch.contiguous_format  # the average pooling of its shortcuts returns no other on a GPU
        return memory_format_for(self.norm_name)

    def modules_after(self, stage: int) -> list[nn.Module]:
        """The modules that the map of a stage does not depend on."""
        return list(self.stages[stage % len(self.stages) + 1 :])

    def feature_grid(self, view_size: Sequence[int], stage: int = -1) -> FeatureGrid:
        """Where the cells of a map sit in a view of ``view_size`` voxels (z, y, x).

        A chain of nnU-Net's strided convolutions centres cell ``i`` on voxel ``stride * i``, at ``offset = 0.5``. The
        residual encoder's shortcuts average two cells instead, which alone would give ``stride / 2``: where a cell
        sits depends on how much the branches contribute. Nothing of them at first (their last norm starts at 0), more
        with training; the middle of the two is assumed, at most a quarter of a cell off (docs/method.md).
        """
        strides = self.stage_strides[stage]
        share = 0.5 if self.network.is_residual else 0.0
        z, y, x = (0.5 + share * (stride - 1) / 2 for stride in strides)
        d, h, w = (int(size) for size in view_size)
        return FeatureGrid((d, h, w), strides, (z, y, x))


class PlannedSegmenter(nn.Module):
    """One of nnU-Net's networks without deep supervision, in the parts that pre-training by restoration needs.

    Args:
        network: As the plans describe it.
        num_input_channels: Number of image channels.
        num_classes: Number of output channels.
        padding: Of the encoder.
    """

    def __init__(
        self, network: PlannedNetwork, num_input_channels: int, num_classes: int, padding: PaddingName = "zeros"
    ):
        super().__init__()
        self.encoder = PlannedEncoder(network, num_input_channels, padding)
        decoder: Any = network.build(num_input_channels, num_classes).decoder
        del decoder.encoder  # nnU-Net's decoder keeps the encoder that it was built for
        for head in decoder.seg_layers[:-1]:  # of deep supervision, which is off
            head.requires_grad_(False)
        use_own_instance_norm(decoder)
        self.decoder = decoder
        self.to(memory_format=self.encoder.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_input_channels, D, H, W) -> (B, num_classes, D, H, W), float32; sizes divisible by the strides."""
        return self.decode(self.encoder(lay_out(x, self.encoder.memory_format))).float()

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, deepest last -> (B, num_classes, D, H, W)."""
        output: Tensor = self.decoder(list(features))
        return output

    def decoder_weights(self) -> dict[str, Tensor]:
        """See `planned_decoder_weights`."""
        return planned_decoder_weights(self)


def planned_decoder_weights(network: nn.Module) -> dict[str, Tensor]:
    """The decoder of one of nnU-Net's networks, under its names in the state dict: what fits whatever the classes.

    These are stages and transposed convolutions. Left out are the segmentation heads, and the encoder, which nnU-Net's
    decoder holds as well.
    """
    others = ("decoder.encoder.", "decoder.seg_layers.")
    state = network.state_dict()
    return {key: value for key, value in state.items() if key.startswith("decoder.") and not key.startswith(others)}
