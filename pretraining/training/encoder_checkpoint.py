"""The encoder checkpoint of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
from torch import Tensor

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.environment import versions
from nnunetv2_pgl.formats.nnssl import adaptation_plan
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import Encoder, PlannedEncoder
from pretraining.data import Volume
from pretraining.data.default_preprocessing import HU_RANGE
from pretraining.data.planned_preprocessing import CT_SCHEME
from pretraining.data.store import read_record
from pretraining.objectives import Objective
from pretraining.settings.config import PretrainConfig


def make_checkpoint(
    objective: Objective,
    config: PretrainConfig,
    spacing: Sequence[float],
    is_ct: bool,
    num_scans: int,
    last_record: dict[str, Any],
    manifest: dict[str, Any] | None = None,
    sources: Sequence[dict[str, Any]] = (),
    baseline: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> EncoderCheckpoint:
    """The online encoder with all that its users need to know.

    Args:
        objective: Its online encoder is kept ("we only keep the encoder in the online path", section 3.1), and its
            decoder where it has one.
        config: Settings of the run.
        spacing: Spacing (z, y, x) in mm of the scans as trained on, the median where it varies.
        is_ct: Whether all scans were CT.
        num_scans: Number of scans trained on.
        last_record: The last epoch's record.
        manifest: Hash of the manifest and number of scans per source, as in `Manifest.summary`.
        sources: Where the scans are from, as `described_sources` gives them.
        baseline: The correspondence before training.
        preprocessing: What `recorded_preprocessing` says of the volumes.
    """
    encoder = objective.encoder
    # Stages that the loss does not reach, see `PGL`'s stages.
    keys = [key.split(".") for key, parameter in encoder.named_parameters() if not parameter.requires_grad]
    untrained = {".".join(key[:2]) if key[0] == "stages" else key[0] for key in keys}
    shown = config.without_places()  # a checkpoint may be shared
    architecture = {
        "name": config.architecture,
        "norm": encoder.norm_name,
        "centred": encoder.centred,
        "padding": encoder.padding,
        "strides": list(encoder.strides),
        "in_channels": encoder.in_channels,
    }
    if isinstance(encoder, PlannedEncoder):
        architecture["network"] = encoder.network.to_dict()
    pgl = {
        "method": config.method,
        "architecture": architecture,
        "config": shown,
        "untrained_stages": sorted(untrained),
        "datasets": shown["datasets"],
        "epochs": config.epochs,
        "num_scans": num_scans,
        "manifest": manifest,
        "sources": list(sources),
        "intensity": _intensity(is_ct, config.preprocessing),
        "spacing": [float(s) for s in spacing],
        "preprocessing": preprocessing,
        "view_size": list(config.views.size),
        "metrics": _floats(last_record),
        "metrics_before": _floats(baseline or {}),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    copies: dict[int, Tensor] = {}  # nnU-Net's networks hold each tensor under two names; in the file it stays one
    weights = {
        key: copies.setdefault(id(value), value.detach().to("cpu", copy=True))
        for key, value in encoder.state_dict(keep_vars=True).items()
    }
    citations = [dict(citation) for citation in METHODS[config.method].citations]
    return EncoderCheckpoint(weights, pgl, _adaptation_plan(pgl, encoder), citations, objective.kept_decoder())


def recorded_preprocessing(volumes: Sequence[Volume], config: PretrainConfig) -> dict[str, Any] | None:
    """What the preprocessing of further images needs to know and the settings do not say; None where a plan does.

    These are "target_spacing", which all scans were resampled to (None: each kept its own; the median of the spacings
    that they have since is off by parts of a voxel), and "is_ct" of each channel of the encoder (None: it varies).
    """
    if config.preprocessing is not None:
        return None
    each = config.channels == "each"
    kinds = {kind for volume in volumes for kind in ([(ct,) for ct in volume.is_ct] if each else [tuple(volume.is_ct)])}
    target = read_record(volumes[0].path)["settings"].get("spacing")
    return {"target_spacing": target, "is_ct": list(kinds.pop()) if len(kinds) == 1 else None}


def _floats(record: dict[str, Any]) -> dict[str, float]:
    return {key: float(np.float64(value)) for key, value in record.items()}


def _intensity(is_ct: bool, planned: dict[str, Any] | None) -> dict[str, Any]:
    """What was done to the intensities; with a plan, its schemes and what they use, by channel."""
    if planned is not None:
        schemes, properties = planned["normalization_schemes"], planned["foreground_intensity_properties_per_channel"]
        clips = [
            [properties[str(number)][key] for key in ("percentile_00_5", "percentile_99_5")]
            if scheme == CT_SCHEME
            else None
            for number, scheme in enumerate(schemes)
        ]
        return {
            "modality": "ct" if is_ct else "other",
            "clip": clips[0] if len(clips) == 1 else None,
            "normalisation": ", ".join(schemes),
            "plans": {key: planned[key] for key in ("dataset_name", "plans_name", "configuration")},
            "normalization_schemes": schemes,
            "use_mask_for_norm": planned["use_mask_for_norm"],
            "foreground_intensity_properties_per_channel": properties,
        }
    if is_ct:
        return {"modality": "ct", "clip": [float(bound) for bound in HU_RANGE], "normalisation": "z-score per scan"}
    return {"modality": "other", "clip": None, "normalisation": "z-score per scan and channel"}


def _adaptation_plan(pgl: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    """The same in nnssl's schema; its tools know no ResNet-50, so they will name the architecture and stop."""
    architecture = pgl["architecture"]
    if isinstance(encoder, PlannedEncoder):
        spacing = None if pgl["config"]["spacing"] == "native" else pgl["spacing"]
        return adaptation_plan(encoder.network, encoder.in_channels, pgl["view_size"], spacing)
    return {
        "architecture_plans": {
            "arch_class_name": "PGLResNet50",
            "arch_kwargs": {key: architecture[key] for key in ("strides", "norm", "centred", "padding")},
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
