"""The encoder checkpoint of a finished run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from pretraining.citations import citations_of
from pretraining.config import PretrainConfig
from pretraining.objectives import Objective


def make_checkpoint(
    objective: Objective,
    config: PretrainConfig,
    spacing: Sequence[float],
    is_ct: bool,
    num_scans: int,
    last_record: dict[str, Any],
) -> EncoderCheckpoint:
    """The online encoder with all that its users need to know.

    Args:
        objective: Its online encoder is kept ("we only keep the encoder in the online path", section 3.1), and its
            decoder where it has one.
        config: Settings of the run.
        spacing: Spacing (z, y, x) in mm of the scans as trained on, the median where it varies.
        is_ct: Whether all scans were CT.
        num_scans: Scans trained on.
        last_record: The last epoch's record.
    """
    encoder = objective.encoder
    z, y, x = (float(s) for s in spacing)
    datasets = [Path(name).name for name in config.datasets]  # a checkpoint that is shared tells no paths
    pgl = {
        "method": config.method,
        "architecture": {
            "name": config.architecture,
            "norm": encoder.norm_name,
            "centred": encoder.centred,
            "strides": list(encoder.strides),
            "in_channels": 1,
        },
        "config": {**config.to_dict(), "datasets": datasets, "exclude": len(config.exclude)},
        "datasets": datasets,
        "epochs": config.epochs,
        "num_scans": num_scans,
        "intensity": _intensity(is_ct),
        "spacing": [z, y, x],
        "view_size": list(config.views.size),
        "metrics": {key: float(np.float64(value)) for key, value in last_record.items()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
    }
    weights = {key: value.detach().cpu().clone() for key, value in encoder.state_dict().items()}
    citations = citations_of(config.method)
    return EncoderCheckpoint(weights, pgl, _adaptation_plan(pgl), citations, objective.kept_decoder())


def _intensity(is_ct: bool) -> dict[str, Any]:
    if is_ct:
        return {"modality": "ct", "clip": [-1024.0, 325.0], "normalisation": "z-score per scan"}
    return {"modality": "other", "clip": None, "normalisation": "z-score per scan and channel"}


def _versions() -> dict[str, str]:
    names = ("nnunetv2-pgl", "nnunetv2", "torch", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _adaptation_plan(pgl: dict[str, Any]) -> dict[str, Any]:
    """The same in nnssl's schema; its tools know no ResNet-50, so they will name the architecture and stop."""
    architecture = pgl["architecture"]
    return {
        "architecture_plans": {
            "arch_class_name": "PGLResNet50",
            "arch_kwargs": {key: architecture[key] for key in ("strides", "norm", "centred")},
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "configurations": {"pgl": {"patch_size": list(pgl["view_size"]), "spacing": list(pgl["spacing"])}}
        },
        "pretrain_num_input_channels": architecture["in_channels"],
        "recommended_downstream_patchsize": list(pgl["view_size"]),
        "key_to_encoder": "encoder",
        "key_to_stem": "encoder.conv",
        "keys_to_in_proj": ["encoder.conv"],
        "key_to_lpe": None,
    }
