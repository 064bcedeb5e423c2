"""nnU-Net's networks as small as they get, for the tests of checkpoints and trainers."""

from __future__ import annotations

from typing import Any

from nnunetv2_pgl.networks import PlannedNetwork

_CLASSES = {"plain": "PlainConvUNet", "resenc": "ResidualEncoderUNet"}


def small_network(kind: str = "plain", features: tuple[int, ...] = (4, 6, 8), **changes: Any) -> PlannedNetwork:
    """A "plain" or "resenc" network with one convolution or block per stage, each stage but the first of stride 2."""
    stages = len(features)
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }
    class_name = f"dynamic_network_architectures.architectures.unet.{_CLASSES[kind]}"
    return PlannedNetwork(class_name, kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"))


def small_architecture(network: PlannedNetwork, in_channels: int = 1) -> dict[str, Any]:
    """What a checkpoint of its encoder says of it."""
    return {
        "name": "resenc_m" if network.is_residual else "plain",
        "norm": "instance",
        "centred": False,
        "strides": list(network.strides[-1]),
        "in_channels": in_channels,
        "network": network.to_dict(),
    }
