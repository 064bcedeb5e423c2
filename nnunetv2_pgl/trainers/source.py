"""Which encoder checkpoint a training starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.checkpoint import CheckpointError

VARIABLE = "PGL_CHECKPOINT"
DECODER_VARIABLE = "PGL_TRANSFER_DECODER"
PARTIAL_VARIABLE = "PGL_ALLOW_PARTIAL"


def find_encoder_checkpoint(plans: Mapping[str, Any]) -> tuple[Path, str]:
    """The checkpoint to start from and where it was named; never a silent guess.

    In this order: the plans' ``pretrain_info.checkpoint_path``; the environment variable ``PGL_CHECKPOINT``; the only
    finished run under ``$nnUNet_results/PGL``.

    Raises:
        CheckpointError: If there is none, several to choose from, or the one that is named does not exist.
    """
    in_plans = (plans.get("pretrain_info") or {}).get("checkpoint_path")
    if in_plans:
        return _existing(in_plans, "pretrain_info.checkpoint_path in the plans"), "the plans"
    in_variable = os.environ.get(VARIABLE)
    if in_variable:
        return _existing(in_variable, f"the environment variable {VARIABLE}"), VARIABLE
    runs = sorted((Path(nnUNet_results) / "PGL").glob("*/checkpoint_final.pth")) if nnUNet_results.is_set() else []
    if len(runs) == 1:
        return runs[0], "the only run in $nnUNet_results/PGL"
    found = "none was found" if not runs else "several were found: " + ", ".join(str(run) for run in runs)
    example = runs[0] if runs else "/path/to/checkpoint_final.pth"
    raise CheckpointError(
        f"no encoder checkpoint was named, and in $nnUNet_results/PGL {found}. Type export {VARIABLE}={example} "
        "(pgl_pretrain writes it), or train the control from random weights with -tr nnUNetTrainerPGLScratch"
    )


def decoder_is_wanted(plans: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's decoder shall be used as well.

    The plans' ``pretrain_info.transfer_decoder`` asks for it, or the environment variable ``PGL_TRANSFER_DECODER``.

    Raises:
        CheckpointError: If ``PGL_TRANSFER_DECODER`` is neither 0 nor 1.
    """
    return _is_asked_for(plans, "transfer_decoder", DECODER_VARIABLE, "use the decoder too")


def partial_is_allowed(plans: Mapping[str, Any]) -> bool:
    """Whether to start even if less than 90 % of the encoder's parameters can be loaded.

    The plans' ``pretrain_info.allow_partial`` allows it, or the environment variable ``PGL_ALLOW_PARTIAL``.

    Raises:
        CheckpointError: If ``PGL_ALLOW_PARTIAL`` is neither 0 nor 1.
    """
    return _is_asked_for(plans, "allow_partial", PARTIAL_VARIABLE, "start from what fits, however little")


def _is_asked_for(plans: Mapping[str, Any], key: str, variable: str, meaning: str) -> bool:
    in_variable = os.environ.get(variable, "0")
    if in_variable not in ("0", "1"):
        raise CheckpointError(f"{variable}={in_variable}: must be 1 ({meaning}) or 0")
    return bool((plans.get("pretrain_info") or {}).get(key)) or in_variable == "1"


def _existing(path: str, named_by: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; it is named by {named_by}")
    return found
