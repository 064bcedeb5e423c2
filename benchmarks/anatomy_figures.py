"""What `benchmarks.anatomy` measures on the features of an encoder, and of what it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.frozen_features import neighbour_estimates, probe_estimates, r_squared
from benchmarks.held_out_labels import LabelledVolume, label_fractions
from benchmarks.plain_features import Features, patches, position_code
from nnunetv2_pgl.networks import Encoder, FeatureGrid
from nnunetv2_pgl.networks.hardware import autocast_type, lay_out
from pretraining.data import Volume
from pretraining.settings.config import PretrainConfig
from pretraining.training.correspondence import compare_maps, nearest
from pretraining.training.geometry_baselines import validation_samples
from pretraining.views import ViewPairBatch

_NOISE_PAIRS = 32
_PAIRS = 8  # in a batch
_CALIBRATION_BATCHES = 4
_BATCH = 16
_SEED = 2


@dataclass(frozen=True)
class Pairs:
    """The views that all are measured on.

    Attributes:
        volumes: Held-out scans.
        batches: Pairs of views of them.
        scans: Of each view, batch by batch, the number of its scan.
    """

    volumes: Sequence[Volume]
    batches: Sequence[ViewPairBatch]
    scans: Sequence[Tensor]

    @classmethod
    def draw(cls, volumes: Sequence[Volume], config: PretrainConfig, pairs: int) -> Pairs:
        """Drawn as in the validation of a run; each scan has two at a time, without and with a relative flip."""
        samples = validation_samples(volumes, config.views, _SEED, pairs)
        parts = [samples[at : at + _PAIRS] for at in range(0, pairs, _PAIRS)]
        scans = [torch.tensor([int(sample["index"][0]) for sample in part]).repeat(2) for part in parts]
        return cls(volumes, [ViewPairBatch.collate(part) for part in parts], scans)


def measure(
    encoder: Encoder,
    untrained: Encoder,
    volumes: Sequence[Volume],
    config: PretrainConfig,
    pairs: int = 64,
    labelled: Sequence[LabelledVolume] | None = None,
) -> dict[str, Any]:
    """Figures of an encoder, and under "beside" those of what it is held against."""
    drawn = Pairs.draw(volumes, config, pairs)
    stage, size = config.stages[-1], config.views.size
    grid = encoder.feature_grid(size, stage)
    _calibrate(untrained, drawn, size)
    measured = {
        name: _measure_features(features, grid, drawn, config, labelled)
        for name, features in {
            "": _maps_of(encoder, stage),
            "random weights": _maps_of(untrained, stage),
            "raw patch": patches(grid),
            "code of the place in the view": position_code(grid),
        }.items()
    }
    return {**measured.pop(""), "beside": measured}


def _measure_features(
    features: Features,
    grid: FeatureGrid,
    pairs: Pairs,
    config: PretrainConfig,
    labelled: Sequence[LabelledVolume] | None,
) -> dict[str, Any]:
    size = config.views.size
    generator = torch.Generator().manual_seed(0)
    maps = [(features(batch.render(size, generator)), batch.geometries) for batch in pairs.batches]
    found = compare_maps(maps, grid)
    axes = {
        name: None if axis is None else {"right": axis.right, "mirrored": axis.mirrored}
        for name, axis in zip("zyx", found.axes, strict=True)
    }
    figures: dict[str, Any] = {**vars(found), "axes": axes, **noise_match(features, config)}
    if labelled is not None:
        for name, flips in (("flips", True), ("no_flips", False)):
            figures[name] = _labels_of_features(features, grid, pairs, config, labelled, flips)
    return figures


@torch.no_grad()
def noise_match(features: Features, config: PretrainConfig) -> dict[str, float]:
    """How often the nearest cell of a view of unrelated noise is the one at the same place of the view."""
    generator = torch.Generator().manual_seed(_SEED)
    channels = config.encoder_channels
    hits, count = [], 0
    for _ in range(0, _NOISE_PAIRS, 4):
        first, second = (features(smooth_noise(4, channels, config.views.size, generator)) for _ in range(2))
        mean = torch.cat((first, second)).mean(dim=(0, 2, 3, 4), keepdim=True)
        found = nearest(first - mean, second - mean)
        d, h, w = first.shape[2:]
        own = torch.stack(torch.unravel_index(torch.arange(d * h * w), (d, h, w)), dim=-1)
        hits.append((found == own).all(dim=2).double().mean())
        count = d * h * w
    return {"noise_match": float(torch.stack(hits).mean()), "chance": 1 / count}


def smooth_noise(views: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise, smoothed over about five voxels, z-scored, (views, channels, *size)."""
    margin = 4  # smoothing must not reveal the border
    noise = torch.randn(views, channels, *(n + 2 * margin for n in size), generator=generator)
    for _ in range(2):
        noise = F.avg_pool3d(noise, 5, stride=1)
    return (noise - noise.mean()) / noise.std()


def _labels_of_features(
    features: Features,
    grid: FeatureGrid,
    pairs: Pairs,
    config: PretrainConfig,
    labelled: Sequence[LabelledVolume],
    flips: bool,
) -> dict[str, Any]:
    """R2 of the shares of the labels, of the mean over labels and of each."""
    rows, targets, scans = [], [], []
    for batch, numbers in zip(pairs.batches, pairs.scans, strict=True):
        if not flips:
            batch = replace(batch, flips=torch.zeros_like(batch.flips))
        maps = features(batch.render(config.views.size, changes_intensity=False))
        rows.append(maps.flatten(2).transpose(1, 2).flatten(0, 1))
        volumes = [labelled[number] for number in numbers.tolist()]
        fractions = label_fractions(volumes, batch.geometries, grid)
        targets.append(fractions.flatten(2).transpose(1, 2).flatten(0, 1))
        scans.append(numbers.repeat_interleave(maps.shape[2:].numel()))
    x, y, of = torch.cat(rows), torch.cat(targets), torch.cat(scans)
    estimates = {f"knn{k}": neighbour_estimates(x, y, of, k) for k in (5, 20)} | {"probe": probe_estimates(x, y, of)}
    names = labelled[0].names
    figures: dict[str, Any] = {}
    for name, values in estimates.items():
        shares = dict(zip(names, r_squared(values, y), strict=True))
        known = [share for share in shares.values() if share is not None]
        figures[name] = {"mean": sum(known) / len(known) if known else None, **shares}
    return figures


def _maps_of(encoder: Encoder, stage: int) -> Features:
    encoder.eval()

    @torch.no_grad()
    def features(views: Tensor) -> Tensor:
        parts = []
        precision = autocast_type(views.device)
        with torch.autocast(views.device.type, dtype=precision, enabled=precision is not None):
            for part in views.split(_BATCH):
                parts.append(encoder(lay_out(part, encoder.memory_format), stage)[-1].float())
        return torch.cat(parts)

    return features


@torch.no_grad()
def _calibrate(untrained: Encoder, pairs: Pairs, size: Sequence[int]) -> None:
    """Batch norms of random weights have seen no image yet, and would do nothing."""
    norms = [module for module in untrained.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over the batches
    untrained.train()
    for batch in pairs.batches[:_CALIBRATION_BATCHES] if norms else ():
        untrained(batch.render(size, torch.Generator().manual_seed(0)))
