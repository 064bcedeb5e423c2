"""Checkpoints of other frameworks, which hold no encoder that fits here: what they are, and what would work instead."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunetv2_pgl.errors import PGLError

# Older releases of PyTorch begin a file with this number; the weights that MedicalNet and Models Genesis publish are
# from that time.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_WRAPPERS = re.compile(r"^(?:(?:module|backbone|_orig_mod)\.)+")
_TABLES = ("network_weights", "state_dict", "model_state_dict", "model", "net", "teacher", "student")
_PRETRAIN = "pre-train one with pgl_pretrain, or start from a model of nnU-Net v2 or nnssl's ResEncL"
# The first names of the weights, as in the sources of these networks, and what would work instead.
_NETWORKS = {
    "down_tr64.": (  # pytorch/unet3d.py
        "the 3D U-Net of Models Genesis (Genesis_Chest_CT) and SuPreM",
        "pre-train one with its method on your own scans: pgl_pretrain -m models_genesis",
    ),
    "conv_blocks_context.0.blocks.": ("a network of nnU-Net version 1", _PRETRAIN),
    "conv_blocks_context.0.0.conv1.": ("a STU-Net", _PRETRAIN),
    "convInit.": ("MONAI's SegResNet, as of SuPreM", _PRETRAIN),
    "encoder.conv_init.": ("the SegResNet of CT-FM, or MONAI's SegResNetDS", _PRETRAIN),
    "conv_init.": ("the encoder of CT-FM's SegResNet", _PRETRAIN),
    "enc_block_0.": ("a MedNeXt", _PRETRAIN),
    "encode_image.i3_resnet.": ("the image encoder of Merlin", _PRETRAIN),
}
# Parts of the names in DINO's and timm's vision transformers, MONAI's Swin UNETR, and Primus.
_TRANSFORMER = ("patch_embed.", "pos_embed", "cls_token", ".attn.qkv.", "relative_position_bias_table")


def is_legacy_file(path: Path) -> bool:
    """Whether `torch.save` of PyTorch before 1.6 wrote the file; it is no zip archive."""
    with open(path, "rb") as file:
        return file.read(len(_LEGACY_START)) == _LEGACY_START


def describe_checkpoint(content: Mapping[Any, Any]) -> str | None:
    """What another framework's checkpoint is and what would work instead, in one line; None if it is not known.

    Args:
        content: The file, as loaded.
    """
    if "network_weights" in content and ("trainer_name" in content or "init_args" in content):
        return (
            f"a training checkpoint (trainer {content.get('trainer_name', 'unknown')}) without the plans that nnU-Net "
            "keeps in its own (init_args), and without an nnssl_adaptation_plan; let a newer nnssl write it again"
        )
    sizes = {key: tuple(value.shape) for key, value in state_dict_of(content).items()}
    for start, (what, remedy) in _NETWORKS.items():
        if any(key.startswith(start) for key in sizes):
            return f"{what}, whose weights fit none of the encoders here; {remedy}"
    stem = sizes.get("conv1.weight", ())
    if "layer1.0.conv1.weight" in sizes and len(stem) == 4:  # as torchvision names its layers
        return "a 2D ResNet, whose weights fit none of the 3D encoders here; pre-train with pgl_pretrain"
    if "layer1.0.conv1.weight" in sizes and len(stem) == 5:
        return (
            "a 3D ResNet of MedicalNet (Med3D), whose layers and strides are not those of the encoders here; pre-train "
            "with pgl_pretrain -a resnet50"
        )
    if any(part in key for key in sizes for part in _TRANSFORMER):
        return (
            "the weights of a vision transformer (a plain state dict as of DINO, timm or MONAI), which fit none of the "
            "convolutional encoders here; pre-train with pgl_pretrain, or start from a checkpoint of nnssl's ResEncL"
        )
    return None


def state_dict_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The table of weights, at the top or one level down, without the prefixes of wrappers; empty if there is none.

    Raises:
        PGLError: A name is there with a wrapper's prefix and without.
    """
    for table in (content, *map(content.get, _TABLES)):
        if isinstance(table, Mapping) and table and all(isinstance(value, Tensor) for value in table.values()):
            weights: dict[str, Tensor] = {}
            for key, value in table.items():
                name = _WRAPPERS.sub("", str(key))
                if name in weights:
                    raise PGLError(f"holds {name} with a wrapper's prefix and without; keep the one that is meant")
                weights[name] = value
            return weights
    return {}
