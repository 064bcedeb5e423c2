"""Settings of a pre-training run: the data class has the paper's, `recommended` those that we chose by measuring."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from nnunetv2_pgl.files import load_json
from nnunetv2_pgl.networks import PAPER_STRIDES, PaddingName, PlannedName, PlannedNetwork, resnet_skip_strides
from pretraining.settings.field_types import require_field_types
from pretraining.views import IntensityRanges, ViewSettings
from pretraining.views.pairs import Channels

Triple = tuple[int, int, int]
Method = Literal["pgl", "pgl_nce", "byol", "models_genesis", "mae", "pgl_mae"]
Architecture = Literal["resnet50"] | PlannedName
OptimizerName = Literal["lars", "sgd", "adamw", "nnunet"]
Spacing = Literal["median", "native"] | tuple[float, float, float]

_LARGEST_CELL = 16  # voxels

# Peak learning rate at the batch size it belongs to; other batch sizes scale it linearly. LARS is the paper's; SGD is
# what the same group used later (DeSD, batch 192).
_LEARNING_RATES = {"lars": (0.2, 128), "sgd": (0.3, 256)}
# Not scaled: that of our comparisons with 8 pairs per step, and nnU-Net's.
_FIXED_RATES = {"adamw": 2e-3, "nnunet": 1e-2}
_ADAMW_RATE_OF_010 = 5e-4
_LEAST_BATCH_OF_LARS = 32  # pairs; the paper's 128 are above, our comparisons' 8, where LARS lags behind, below


@dataclass(frozen=True)
class PretrainConfig:
    """What defines a run: two runs with equal settings, seed and pool train the same encoder.

    Attributes:
        datasets: Where the scans come from: nnU-Net dataset names, or folders.
        modality: "ct" or "mr" to overrule data sets and DICOM files; None to go by them, other files of folders are CT.
        use_masks: Take files of folders that look like segmentations, too.
        spacing: Spacing (z, y, x) in mm to resample to, "median" of the pool, or "native".
        exclude: Names of scans to leave out, such as those of a test set.
        weights: Share of the draws for each of ``datasets``, in any unit; None: every scan is equally likely.
        preprocessing: `PlannedPreprocessing` as plain values, which decides the spacing as well; None: our own.
        in_channels: With joint channels, image channels of the scans; known once these are found.
        method: "pgl", "pgl_nce" (PGL with the other places of the partner as negatives), "byol" (global, no alignment),
            "models_genesis" (restoration of deformed views), "mae" (restoration of hidden blocks) or "pgl_mae" (PGL
            with hidden blocks that are restored).
        architecture: Encoder: the paper's, or one of nnU-Net's networks.
        network: `PlannedNetwork` as plain values; None: what nnU-Net plans for views of this size.
        plans: Data set, plans and configuration that ``preprocessing``, ``network`` and the views' size come from.
        norm: Norm of the ResNet-50, "batch" or "instance".
        padding: What the encoder sees beyond the edge of a view: "zeros", or "replicate" the outermost cells.
        strides: Total stride of the ResNet-50 per axis; None: the paper's, or less where a view would keep fewer than
            two cells.
        align_stages: Maps of the encoder that PGL aligns, 0 is the finest; None: the deepest one whose cells are at
            most 16 voxels.
        views: How views are drawn.
        epochs: Number of epochs; an epoch draws one pair per scan.
        pairs_per_epoch: Pairs per epoch; None: the number of training scans, at least one batch.
        batch_size: Pairs per step, over all processes.
        accumulate: Parts in which each step's batch is computed, to save memory (batch norm then sees the parts).
        optimizer: "lars" (paper), "sgd", "adamw" or "nnunet" (nnU-Net's SGD with its polynomial decay and clipping);
            None: "lars" from 32 pairs per step on, else "adamw".
        learning_rate: Peak learning rate; None: 0.2 per 128 pairs (LARS), 0.3 per 256 (SGD), 2e-3 (AdamW), 0.01
            (nnU-Net's).
        weight_decay: Not applied to biases and norms.
        warmup_epochs: Epochs of linear warm-up before the decay, a cosine or nnU-Net's.
        target_decay: Decay rate of the target path at the start; it rises to 1 on a cosine.
        hidden_channels: Channels inside projector and predictor.
        out_channels: Channels of the projection.
        temperature: Of the similarities in "pgl_nce".
        interpolated_only: Let only aligned points between cell centres count in the loss.
        mask_ratio: Share of hidden blocks in "mae" and "pgl_mae".
        restoration_weight: Weight of the restoration in "pgl_mae".
        validation_scans: Scans held out for the correspondence metric; None: 5 %, at most 16, none below 10 scans.
        preset: Which settings those not given were: "paper", those `recommended` has, or those published for the
            method.
        seed: Seed of all randomness.
    """

    datasets: tuple[str, ...]
    modality: Literal["ct", "mr"] | None = None
    use_masks: bool = False
    spacing: Spacing = "median"
    exclude: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    in_channels: int | None = None
    method: Method = "pgl"
    architecture: Architecture = "resnet50"
    network: dict[str, Any] | None = None
    plans: str | None = None
    norm: Literal["batch", "instance"] = "batch"
    padding: PaddingName = "zeros"
    strides: Triple | None = None
    align_stages: tuple[int, ...] | None = None
    views: ViewSettings = field(default_factory=ViewSettings)
    epochs: int = 500
    pairs_per_epoch: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: OptimizerName | None = None
    learning_rate: float | None = None
    weight_decay: float = 1.5e-6
    warmup_epochs: int = 2
    target_decay: float = 0.996
    hidden_channels: int = 4096
    out_channels: int = 256
    temperature: float = 0.1
    interpolated_only: bool = False
    mask_ratio: float = 0.6
    restoration_weight: float = 1.0
    validation_scans: int | None = None
    preset: Literal["paper", "recommended", "published"] = "paper"
    seed: int = 12345

    @property
    def optimizer_name(self) -> OptimizerName:
        """The optimiser given, or the one for the batch size."""
        return self.optimizer or ("lars" if self.batch_size >= _LEAST_BATCH_OF_LARS else "adamw")

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
        """Those of nnU-Net's network, those given, or the paper's, halved on an axis until a view keeps two cells."""
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
            return PlannedNetwork.of_dict(self.network, self.plans or "network")
        spacing = self.spacing if isinstance(self.spacing, tuple) else (1.0, 1.0, 1.0)
        return PlannedNetwork.preset(self.architecture, self.views.size, spacing)

    @property
    def map_strides(self) -> tuple[Triple, ...]:
        """Stride per axis of each map of the encoder, finest first."""
        network = self.planned_network
        return network.strides if network is not None else resnet_skip_strides(self.encoder_strides)

    @property
    def levels(self) -> tuple[int, ...]:
        """Maps that are aligned; the last one is also what the correspondence is measured on."""
        if self.align_stages is not None:
            return tuple(sorted(set(self.align_stages)))
        return (self._deepest_fine_level,)

    @property
    def mask_block(self) -> Triple:
        """Size of the blocks that "mae" hides: nnssl's 16 voxels per axis, or a cell where the map has smaller ones."""
        return self.map_strides[self._deepest_fine_level]

    @property
    def _deepest_fine_level(self) -> int:
        """The deepest map whose cells have at most 16 voxels along each axis."""
        return [level for level, strides in enumerate(self.map_strides) if max(strides) <= _LARGEST_CELL][-1]

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
        require_field_types(config)
        if "padding" not in values and config.optimizer_name == "adamw" and config.learning_rate is None:
            return replace(config, learning_rate=_ADAMW_RATE_OF_010)  # what such a run was started with
        return config

    @classmethod
    def load(cls, path: Path) -> PretrainConfig:
        """Reads a ``config.json``.

        Raises:
            ValueError: If it is not one; the message names the file.
        """
        try:
            return cls.from_dict(load_json(path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not the settings of a pre-training run ({error})") from error

    def differences(self, other: PretrainConfig) -> list[tuple[str, Any, Any]]:
        """Settings that differ: name, own value, other value."""
        own, others = _flat(self.to_dict()), _flat(other.to_dict())
        keys = [*own, *(key for key in others if key not in own)]  # a group of settings may be None in one of them
        return [(key, own.get(key), others.get(key)) for key in keys if own.get(key) != others.get(key)]


def recommended() -> PretrainConfig:
    """The settings chosen by how much anatomy they teach (docs/results/anatomy.md), but for the data sets.

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
    """The settings that nnssl's masked autoencoding was published with, but for the data sets; see docs/method.md.

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
