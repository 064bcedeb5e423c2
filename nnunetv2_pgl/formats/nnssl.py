"""The adaptation plan of the nnssl framework: written into our checkpoints, and read from those of nnssl.

The schema is nnssl's (``nnssl.adaptation_planning.adaptation_plan.AdaptationPlan.serialize``): ``architecture_plans``,
``pretrain_plan``, and the prefixes of encoder and stem among the ``network_weights``. In nnU-Net's git version it is
read by ``preprocess_like_nnssl`` and ``plan_like_dynamic`` (``nnunetv2.experiment_planning.like_nnssl``) and by
``PretrainedTrainer`` and ``DynamicPretrainedTrainer`` (``nnunetv2.training.nnUNetTrainer.pretraining``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.planned import IMPORTED, LAYERS, PLAIN, RESIDUAL, PlannedNetwork

_RESIDUAL_NAMES = ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet")
_TRANSFORMERS = ("Primus", "Eva", "EVA", "SwinUNETR", "ViT")
# nnssl's preset "ResEncL" (architectures/architecture_registry.py), for which a plan holds no arguments.
_RESENC_L: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    **LAYERS,
}
_MIN_CELLS = 2  # instance norms need more than one value while training


def adaptation_plan(
    network: PlannedNetwork, in_channels: int, view_size: Sequence[int], spacing: Sequence[float] | None
) -> dict[str, Any]:
    """The plan for one of nnU-Net's networks; plain values.

    The class goes by its short name, the one that nnssl's list of architectures has. Where encoder, stem and input
    projections are in the state dict, the network's class says itself.

    Args:
        network: As nnU-Net's plans describe it.
        in_channels: Image channels of the pre-training.
        view_size: Voxels (z, y, x) that the encoder saw at a time.
        spacing: Size of these voxels in mm; None where every scan kept its spacing: nnU-Net then plans one itself.
    """
    described = network.to_dict()
    with torch.device("meta"):  # only to ask for names: no memory, no initialisation
        built: Any = network.build(in_channels, 1)
    # The smallest patch, no smaller than a view, whose sizes the U-Net can halve all the way.
    patch = [
        stride * max(-(-int(size) // stride), _MIN_CELLS) if stride > 1 else int(size)
        for size, stride in zip(view_size, network.strides[-1], strict=True)
    ]
    configuration = {
        "patch_size": [int(size) for size in view_size],
        "spacing": None if spacing is None else [float(value) for value in spacing],
    }
    return {
        "architecture_plans": {
            "arch_class_name": network.short_name,
            "arch_kwargs": described["kwargs"],
            "arch_kwargs_requiring_import": described["requires_import"],
        },
        "pretrain_plan": {"configurations": {"pgl": configuration}},
        "pretrain_num_input_channels": int(in_channels),
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": built.key_to_encoder,
        "key_to_stem": built.key_to_stem,
        "keys_to_in_proj": list(built.keys_to_in_proj),
        "key_to_lpe": built.key_to_lpe,
    }


def read_nnssl(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the content of a checkpoint with ``network_weights`` and ``nnssl_adaptation_plan``.

    Returns:
        State dict of the encoder, with the keys that it has in nnU-Net's networks, and what is known of how it was
        made, as in `EncoderCheckpoint.pgl`.

    Raises:
        PGLError: It is for another kind of network, or the plan is incomplete; the caller adds the file's name.
    """
    try:
        plan = content["nnssl_adaptation_plan"]
        network = _network(plan["architecture_plans"])
        weights = _encoder_weights(content["network_weights"], plan["key_to_encoder"], plan["key_to_stem"])
        architecture = {
            "name": "resenc_l" if network.is_residual else "plain",
            "norm": network.norm_name,
            "centred": False,
            "strides": list(network.strides[-1]),
            "in_channels": int(plan.get("pretrain_num_input_channels") or 1),
            "network": network.to_dict(),
        }
        configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
        spacing, patch = configuration.get("spacing"), configuration.get("patch_size")
        schemes = list(configuration.get("normalization_schemes") or ())
        return weights, {
            "framework": "nnssl",
            "method": _method(content),
            "architecture": architecture,
            "spacing": [float(value) for value in spacing] if spacing else None,
            "view_size": [int(size) for size in patch] if patch else None,
            "intensity": {"modality": "unknown", "normalization_schemes": schemes} if schemes else None,
        }
    except PGLError:
        raise
    except Exception as error:  # whatever is in the plan
        raise PGLError(
            f"a checkpoint of nnssl whose nnssl_adaptation_plan is incomplete ({type(error).__name__}: {error}); write "
            "it again with a newer nnssl"
        ) from error


def _network(architecture: Mapping[str, Any]) -> PlannedNetwork:
    name = str(architecture["arch_class_name"]).rsplit(".", 1)[-1]
    if name not in (*_RESIDUAL_NAMES, "PlainConvUNet"):
        kind = f"a transformer ({name})" if name.startswith(_TRANSFORMERS) else f"a network of the class {name}"
        raise PGLError(
            f"{kind}, pre-trained with nnssl, whose weights fit none of the encoders here; use a checkpoint of nnssl's "
            "ResEncL, or fine-tune this one with nnUNetv2_train_pretrained of nnU-Net's git version"
        )
    kwargs = _RESENC_L if name.endswith("ResEncL") else architecture["arch_kwargs"]
    if not kwargs:
        raise PGLError(f"a checkpoint of nnssl for {name} whose arch_kwargs are empty, so its size is unknown")
    values = {
        "class_name": PLAIN if name == "PlainConvUNet" else RESIDUAL,
        "kwargs": kwargs,
        "requires_import": architecture.get("arch_kwargs_requiring_import")
        or [argument for argument in IMPORTED if argument in kwargs],
    }
    return PlannedNetwork.from_dict(values, "a checkpoint of nnssl")


def _encoder_weights(weights: Mapping[str, Tensor], stages: str, stem: str) -> dict[str, Tensor]:
    """Weights under the two prefixes, which become ``stages`` and ``stem`` (a plain encoder's is its first stage)."""
    found = {}
    for key, value in weights.items():
        if key.startswith(f"{stages}."):
            found["stages" + key.removeprefix(stages)] = value
        elif key.startswith(f"{stem}."):
            found["stem" + key.removeprefix(stem)] = value
    if not any(key.startswith("stages.") for key in found):
        raise PGLError(
            f"a checkpoint of nnssl without weights under {stages}, its key_to_encoder (they begin with "
            f"{next(iter(weights), 'nothing')}); write it again with the prefix that its weights have"
        )
    return found


def _method(content: Mapping[str, Any]) -> str:
    """The name of the method from the citations, else the trainer's."""
    for citation in content.get("citations") or ():
        if isinstance(citation, dict) and "pretrain" in str(citation.get("type")).lower().replace("-", ""):
            return f"nnssl: {citation.get('name')}"
    trainer = content.get("trainer_name")
    return f"nnssl: {trainer}" if isinstance(trainer, str) else "nnssl"
