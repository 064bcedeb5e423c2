"""Files as nnU-Net's trainers save them, without a training (tests/trainers/test_nnunet_start.py has real ones)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nnunetv2_pgl.networks import PlannedNetwork

CT = {"mean": 10.0, "std": 100.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0, "median": 5.0}


def plans_of(network: PlannedNetwork, **changes: Any) -> dict[str, Any]:
    """Plans of the form that nnU-Net writes since version 2.3; a configuration of each kind."""
    fullres = {
        "patch_size": [16, 16, 16],
        "spacing": [3.0, 1.0, 0.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": network.class_name,
            "arch_kwargs": dict(network.kwargs),
            "_kw_requires_import": list(network.requires_import),
        },
    }
    return {
        "dataset_name": "Dataset007_Pancreas",
        "plans_name": "nnUNetPlans" if not network.is_residual else "nnUNetResEncUNetMPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": CT},
        "configurations": {
            "3d_fullres": fullres,
            "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        **changes,
    }


def nnunet_content(
    network: PlannedNetwork,
    in_channels: int = 1,
    plans: dict[str, Any] | None = None,
    configuration: str = "3d_fullres",
    **changes: Any,
) -> dict[str, Any]:
    """What ``nnUNetTrainer.save_checkpoint`` writes, for random weights of a network."""
    torch.manual_seed(3)
    built = network.build(in_channels, 3, deep_supervision=True)
    return {
        "network_weights": built.state_dict(),
        "optimizer_state": torch.optim.SGD(built.parameters(), 0.01, momentum=0.99).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)], "lrs": [0.01], "dice_per_class_or_region": [[np.float64(0.25)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans or plans_of(network),
            "configuration": configuration,
            "fold": 0,
            "dataset_json": {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "a": 1, "b": 2},
                "numTraining": 12,
            },
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **changes,
    }
