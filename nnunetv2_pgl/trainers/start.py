"""A training's start from an encoder checkpoint: the weights, what the log says of them, and the fold's record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.adaptation import with_axes
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, sha256_of
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.trainers.differences import intensity_difference, spacing_difference
from nnunetv2_pgl.trainers.source import decoder_is_wanted, partial_is_allowed
from nnunetv2_pgl.transfer import LoadReport, load_decoder, load_encoder
from nnunetv2_pgl.whole_files import write_text

_RECORDED = ("method", "architecture", "epochs", "num_scans", "spacing", "datasets")


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        checkpoint: The encoder.
        path: Its file.
        named_by: What has named it.
    """

    checkpoint: EncoderCheckpoint
    path: Path
    named_by: str

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_of(self.path)

    def axes(self, plans: Mapping[str, Any]) -> tuple[int, int, int]:
        """For each axis of the plan's images, which axis of the pre-training's it is.

        nnU-Net puts the axis of the largest spacing first (``transpose_forward``). Pre-training keeps the axes of the
        files, unless it followed a plan. Of nnU-Net's encoders, turned kernels compute the same; the ResNet-50 strides
        one layer later along its first axis, which costs little (docs/results/anatomy.md).
        """
        followed = (self.checkpoint.pgl.get("config") or {}).get("preprocessing") or {}
        before = list(followed.get("transpose_forward", (0, 1, 2)))
        z, y, x = (before.index(axis) for axis in plans.get("transpose_forward", (0, 1, 2)))
        return z, y, x

    def load(self, network: nn.Module, plans: Mapping[str, Any], image_channels: int) -> tuple[LoadReport, str]:
        """Copies the encoder, and the decoder if it is wanted, into a network.

        Args:
            network: With an ``encoder``.
            plans: Of the training.
            image_channels: How many of the network's input channels are images, see `load_encoder`.

        Returns:
            What became of the encoder's tensors, and all in words.

        Raises:
            CheckpointError: They do not fit.
        """
        encoder: Any = network.encoder
        axes = self.axes(plans)
        weights = with_axes(self.checkpoint.encoder_weights, axes)
        report = load_encoder(encoder, weights, str(self.path), partial_is_allowed(plans), image_channels)
        summary = str(report)
        if decoder_is_wanted(plans):
            turned = replace(self.checkpoint, decoder_weights=with_axes(self.checkpoint.decoder_weights, axes))
            summary += f", and {load_decoder(network, turned, str(self.path))} of the decoder"
        return report, summary

    def lines(
        self, summary: str, network: nn.Module, plans: PlansManager, configuration: ConfigurationManager
    ) -> Iterator[str]:
        """What the log says: where the encoder is from, and what differs from the plan."""
        pgl = self.checkpoint.pgl
        made = [str(pgl.get("method"))]
        if pgl.get("epochs") is not None:
            made.append(f"{pgl['epochs']} epochs on {pgl.get('num_scans')} scans")
        if pgl.get("spacing"):
            made.append(f"spacing {pgl['spacing']} mm")
        yield (
            f"Starting from the encoder {self.path} (named by {self.named_by}, sha256 {self.sha256[:16]}...): "
            f"{', '.join(made)}; {summary}"
        )
        spacing = [round(float(s), 4) for s in configuration.spacing]
        axes = self.axes(plans.plans)
        if axes != (0, 1, 2):
            order = ", ".join("zyx"[axis] for axis in axes)
            yield f"The plan has the pre-training's axes (z, y, x) in the order ({order}); kernels are turned with them"
        strides, before = encoder_strides(network), _in_order(self.checkpoint.architecture.get("strides"), axes)
        other = f" (pre-trained with {before})" if before and before != strides else ""
        yield f"This configuration has spacing {spacing} mm and encoder strides {strides}{other}"
        if untrained := pgl.get("untrained_stages"):
            yield f"The pre-training did not reach {', '.join(untrained)} of the encoder, which are random"
        schemes = configuration.normalization_schemes
        properties = plans.foreground_intensity_properties_per_channel
        for difference in (
            spacing_difference(_in_order(pgl.get("spacing"), axes), configuration.spacing),
            intensity_difference(pgl.get("intensity"), schemes, properties),
        ):
            if difference:
                yield difference

    def record(self, report: LoadReport, folder: str) -> None:
        """Writes ``pgl_checkpoint.json`` into the fold's folder."""
        record: dict[str, Any] = {"path": str(self.path), "sha256": self.sha256, "named_by": self.named_by}
        record |= {key: self.checkpoint.pgl.get(key) for key in _RECORDED}
        record |= {"previous_stage_channels": report.zero_channels}
        record |= {"share_loaded": report.share, "changes": report.lines()}
        write_text(Path(folder, "pgl_checkpoint.json"), json.dumps(record, indent=4) + "\n")


def _in_order(values: Sequence[Any] | None, axes: Sequence[int]) -> list[Any] | None:
    """One value per axis of the pre-training, in the order of the plan's axes."""
    return [values[axis] for axis in axes] if values is not None and len(values) == len(axes) else None


def encoder_strides(network: nn.Module) -> list[int]:
    """Total stride per axis (z, y, x) of a network's encoder."""
    encoder: Any = network.encoder
    if isinstance(network, PGLSegmenter):
        return list(encoder.strides)
    return [int(stride) for stride in np.prod(np.array(encoder.strides), axis=0)]
