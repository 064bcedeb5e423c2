"""The adaptation plan in an encoder checkpoint: how nnU-Net's tools for nnssl checkpoints rebuild and load the encoder.

The schema is nnssl's (``nnssl.adaptation_planning.adaptation_plan.AdaptationPlan.serialize``). In nnU-Net's git version
it is read by ``preprocess_like_nnssl`` and ``plan_like_dynamic`` (``nnunetv2.experiment_planning.like_nnssl``) and by
``PretrainedTrainer`` and ``DynamicPretrainedTrainer`` (``nnunetv2.training.nnUNetTrainer.pretraining``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnunetv2_pgl.networks.plan import PlannedNetwork

_LEAST_CELLS = 2  # instance norms need more than one value while training


def adaptation_plan(
    network: PlannedNetwork, in_channels: int, view_size: Sequence[int], spacing: Sequence[float] | None
) -> dict[str, Any]:
    """The plan of one of nnU-Net's networks; plain values.

    The class goes by its short name, the one that nnssl's list of architectures has. Where encoder, stem and input
    projections are in the state dict, the network's class says itself.

    Args:
        network: What nnU-Net's plans say of the network.
        in_channels: Image channels of the pre-training.
        view_size: Voxels (z, y, x) that the encoder saw at a time.
        spacing: Of these voxels (z, y, x) in mm; None where every scan kept its own: nnU-Net then takes the one that it
            plans itself.
    """
    described = network.to_dict()
    with torch.device("meta"):  # only to ask for names: no memory, no initialisation
        built: Any = network.build(in_channels, 1)
    configuration = {
        "patch_size": [int(size) for size in view_size],
        "spacing": None if spacing is None else [float(value) for value in spacing],
    }
    return {
        "architecture_plans": {
            "arch_class_name": network.class_name.rsplit(".", 1)[-1],
            "arch_kwargs": described["kwargs"],
            "arch_kwargs_requiring_import": described["requires_import"],
        },
        "pretrain_plan": {"configurations": {"pgl": configuration}},
        "pretrain_num_input_channels": int(in_channels),
        "recommended_downstream_patchsize": _feasible_patch(network, view_size),
        "key_to_encoder": built.key_to_encoder,
        "key_to_stem": built.key_to_stem,
        "keys_to_in_proj": list(built.keys_to_in_proj),
        "key_to_lpe": built.key_to_lpe,
    }


def _feasible_patch(network: PlannedNetwork, view_size: Sequence[int]) -> list[int]:
    """The smallest patch (z, y, x), no smaller than a view, whose sizes the U-Net can halve all the way."""
    patch = []
    for size, stride in zip(view_size, network.strides[-1], strict=True):
        cells = max(-(-int(size) // stride), _LEAST_CELLS)
        patch.append(stride * cells if stride > 1 else int(size))
    return patch
