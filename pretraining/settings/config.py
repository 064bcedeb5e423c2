"""The settings of a run with what follows from them, the file that keeps them, and the presets that runs start from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json
from nnunetv2_pgl.networks import PAPER_STRIDES, PlannedNetwork, Triple, resnet_stage_strides
from pretraining.option_fields import require_types
from pretraining.settings.table import OptimizerName, PretrainSettings
from pretraining.views import IntensityRanges, ViewSettings
from pretraining.views.pairs import Channels

_MAX_CELL = 16  # voxels

# Peak learning rate at the batch size it belongs to; other batch sizes scale it linearly. LARS is the paper's; SGD is
# what the same group used later (DeSD, batch 192).
_LEARNING_RATES = {"lars": (0.2, 128), "sgd": (0.3, 256)}
# Not scaled: that of our comparisons with 8 pairs per step, and nnU-Net's.
_FIXED_RATES = {"adamw": 2e-3, "nnunet": 1e-2}
_ADAMW_RATE_OF_010 = 5e-4
_MIN_BATCH_OF_LARS = 32  # pairs; the paper's 128 are above, our comparisons' 8, where LARS lags behind, below


@dataclass(frozen=True)
class PretrainConfig(PretrainSettings):
    """What defines a run: two runs with equal settings, seed and pool train the same encoder.

    ``config.json`` holds all settings.
    """

    @property
    def preset_settings(self) -> PretrainConfig:
        """The settings of `preset`, but for the datasets."""
        if self.preset == "recommended":
            return recommended()
        return published_for_mae() if self.preset == "published" else PretrainConfig(datasets=())

    @property
    def optimizer_name(self) -> OptimizerName:
        """The optimiser given, or the one for the batch size."""
        return self.optimizer or ("lars" if self.batch_size >= _MIN_BATCH_OF_LARS else "adamw")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate given, or the optimiser's own; that of LARS and SGD is scaled to the batch size."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer_name in _FIXED_RATES:
            return _FIXED_RATES[self.optimizer_name]
        rate, batch = _LEARNING_RATES[self.optimizer_name]
        return rate * self.batch_size / batch

    @property
    def channels(self) -> Channels:
        """Whether a view shows "each" channel alone or all "joint"."""
        return self.views.channels

    @property
    def encoder_channels(self) -> int:
        """Image channels that the encoder takes; one while the scans are not known."""
        return self.in_channels or 1

    @property
    def encoder_strides(self) -> Triple:
        """Strides of nnU-Net's network, else as given, else the paper's, halved until a view keeps two cells."""
        if self.planned_network is not None:
            return self.planned_network.strides[-1]
        if self.strides is not None:
            return self.strides
        z, y, x = (_fitting_stride(n, s) for n, s in zip(self.views.size, PAPER_STRIDES, strict=True))
        return (z, y, x)

    @property
    def planned_network(self) -> PlannedNetwork | None:
        """nnU-Net's network, as planned or as it would plan it; None for the ResNet-50."""
        if self.architecture == "resnet50":
            return None
        if self.network is not None:
            return PlannedNetwork.from_dict(self.network, self.plans or "network")
        spacing = self.spacing if isinstance(self.spacing, tuple) else (1.0, 1.0, 1.0)
        return PlannedNetwork.from_preset(self.architecture, self.views.size, spacing)

    @property
    def stage_strides(self) -> tuple[Triple, ...]:
        """Stride per axis of each stage of the encoder, finest first."""
        network = self.planned_network
        return network.strides if network is not None else resnet_stage_strides(self.encoder_strides)

    @property
    def stages(self) -> tuple[int, ...]:
        """Stages that are aligned; the last one is also what the correspondence is measured on."""
        if self.align_stages is not None:
            return tuple(sorted(set(self.align_stages)))
        return (self._last_fine_stage,)

    @property
    def mask_block(self) -> Triple:
        """Size of the blocks that "mae" masks: nnssl's 16 voxels per axis, or a cell where the map has smaller ones."""
        return self.stage_strides[self._last_fine_stage]

    @property
    def _last_fine_stage(self) -> int:
        """The last stage whose cells have at most 16 voxels along each axis."""
        return [stage for stage, strides in enumerate(self.stage_strides) if max(strides) <= _MAX_CELL][-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``config.json``."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If a setting is unknown.
            TypeError: If one is of another type.
        """
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        plain = {key: _tuples(value) for key, value in values.items()}
        if isinstance(plain.get("views"), dict):
            views = {key: _tuples(value) for key, value in plain["views"].items()}
            ranges = {key: _tuples(value) for key, value in views.pop("intensity", {}).items()}
            plain["views"] = ViewSettings(**views, intensity=IntensityRanges(**ranges))
        config = cls(**plain)
        require_types(config)
        if "padding" not in values and config.optimizer_name == "adamw" and config.learning_rate is None:
            return replace(config, learning_rate=_ADAMW_RATE_OF_010)  # what such a run was started with
        return config

    def without_places(self) -> dict[str, Any]:
        """What others may see of the settings: sources without their paths, and only how many scans are left out."""
        return {
            **self.to_dict(),
            "datasets": [Path(name).name for name in self.datasets],
            "exclude": len(self.exclude),
        }

    @classmethod
    def load(cls, path: Path) -> PretrainConfig:
        """Reads a ``config.json``.

        Raises:
            PGLError: If it is not one; the message names the file.
        """
        try:
            return cls.from_dict(load_json(path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PGLError(f"{path}: not the settings of a pre-training run ({error})") from error

    def differences(self, other: PretrainConfig) -> list[tuple[str, Any, Any]]:
        """Settings that differ: name, own value, other value."""
        own, others = _flat(self.to_dict()), _flat(other.to_dict())
        keys = [*own, *(key for key in others if key not in own)]  # a group of settings may be None in one of them
        return [(key, own.get(key), others.get(key)) for key in keys if own.get(key) != others.get(key)]


def recommended() -> PretrainConfig:
    """The settings chosen by how much anatomy they teach (docs/results/anatomy.md), but for the datasets.

    They differ from the paper's in what takes the place in the view away and in the rates of small batches.
    """
    return PretrainConfig(
        datasets=(),
        method="pgl_nce",
        norm="instance",
        padding="replicate",
        views=ViewSettings(no_flip="lateral_in_ct"),
        preset="recommended",
        batch_size=8,
        optimizer="adamw",
        target_decay=0.9,
    )


def published_for_mae() -> PretrainConfig:
    """The settings that nnssl's masked autoencoding was published with, but for the datasets; see docs/method.md.

    Its 8 patches are the views of 4 pairs.
    """
    return PretrainConfig(
        datasets=(),
        method="mae",
        norm="instance",
        views=ViewSettings(scale=(1.0, 1.0), min_overlap=0.0),
        preset="published",
        batch_size=4,
        optimizer="nnunet",
        weight_decay=3e-5,
        warmup_epochs=0,
        mask_ratio=0.75,
    )


def _fitting_stride(size: int, stride: int) -> int:
    while stride > 1 and size < 2 * stride:
        stride //= 2
    return stride


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
