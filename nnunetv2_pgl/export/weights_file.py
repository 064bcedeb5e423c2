"""The file of weights that is published: no paths of the machine in it, in float16 on request, in either format."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import replacing
from nnunetv2_pgl.formats.safetensors import ENDING, is_safetensors
from nnunetv2_pgl.formats.weights_only import converted, memory_of

ENDINGS = (".pth", ENDING)
# Rounding a normal number to float16's 11 bits changes it by at most this share.
_ROUNDING = 2.0**-11


@dataclass(frozen=True)
class PublishedWeights:
    """An encoder as it is published.

    Attributes:
        source: The checkpoint that it is made of.
        checkpoint: What is written.
        is_unchanged: Whether that is what ``source`` holds.
    """

    source: Path
    checkpoint: EncoderCheckpoint
    is_unchanged: bool

    @classmethod
    def from_file(cls, source: Path, half: bool = False) -> PublishedWeights:
        """Reads a checkpoint; of absolute paths in it, which must not be revealed, only the last part is kept.

        Args:
            source: A checkpoint that ``pgl_pretrain`` made, or one that was published.
            half: Whether to round the weights to float16, see `halved`. Weights that are rounded already stay so.

        Raises:
            PGLError: It cannot be read or was not made by ``pgl_pretrain``.
        """
        loaded = load_checkpoint(source)
        if "format_version" not in loaded.pgl:  # which only our files have
            maker = loaded.pgl.get("framework", "another program")
            raise PGLError(f"{source}: made by {maker}, not by pgl_pretrain; only its authors can describe it")
        pgl, plan = _relative(loaded.pgl), _relative(loaded.nnssl_adaptation_plan)
        is_rounded = pgl.get("precision") == "float16"
        unchanged = pgl == loaded.pgl and plan == loaded.nnssl_adaptation_plan and (is_rounded or not half)
        checkpoint = replace(loaded, pgl=pgl, nnssl_adaptation_plan=plan)
        return cls(source, halved(checkpoint) if half or is_rounded else checkpoint, unchanged)

    def write(self, path: Path) -> None:
        """Writes the file at once, in the format of its ending; as a copy byte for byte where nothing changes.

        Raises:
            OSError: It cannot be written.
        """
        if self.is_unchanged and is_safetensors(self.source) == (path.suffix == ENDING):
            with replacing(path) as temporary:
                shutil.copyfile(self.source, temporary)
        else:
            save_checkpoint(self.checkpoint, path)

    def in_float32(self) -> int:
        """How many weights of convolutions are not in float16."""
        weights = {**self.checkpoint.encoder_weights, **self.checkpoint.decoder_weights}.values()
        return len({memory_of(value) for value in weights if value.ndim > 1 and value.dtype == torch.float32})


def halved(checkpoint: EncoderCheckpoint) -> EncoderCheckpoint:
    """The checkpoint with the weights of its convolutions in float16, marked as such in ``pgl["precision"]``.

    Norms, which are tiny, and weights that float16 cannot hold (see `fits_half`) stay as they are.
    """
    encoder, decoder = (converted(part, _half) for part in (checkpoint.encoder_weights, checkpoint.decoder_weights))
    is_rounded = any(value.dtype == torch.float16 for value in (*encoder.values(), *decoder.values()))
    pgl = {**checkpoint.pgl, "precision": "float16"} if is_rounded else checkpoint.pgl
    return replace(checkpoint, encoder_weights=encoder, decoder_weights=decoder, pgl=pgl)


def _half(weight: Tensor) -> Tensor:
    return weight.half() if fits_half(weight) else weight


def fits_half(weight: Tensor) -> bool:
    """Whether float16 holds a convolution's weight (out, in, ...) with its own precision, in every output channel.

    It has no values above 65504, and below 6e-5 it loses digits. A few such values among larger ones do not matter, but
    a channel of nothing else does: the norm after it scales it up.
    """
    if weight.ndim < 2 or weight.dtype != torch.float32:
        return False
    channels = weight.flatten(1).double()
    errors = (channels - weight.flatten(1).half().double()).norm(dim=1)
    return bool(channels.isfinite().all() and (errors <= _ROUNDING * channels.norm(dim=1)).all())


def _relative(value: Any) -> Any:
    """The same table, list or value, with the last part alone of every absolute path."""
    if isinstance(value, dict):
        return {_relative(key): _relative(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_relative(entry) for entry in value)
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value
