"""The encoders of nnU-Net's own networks, and these networks without deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks.feature_grid import FeatureGrid
from nnunetv2_pgl.networks.hardware import lay_out, memory_format_for, use_own_instance_norm
from nnunetv2_pgl.networks.padding import PaddingName, pad_by_replication, require_padding
from nnunetv2_pgl.networks.planned import PlannedNetwork
from nnunetv2_pgl.networks.strided import Triple


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

    def forward(self, x: Tensor, last_stage: int = -1) -> list[Tensor]:
        """(B, in_channels, D, H, W) -> a map of each stage up to ``last_stage``, sizes divided by `stage_strides`."""
        maps = []
        x = x if self.stem is None else self.stem(x)
        for stage in self.stages[: last_stage % len(self.stages) + 1]:
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
    """One of nnU-Net's networks without deep supervision, for methods that restore or reconstruct views.

    Args:
        network: As the plans describe it.
        num_input_channels: Number of image channels.
        num_classes: Number of output channels.
        padding: The encoder's, see `PlannedEncoder`.
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
        """The decoder, see `planned_decoder_weights`."""
        return planned_decoder_weights(self)


def planned_decoder_weights(network: nn.Module) -> dict[str, Tensor]:
    """The decoder of one of nnU-Net's networks, under its names in the state dict: what fits whatever the classes.

    These are stages and transposed convolutions. Left out are the segmentation heads, and the encoder, which nnU-Net's
    decoder holds as well.
    """
    others = ("decoder.encoder.", "decoder.seg_layers.")
    state = network.state_dict()
    return {key: value for key, value in state.items() if key.startswith("decoder.") and not key.startswith(others)}
