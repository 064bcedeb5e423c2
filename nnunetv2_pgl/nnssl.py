"""Checkpoints of the nnssl framework: which encoder they hold, as its adaptation plan says.

The schema is nnssl's (adaptation_planning/adaptation_plan.py): ``architecture_plans``, ``pretrain_plan``, and the
prefixes of encoder and stem among the ``network_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks import PlanError, PlannedNetwork

_UNET = "dynamic_network_architectures.architectures.unet"
_RESIDUAL = ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet")
_TRANSFORMERS = ("Primus", "Eva", "EVA", "SwinUNETR", "ViT")
_KINDS = ("conv_op", "norm_op", "dropout_op", "nonlin")
# nnssl's preset "ResEncL" (architectures/architecture_registry.py), which has no arguments of its own in the plan.
_RESENC_L: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


class NnsslError(PGLError):
    """A checkpoint of nnssl that cannot be used; the message says why and what would work."""


@dataclass(frozen=True)
class NnsslEncoder:
    """What is in such a checkpoint.

    Attributes:
        weights: State dict of the encoder, with the keys that it has in nnU-Net's networks.
        pgl: What is known of how it was made, as in `EncoderCheckpoint.pgl`.
    """

    weights: dict[str, Tensor]
    pgl: dict[str, Any]


def read_nnssl(content: Mapping[str, Any]) -> NnsslEncoder:
    """Reads the content of a checkpoint with ``network_weights`` and ``nnssl_adaptation_plan``.

    Raises:
        NnsslError: It is for another kind of network, or the plan is incomplete.
    """
    try:
        return _read(content)
    except PlanError as error:
        raise NnsslError(str(error)) from error
    except NnsslError:
        raise
    except Exception as error:  # whatever is in the plan
        raise NnsslError(
            f"a checkpoint of nnssl whose nnssl_adaptation_plan is incomplete ({type(error).__name__}: {error}); write "
            "it again with a newer nnssl"
        ) from error


def _read(content: Mapping[str, Any]) -> NnsslEncoder:
    plan = content["nnssl_adaptation_plan"]
    network = _network(plan["architecture_plans"])
    weights = _encoder_weights(content["network_weights"], plan["key_to_encoder"], plan["key_to_stem"])
    architecture = {
        "name": "resenc_l" if network.is_residual else "plain",
        "norm": "instance" if "InstanceNorm" in str(network.kwargs.get("norm_op")) else "batch",
        "centred": False,
        "strides": list(network.strides[-1]),
        "in_channels": int(plan.get("pretrain_num_input_channels") or 1),
        "network": network.to_dict(),
    }
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    pgl = {"framework": "nnssl", "method": _method(content), "architecture": architecture, **_data_of(configuration)}
    return NnsslEncoder(weights, pgl)


def _network(architecture: Mapping[str, Any]) -> PlannedNetwork:
    name = str(architecture["arch_class_name"]).rsplit(".", 1)[-1]
    if name not in (*_RESIDUAL, "PlainConvUNet"):
        kind = f"a transformer ({name})" if name.startswith(_TRANSFORMERS) else f"a network of the class {name}"
        raise NnsslError(
            f"{kind}, pre-trained with nnssl, whose weights fit none of the encoders here; use a checkpoint of nnssl's "
            "ResEncL, or fine-tune this one with nnUNetv2_train_pretrained of nnU-Net's git version"
        )
    class_name = f"{_UNET}.PlainConvUNet" if name == "PlainConvUNet" else f"{_UNET}.ResidualEncoderUNet"
    kwargs = _RESENC_L if name.endswith("ResEncL") else architecture["arch_kwargs"]
    if not kwargs:
        raise NnsslError(f"a checkpoint of nnssl for {name} whose arch_kwargs are empty, so its size is unknown")
    imports = architecture.get("arch_kwargs_requiring_import") or [kind for kind in _KINDS if kind in kwargs]
    values = {"class_name": class_name, "kwargs": kwargs, "requires_import": imports}
    return PlannedNetwork.of_dict(values, "a checkpoint of nnssl")


def _encoder_weights(weights: Mapping[str, Tensor], stages: str, stem: str) -> dict[str, Tensor]:
    """Those under the two prefixes, which become ``stages`` and ``stem``; a plain encoder's stem is its first stage."""
    found = {}
    for key, value in weights.items():
        if key.startswith(f"{stages}."):
            found["stages" + key.removeprefix(stages)] = value
        elif key.startswith(f"{stem}."):
            found["stem" + key.removeprefix(stem)] = value
    if not any(key.startswith("stages.") for key in found):
        raise NnsslError(
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


def _data_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Spacing, view size and intensities, as far as the pre-training's configuration tells them."""
    spacing, patch = configuration.get("spacing"), configuration.get("patch_size")
    schemes: Sequence[str] = configuration.get("normalization_schemes") or ()
    return {
        "spacing": [float(s) for s in spacing] if spacing else None,
        "view_size": [int(size) for size in patch] if patch else None,
        "intensity": {"modality": "unknown", "normalization_schemes": list(schemes)} if schemes else None,
    }
