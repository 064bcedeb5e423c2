"""The start of a training from an encoder checkpoint: which file, its weights, the log, and the record of the fold.

Plans name it under ``pretrain_info``: "checkpoint_path", "transfer_decoder", "allow_partial".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.adaptation import with_axes
from nnunetv2_pgl.addresses import Located, locate, shown
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.errors import counted
from nnunetv2_pgl.files import sha256_of, write_text
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.trainers.preprocessing_check import intensity_difference, spacing_difference
from nnunetv2_pgl.transfer import LoadReport, load_decoder, load_encoder

VARIABLE = "PGL_CHECKPOINT"
# What pretrain_info in the plans may ask for, and the variable that does so too, with its meaning.
TRANSFER_DECODER = ("transfer_decoder", "PGL_TRANSFER_DECODER", "use the decoder too")
ALLOW_PARTIAL = ("allow_partial", "PGL_ALLOW_PARTIAL", "start from what fits, however little")
_RECORDED = ("method", "architecture", "epochs", "num_scans", "spacing", "datasets", "notes", "precision")


def find_encoder_checkpoint(
    plans: Mapping[str, Any], log: Callable[[str], object] | None = None
) -> tuple[Located, str]:
    """The checkpoint to start from and where it was named; never a silent guess.

    In this order: the plans' ``pretrain_info.checkpoint_path``; the environment variable ``PGL_CHECKPOINT``; the only
    finished run under ``$nnUNet_results/PGL``. The first two may be addresses. Plans come from other people, too, so
    what they name is not downloaded, but taken from the cache.

    Args:
        plans: Of the training.
        log: Takes what is said about a download, see `locate`.

    Raises:
        CheckpointError: If there is none, several to choose from, or the one that is named does not exist.
    """
    info, named_by = plans.get("pretrain_info") or {}, "pretrain_info.checkpoint_path in the plans"
    in_plans = info.get("checkpoint_path") if isinstance(info, dict) else info
    if in_plans:
        if not isinstance(in_plans, str) or not isinstance(info, dict):
            raise CheckpointError(f"{named_by} is {in_plans!r}, not a path or an address; correct the plans")
        return _existing(in_plans, named_by, download=False, log=log), "the plans"
    in_variable = os.environ.get(VARIABLE)
    if in_variable:
        return _existing(in_variable, f"the environment variable {VARIABLE}", download=True, log=log), VARIABLE
    runs = sorted((Path(nnUNet_results) / "PGL").glob("*/checkpoint_final.pth")) if nnUNet_results.is_set() else []
    if len(runs) == 1:
        return Located(runs[0]), "the only run in $nnUNet_results/PGL"
    found = "none was found" if not runs else "several were found: " + ", ".join(str(run) for run in runs)
    example = runs[0] if runs else "/path/to/checkpoint_final.pth"
    raise CheckpointError(
        f"no encoder checkpoint was named, and in $nnUNet_results/PGL {found}. Type export {VARIABLE}={example} "
        "(pgl_pretrain writes it), or train the control from random weights with -tr nnUNetTrainerPGLScratch"
    )


def is_asked_for(plans: Mapping[str, Any], key: str, variable: str, meaning: str) -> bool:
    """Whether the plans, under ``pretrain_info``, or an environment variable ask for something.

    Raises:
        CheckpointError: If the variable is neither 0 nor 1.
    """
    in_variable = os.environ.get(variable, "0")
    if in_variable not in ("0", "1"):
        raise CheckpointError(f"{variable}={in_variable}: must be 1 ({meaning}) or 0")
    return bool((plans.get("pretrain_info") or {}).get(key)) or in_variable == "1"


def _existing(named: str, named_by: str, *, download: bool, log: Callable[[str], object] | None) -> Located:
    try:
        found = locate(named, download=download, log=log)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (named by {named_by})") from error
    if not found.path.is_file():
        raise CheckpointError(f"{named}: no such checkpoint; it is named by {named_by}")
    return found


@dataclass(frozen=True)
class PretrainedEncoder:
    """The encoder that a training starts from.

    Attributes:
        checkpoint: Its weights and where they come from.
        path: The file.
        named_by: What names it.
        address: Of one that was downloaded, where exactly this content is; None for others.
    """

    checkpoint: EncoderCheckpoint
    path: Path
    named_by: str
    address: str | None = None

    @classmethod
    def find(cls, plans: Mapping[str, Any], log: Callable[[str], object] | None = None) -> PretrainedEncoder:
        """The encoder to start from, see `find_encoder_checkpoint`; a CheckpointError if it cannot be used."""
        located, named_by = find_encoder_checkpoint(plans, log)
        address = None if located.pinned is None else shown(located.pinned)
        return cls(load_checkpoint(located.path), located.path, named_by, address)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint file."""
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
        """Copies the encoder, and the decoder if it is asked for, into a network.

        Args:
            network: With an ``encoder``.
            plans: The plans of the training.
            image_channels: How many of the network's input channels are images, see `load_encoder`.

        Returns:
            What became of the encoder's tensors, and a summary in words.

        Raises:
            CheckpointError: They do not fit.
        """
        encoder: Any = network.encoder
        axes = self.axes(plans)
        weights = with_axes(self.checkpoint.encoder_weights, axes)
        allow_partial = is_asked_for(plans, *ALLOW_PARTIAL)
        report = load_encoder(encoder, weights, str(self.path), allow_partial, image_channels)
        summary = str(report)
        if is_asked_for(plans, *TRANSFER_DECODER):
            turned = replace(self.checkpoint, decoder_weights=with_axes(self.checkpoint.decoder_weights, axes))
            summary += f", and {load_decoder(network, turned, str(self.path))} of the decoder"
        return report, summary

    def lines(
        self, summary: str, network: nn.Module, plans: PlansManager, configuration: ConfigurationManager
    ) -> Iterator[str]:
        """What the log says: where the encoder is from, and what differs from the plan."""
        pgl = self.checkpoint.pgl
        epochs = f", {counted(pgl['epochs'], 'epoch')}" if pgl.get("epochs") is not None else ""
        scans = f" on {counted(pgl['num_scans'], 'scan')}" if epochs and pgl.get("num_scans") is not None else ""
        spacing = f", spacing {pgl['spacing']} mm" if pgl.get("spacing") else ""
        downloaded = f"from {self.address}, " if self.address else ""
        rounded = f", weights rounded to {pgl['precision']}" if pgl.get("precision") else ""
        yield (
            f"Starting from the encoder {self.path} ({downloaded}named by {self.named_by}, "
            f"sha256 {self.sha256[:16]}...): {pgl.get('method')}{epochs}{scans}{spacing}{rounded}; {summary}"
        )
        yield from pgl.get("notes") or ()
        axes = self.axes(plans.plans)
        if axes != (0, 1, 2):
            order = ", ".join("zyx"[axis] for axis in axes)
            yield f"The plan has the pre-training's axes (z, y, x) in the order ({order}); kernels are turned with them"
        strides, before = encoder_strides(network), _in_order(self.checkpoint.architecture.get("strides"), axes)
        other = f" (pre-trained with {before})" if before and before != strides else ""
        planned_spacing = [round(float(s), 4) for s in configuration.spacing]
        yield f"This configuration has spacing {planned_spacing} mm and encoder strides {strides}{other}"
        if untrained := pgl.get("untrained_stages"):
            yield f"The pre-training did not reach {', '.join(map(str, untrained))} of the encoder, which are random"
        schemes, properties = configuration.normalization_schemes, plans.foreground_intensity_properties_per_channel
        differences = (
            spacing_difference(_in_order(pgl.get("spacing"), axes), configuration.spacing),
            intensity_difference(pgl.get("intensity"), schemes, properties),
        )
        yield from filter(None, differences)

    def record(self, report: LoadReport, folder: str) -> None:
        """Writes ``pgl_checkpoint.json`` into the fold's folder."""
        record = {
            "path": str(self.path),
            "address": self.address,
            "sha256": self.sha256,
            "named_by": self.named_by,
            **{key: self.checkpoint.pgl.get(key) for key in _RECORDED},
            "previous_stage_channels": report.zero_channels,
            "share_loaded": report.share,
            "changes": report.lines(),
        }
        write_text(Path(folder, "pgl_checkpoint.json"), json.dumps(record, indent=4) + "\n")


def sums(network: nn.Module) -> tuple[float, ...]:
    """The sum of each parameter, by which one sees that others were put in their place."""
    return tuple(float(parameter.detach().sum()) for parameter in network.parameters())


def _in_order(values: Sequence[Any] | None, axes: Sequence[int]) -> list[Any] | None:
    """One value per axis of the pre-training, in the order of the plan's axes."""
    return [values[axis] for axis in axes] if values is not None and len(values) == len(axes) else None


def encoder_strides(network: nn.Module) -> list[int]:
    """Total stride per axis (z, y, x) of a network's encoder."""
    encoder: Any = network.encoder
    if isinstance(network, PGLSegmenter):
        return list(encoder.strides)
    return [int(stride) for stride in np.prod(np.array(encoder.strides), axis=0)]
