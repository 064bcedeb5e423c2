"""The encoder checkpoint: what pre-training hands to the trainers, written atomically and read without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.foreign import is_legacy_file, what_it_is
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.nnssl import NnsslError, read_nnssl
from nnunetv2_pgl.provenance import ProvenanceError, readable_citations, require_plain, require_provenance
from nnunetv2_pgl.whole_files import flush_to_disk, replacing

FORMAT_VERSION = 1
_PREFIX = "encoder."
_GET_IT_AGAIN = "copy it again from where it was made"


class CheckpointError(PGLError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class EncoderCheckpoint:
    """A pre-trained encoder and where it comes from.

    Attributes:
        encoder_weights: State dict of the encoder, keys without prefix.
        pgl: How it was made: ``method``, ``architecture`` (name, norm, centred, strides, in_channels, and for nnU-Net's
            encoders their ``network``), ``config``, ``epochs``, ``num_scans``, ``intensity``, ``spacing``,
            ``versions``, and more; plain Python values. Of a checkpoint made by nnssl, what its plan tells.
        nnssl_adaptation_plan: The same in the schema of the nnssl framework.
        citations: What to cite, in nnssl's form.
        decoder_weights: ASPP and decoder of the segmenter, or the decoder of nnU-Net's network without its heads, as
            named there, where the method trained them; else empty.
    """

    encoder_weights: dict[str, Tensor]
    pgl: dict[str, Any]
    nnssl_adaptation_plan: dict[str, Any]
    citations: list[dict[str, Any]] = field(default_factory=lambda: list(METHODS["pgl"].citations))
    decoder_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def architecture(self) -> dict[str, Any]:
        """Name, norm, centred, strides and in_channels of the encoder; ``network`` of one of nnU-Net's."""
        return dict(self.pgl["architecture"])


def atomic_save(content: object, path: str | os.PathLike[str]) -> None:
    """`torch.save` that leaves either the old file or the new one, never half of one.

    Raises:
        OSError: If the file cannot be written; a former file of that name is intact.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        flush_to_disk(file)


def save_checkpoint(checkpoint: EncoderCheckpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint of CPU tensors and plain values, atomically.

    Raises:
        OSError: See `atomic_save`.
    """
    named = {_PREFIX + key: value for key, value in checkpoint.encoder_weights.items()} | checkpoint.decoder_weights
    weights = {key: value.detach().cpu() for key, value in named.items()}
    content = {
        "network_weights": weights,
        "nnssl_adaptation_plan": checkpoint.nnssl_adaptation_plan,
        "pgl": {"format_version": FORMAT_VERSION, **checkpoint.pgl},
        "citations": checkpoint.citations,
    }
    atomic_save(content, path)


def load_plain(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads a file of tensors and plain values onto the CPU; nothing in it is executed.

    Raises:
        CheckpointError: If the file is missing, truncated, not a PyTorch file, or holds other objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give the checkpoint_final.pth of a pgl_pretrain run")
    if not is_legacy_file(path):
        _require_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled objects other than tensors and plain values, which could run code, or is damaged, "
            "and was not loaded; use a checkpoint_final.pth written by pgl_pretrain (nnU-Net's own checkpoints go to "
            "-pretrained_weights)"
        ) from error
    except Exception as error:  # torch checks little of what it reads
        raise CheckpointError(f"{path}: damaged ({_first_line(error)}); {_GET_IT_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint written by pgl_pretrain")
    return content


def _require_stored(path: Path) -> None:
    """Refuses an archive that unpacks to more than the file: `torch.save` compresses nothing.

    Raises:
        CheckpointError: It does, or is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # of a damaged table of contents, too
        raise CheckpointError(f"{path}: truncated, or not a PyTorch checkpoint; {_GET_IT_AGAIN}") from error
    unpacked = sum(part.file_size for part in parts)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: would unpack to {unpacked} bytes, more than it has, which PyTorch never writes; {_GET_IT_AGAIN}"
        )


def load_checkpoint(path: str | os.PathLike[str]) -> EncoderCheckpoint:
    """Reads an encoder checkpoint of ``pgl_pretrain`` or of nnssl, with ``weights_only=True``.

    Raises:
        CheckpointError: A ValueError that names the file and the reason.
    """
    content = load_plain(path)
    pgl = content.get("pgl")
    if "training_state" in content:
        raise CheckpointError(
            f"{path}: the state of a run that can be continued with --c, not an encoder; use its checkpoint_final.pth"
        )
    weights = content.get("network_weights")
    from_nnssl = pgl is None and isinstance(content.get("nnssl_adaptation_plan"), dict)
    if not (isinstance(pgl, dict) or from_nnssl) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: {_what_else(content)}")
    if not weights or not all(map(_is_name, weights)) or not all(map(_is_whole_tensor, weights.values())):
        raise CheckpointError(f"{path}: network_weights is not a table of named tensors")
    checkpoint = _of_nnssl(content, path) if from_nnssl else _of_pgl(content, path)
    try:
        require_provenance(checkpoint.pgl)
        require_plain(checkpoint.nnssl_adaptation_plan)
        return replace(checkpoint, citations=readable_citations(checkpoint.citations))
    except ProvenanceError as error:
        raise CheckpointError(f"{path}: {error}; {_GET_IT_AGAIN}") from error


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isprintable()


def _is_whole_tensor(value: object) -> bool:
    """Whether it is a plain tensor that has all of its values, not a small storage in a large shape."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return False
    if value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _of_pgl(content: dict[str, Any], path: str | os.PathLike[str]) -> EncoderCheckpoint:
    weights, pgl = content["network_weights"], content["pgl"]
    version = pgl.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this nnunetv2-pgl reads {FORMAT_VERSION}; install the version it was "
            "written with or a newer one"
        )
    encoder = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
    decoder = {key: value for key, value in weights.items() if not key.startswith(_PREFIX)}
    plan, citations = content.get("nnssl_adaptation_plan"), content.get("citations") or []
    return EncoderCheckpoint(encoder, pgl, plan if isinstance(plan, dict) else {}, citations, decoder)


def _of_nnssl(content: dict[str, Any], path: str | os.PathLike[str]) -> EncoderCheckpoint:
    try:
        made = read_nnssl(content)
    except NnsslError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return EncoderCheckpoint(made.weights, made.pgl, content["nnssl_adaptation_plan"], content.get("citations") or [])


def _what_else(content: dict[str, Any]) -> str:
    """What a file is that holds no encoder."""
    if what := what_it_is(content):
        return what
    found = ", ".join(sorted(map(str, content))[:6])
    return f"not written by pgl_pretrain (it holds: {found}); use a checkpoint_final.pth"


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
