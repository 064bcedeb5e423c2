"""Weights of an encoder checkpoint into networks: what fits or can be made to, with a report of every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_pgl.adaptation import (
    CHANNEL_RULE,
    KERNEL_RULE,
    adapt,
    blocks_per_stage,
    canonical,
    channels_fit,
    stage_of,
    unaliased,
)
from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from nnunetv2_pgl.networks.planned_encoder import planned_decoder_weights

MIN_SHARE = 0.9


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of an encoder and of each tensor of a checkpoint.

    A parameter for which nnU-Net's networks have two names (``all_modules``) counts once, under the first of them.

    Attributes:
        loaded: Copied unchanged.
        adapted: Copied in another shape.
        missing: In the encoder, not loaded.
        left_over: In the checkpoint, of no use here.
        reasons: For each key of the last three: how it was adapted, or why it was not loaded.
        rules: For each adapted key: which of `CHANNEL_RULE` and `KERNEL_RULE` were needed.
        share: Loaded or adapted part of the encoder's parameters, by number of elements, 0 .. 1.
        zero_channels: Input channels of the encoder whose weights were set to zero: those of the previous stage of
            nnU-Net's cascade. They are part of an adapted weight and count in the share.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    reasons: Mapping[str, str]
    rules: Mapping[str, tuple[str, ...]]
    share: float
    zero_channels: int = 0

    def __str__(self) -> str:
        arrived = len(self.loaded) + len(self.adapted)
        tensors = f"{arrived} of {arrived + len(self.missing)} encoder tensors"
        parts = [f"{tensors} loaded, {_percent(self.share)} of its parameters"]
        for rule in (CHANNEL_RULE, KERNEL_RULE):
            if keys := [key for key in self.adapted if rule in self.rules[key]]:
                parts.append(f"adapted to the {rule}: {_some(keys)}")
        if self.zero_channels:
            parts.append(f"input channels of the previous stage's segmentation ({self.zero_channels}) start at zero")
        if self.missing:
            parts.append(f"{len(self.missing)} not loaded: {_some(self.missing)}")
        if self.left_over:
            parts.append(f"{len(self.left_over)} of the checkpoint left over: {_some(self.left_over)}")
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """One line for each key that was not simply copied."""
        groups = (("adapted", self.adapted), ("not loaded", self.missing), ("left over", self.left_over))
        return [f"{what}: {key}: {self.reasons[key]}" for what, keys in groups for key in keys]


def load_encoder(
    encoder: torch.nn.Module,
    weights: Mapping[str, Tensor],
    path: str,
    allow_partial: bool = False,
    image_channels: int | None = None,
) -> LoadReport:
    """Copies a checkpoint's weights into an encoder.

    A weight of another size is adapted where `adaptation.adapt` has a sound rule. Of nnU-Net's encoders, stages that
    only the checkpoint has are left out, and those that only the plan has stay random. A stage with more or fewer
    blocks than in the checkpoint is not loaded at all: its blocks have no counterpart that does the same. The paper's
    ResNet-50 has one topology, so there every key must fit.

    Args:
        encoder: The encoder to fill.
        weights: `EncoderCheckpoint.encoder_weights`.
        path: The checkpoint's, for messages.
        allow_partial: Whether less than 90 % of the parameters may be loaded.
        image_channels: How many of the encoder's input channels, the first ones, are images, and no one-hot
            segmentation of the previous stage of nnU-Net's cascade; None for all. The weights do not show it.

    Raises:
        CheckpointError: Too much is missing, or the channels differ and neither number is 1. Nothing is then changed.
    """
    own, given = unaliased(encoder.state_dict()), _unaliased(weights, path)
    inputs = own[_first_convolution(own)].shape[1]
    images = inputs if image_channels is None else image_channels
    if not 1 <= images <= inputs:
        raise ValueError(f"{images} image channels of an encoder with {inputs} input channels")
    _require_channels(own, given, path, images)
    fitting, report = _fit(encoder, own, given, images)
    if isinstance(encoder, ResNet50Encoder) and (report.missing or report.left_over):
        unfit = [f"{key}: {report.reasons[key]}" for key in report.missing]
        raise CheckpointError(
            f"{path}: does not fit this encoder: {len(unfit)} keys are not loaded ({_some(unfit)}), "
            f"{len(report.left_over)} are left over ({_some(sorted(report.left_over))}); check with pgl_info which "
            "architecture and norm it is for"
        )
    if not report.loaded and not report.adapted:
        raise CheckpointError(
            f"{path}: nothing in it fits this encoder ({_some(report.missing)} and so on are missing, "
            f"{_some(report.left_over)} are left over); check with pgl_info which architecture it is for"
        )
    if report.share < MIN_SHARE and not allow_partial:
        reasons = [(key, report.reasons[key]) for key in report.missing]
        because = list(dict.fromkeys(why if "stage" in why else f"{key}: {why}" for key, why in reasons))
        raise CheckpointError(
            f"{path}: only {_percent(report.share)} of the encoder's parameters can be loaded, at least "
            f"{_percent(MIN_SHARE)} are required ({_some(because)}); plan for the checkpoint's network, or, to start "
            "anyway, export PGL_ALLOW_PARTIAL=1 (in the plans: pretrain_info.allow_partial)"
        )
    encoder.load_state_dict(fitting, strict=False)
    return report


def load_decoder(segmenter: torch.nn.Module, checkpoint: EncoderCheckpoint, path: str) -> int:
    """Copies the decoder from a checkpoint that has one; every key must fit. Segmentation heads stay as they are.

    Args:
        segmenter: The paper's, whose ASPP is part of it, or one of nnU-Net's networks.
        checkpoint: Pre-trained with a network of the same kind.
        path: The checkpoint's, for messages.

    Returns:
        The number of tensors; a parameter for which nnU-Net's networks have two names counts once.

    Raises:
        CheckpointError: If the checkpoint has no decoder, or another one; the network is then unchanged.
    """
    if isinstance(segmenter, PGLSegmenter):
        own, remedy = segmenter.decoder_weights(), "with the encoder strides of the plan (-strides)"
    else:
        own, remedy = unaliased(planned_decoder_weights(segmenter)), "by the plan (-plans_from)"
    weights = _unaliased(checkpoint.decoder_weights, path)
    switch = "PGL_TRANSFER_DECODER (in the plans: pretrain_info.transfer_decoder)"
    alone = f"start from its encoder alone: leave out {switch}"
    if not weights:
        raise CheckpointError(
            f"{path}: holds no decoder: its method, {checkpoint.pgl.get('method')}, trains none, or what wrote it kept "
            f"none; {alone}"
        )
    wrong = sorted(own.keys() ^ weights.keys()) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: its decoder does not fit this network ({_some(wrong)}); pre-train {remedy}, or {alone}"
        )
    segmenter.load_state_dict(weights, strict=False)
    return len(weights)


def _percent(share: float) -> str:
    """A share in words, never rounded up to all: 99.97 % of something is not 100 %."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"


def _unaliased(weights: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    try:
        return unaliased(weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again from where it was made") from error


def _fit(
    encoder: torch.nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], images: int
) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights to load, and what becomes of each key."""
    stages = _misfit_stages(own, given)
    first = _first_convolution(own)
    zero_channels = own[first].shape[1] - images
    fitting: dict[str, Tensor] = {}
    missing, reasons, rules = [], {}, {}
    for key, value in own.items():
        weight, reason = given.get(key), stages.get(stage_of(key))
        if reason is None and weight is not None:
            if weight.shape == value.shape and not (key == first and zero_channels):
                fitting[key] = weight
                continue
            if adapted := adapt(weight, value.shape, key == first, images):
                fitting[key], reasons[key], rules[key] = adapted.weight, adapted.how, adapted.rules
                continue
            reason = f"{tuple(weight.shape)} in the checkpoint, {tuple(value.shape)} in the network"
        missing.append(key)
        reasons[key] = reason or "not in the checkpoint"
    left_over = tuple(key for key in given if key not in own)
    reasons |= {key: stages.get(stage_of(key)) or "not in the network" for key in left_over}
    loaded = tuple(key for key in fitting if key not in rules)
    share = _share(encoder, fitting)
    zero_channels = zero_channels if first in fitting else 0
    return fitting, LoadReport(loaded, tuple(rules), tuple(missing), left_over, reasons, rules, share, zero_channels)


def _misfit_stages(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[int | None, str]:
    """Why the weights of a stage cannot be used, for those of nnU-Net's stages where that is so."""
    here, there = blocks_per_stage(own), blocks_per_stage(given)
    depths = f"the checkpoint has {len(there)} stages, the network {len(here)}"
    reasons: dict[int | None, str] = {}
    for stage in here.keys() | there.keys():
        if stage not in there:
            reasons[stage] = f"{depths}: stays random"
        elif stage not in here:
            reasons[stage] = f"{depths}: left out"
        elif here[stage] != there[stage]:
            reasons[stage] = f"stage {stage} has {there[stage]} blocks in the checkpoint, {here[stage]} in the network"
    return reasons


def _share(encoder: torch.nn.Module, fitting: Mapping[str, Tensor]) -> float:
    """Part of the parameters that is loaded; shared ones count once, buffers do not."""
    sizes = {canonical(key): parameter.numel() for key, parameter in encoder.named_parameters()}
    return sum(size for key, size in sizes.items() if key in fitting) / sum(sizes.values())


def _first_convolution(own: Mapping[str, Tensor]) -> str:
    """The convolution that sees the image: encoders register it first."""
    return next(key for key, value in own.items() if value.ndim == 5)


def _require_channels(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str, images: int) -> None:
    first = _first_convolution(own)
    if first not in given or given[first].ndim != 5 or channels_fit(given[first].shape[1], images):
        return
    there, others = given[first].shape[1], own[first].shape[1] - images
    cascade = f" (and {others} of the previous stage's segmentation, which need none)" if others else ""
    raise CheckpointError(
        f"{path}: an encoder for {there} image channels, this dataset has {images}{cascade}: one channel can be "
        f"repeated, and several be summed to one, nothing else; pre-train on scans of {images} channels, or one "
        "channel at a time"
    )


def _some(items: Sequence[str]) -> str:
    """At most three."""
    return ", ".join([*items[:3], "..."] if len(items) > 3 else items) or "none"
