"""The encoder checkpoint: what pre-training hands to the trainers, written atomically and read without running code."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_pgl.adaptation import canonical, unaliased
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import flush_to_disk, replacing
from nnunetv2_pgl.formats.nnssl import read_nnssl
from nnunetv2_pgl.formats.nnunet import is_nnunet_model, read_nnunet, read_weights
from nnunetv2_pgl.formats.other_frameworks import describe_checkpoint, state_dict_of
from nnunetv2_pgl.formats.safetensors import ENDING, is_safetensors, load_safetensors, save_safetensors
from nnunetv2_pgl.formats.weights_only import (
    GET_IT_AGAIN,
    CheckpointError,
    converted,
    is_whole_tensor,
    load_weights_only,
)
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import Encoder, PlannedEncoder, PlannedNetwork, ResNet50Encoder

FORMAT_VERSION = 1
_PREFIX = "encoder."
_MAX_NESTING = 20  # levels of tables and lists in a description; ours have six
_MAX_LENGTH = 10_000  # characters of a text, entries of a list
_ROUNDED = ("float16", "bfloat16")  # as pgl["precision"] names what the weights were rounded to before
_CT_PROPERTIES = ("mean", "std", "percentile_00_5", "percentile_99_5")  # what nnU-Net's CT normalisation needs


@dataclass(frozen=True)
class EncoderCheckpoint:
    """A pre-trained encoder and where it comes from.

    Attributes:
        encoder_weights: State dict of the encoder, keys without prefix.
        pgl: How it was made: ``method``, ``architecture`` (name, norm, centred, strides, in_channels, and for nnU-Net's
            encoders their ``network``), ``config``, ``epochs``, ``num_scans``, ``intensity``, ``spacing``,
            ``versions``, and more; plain Python values. Of nnssl's and nnU-Net's files (``framework``), what their
            plans say, and ``notes`` that one should know before one starts from it.
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
        """A copy of ``pgl["architecture"]``."""
        return dict(self.pgl["architecture"])


def atomic_save(content: object, path: str | os.PathLike[str]) -> None:
    """`torch.save` that leaves the new file, or after an OSError the former one, never half of one."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        flush_to_disk(file)


def save_checkpoint(checkpoint: EncoderCheckpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint of CPU tensors and plain values, at once, in the format that the path's ending names."""
    weights = {_PREFIX + key: value for key, value in checkpoint.encoder_weights.items()} | checkpoint.decoder_weights
    content = {
        "network_weights": {key: value.detach().cpu() for key, value in weights.items()},
        "nnssl_adaptation_plan": checkpoint.nnssl_adaptation_plan,
        "pgl": {"format_version": FORMAT_VERSION, **checkpoint.pgl},
        "citations": checkpoint.citations,
    }
    if Path(path).suffix == ENDING:
        save_safetensors(content, path)
    else:
        atomic_save(content, path)


def load_checkpoint(path: str | os.PathLike[str]) -> EncoderCheckpoint:
    """Reads the encoder of a file of ``pgl_pretrain``, nnssl or nnU-Net; nothing in it is executed.

    Both formats of `save_checkpoint` are read, whatever the file's name is. Weights in float16 become float32. Of
    nnU-Net: a trained model (``checkpoint_final.pth``, ``checkpoint_best.pth``), or the weights of one alone.

    Raises:
        CheckpointError: A ValueError that names the file and the reason.
    """
    content = load_safetensors(path) if Path(path).is_file() and is_safetensors(path) else load_weights_only(path)
    if "training_state" in content:
        raise CheckpointError(
            f"{path}: the state of a run that can be continued with --c, not an encoder; use its checkpoint_final.pth"
        )
    plan, citations = content.get("nnssl_adaptation_plan"), content.get("citations")
    try:
        encoder, pgl, decoder = _read(content)
    except PGLError as error:
        raise CheckpointError(f"{path}: {error}") from error
    few_bits = sorted({str(value.dtype).removeprefix("torch.") for value in encoder.values() if _has_few_bits(value)})
    rounded = ", ".join(few_bits) or (pgl.get("precision") if pgl.get("precision") in _ROUNDED else None)
    pgl = {key: value for key, value in pgl.items() if key != "precision"} | ({"precision": rounded} if rounded else {})
    plan = plan if isinstance(plan, dict) else {}
    citations = [entry for entry in citations if _is_citation(entry)] if isinstance(citations, list) else []
    if not all(map(_is_plain, (pgl, plan, citations))) or not _is_usable(pgl):
        raise CheckpointError(f"{path}: damaged, or not written by pgl_pretrain; {GET_IT_AGAIN}")
    return EncoderCheckpoint(converted(encoder, _in_float32), pgl, plan, citations, converted(decoder, _in_float32))


def _read(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Encoder, description and decoder; the caller adds the file's name to a PGLError and checks the description."""
    pgl, plan, weights = (content.get(key) for key in ("pgl", "nnssl_adaptation_plan", "network_weights"))
    if isinstance(pgl, dict) and isinstance(weights, dict):
        weights = _named_tensors(weights)
        if pgl.get("format_version") != FORMAT_VERSION:
            raise PGLError(
                f"format version {pgl.get('format_version')}, this nnunetv2-pgl reads {FORMAT_VERSION}; install the "
                "version it was written with or a newer one"
            )
        encoder = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
        return encoder, pgl, {key: value for key, value in weights.items() if not key.startswith(_PREFIX)}
    if pgl is None and isinstance(plan, dict) and isinstance(weights, dict):
        return *read_nnssl({**content, "network_weights": _named_tensors(weights)}), {}
    table = state_dict_of(content) if pgl is None else {}
    if pgl is None and is_nnunet_model(content):
        return read_nnunet(content, _named_tensors(table))
    if any(key.startswith("encoder.stages.") for key in table):
        return read_weights(_named_tensors(table))
    found = ", ".join(sorted(map(str, content))[:6])
    unknown = f"not written by pgl_pretrain (it holds: {found}); use a checkpoint_final.pth"
    raise PGLError(describe_checkpoint(content) or unknown)


def _named_tensors(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The table as it is stored; a PGLError if it is another table."""
    named = all(isinstance(key, str) and key.isprintable() for key in weights)
    if not weights or not named or not all(map(is_whole_tensor, weights.values())):
        raise PGLError("network_weights is not a table of named tensors")
    for key, value in weights.items():
        if value.is_complex() or not _in_float32(value).isfinite().all():
            raise PGLError(
                f"{key} holds NaN, infinite or complex values, from which no training can start; use another checkpoint"
            )
    return dict(weights)


def _in_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _has_few_bits(value: Tensor) -> bool:
    return value.is_floating_point() and value.element_size() < 4


def _is_plain(value: object, levels: int = _MAX_NESTING) -> bool:
    """Whether it consists of tables, lists, numbers and printable texts, of which none is excessively large."""
    if isinstance(value, dict):
        keys_are_plain = all(isinstance(key, str | int) and _is_plain(key) for key in value)
        return keys_are_plain and _is_plain(list(value.values()), levels)
    if isinstance(value, list | tuple):
        return levels > 0 and len(value) <= _MAX_LENGTH and all(_is_plain(entry, levels - 1) for entry in value)
    if isinstance(value, str):
        return len(value) <= _MAX_LENGTH and value.replace("\n", "").isprintable()
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _is_usable(pgl: Mapping[str, Any]) -> bool:
    """Whether the values that are used in computing make sense; all others are only shown."""
    try:
        architecture, intensity = pgl["architecture"], pgl.get("intensity") or {}
        sizes = (architecture.get("strides"), pgl.get("spacing"), pgl.get("view_size"))
        schemes = intensity.get("normalization_schemes", ["none"])
        channels = (intensity.get("foreground_intensity_properties_per_channel") or {}).values()
        followed = (pgl.get("config") or {}).get("preprocessing") or {}
        return (
            architecture.get("norm", "batch") in ("batch", "instance")
            and isinstance(architecture.get("network", {"kwargs": {}})["kwargs"], dict)
            and sorted(followed.get("transpose_forward", (0, 1, 2))) == [0, 1, 2]
            and all(size is None or (_are_numbers(size, 3) and min(size) > 0) for size in sizes)
            and (intensity.get("clip") is None or _are_numbers(intensity["clip"], 2))
            and isinstance(pgl.get("untrained_stages") or [], list)
            and all(isinstance(note, str) for note in pgl.get("notes") or [])
            and len(schemes) > 0
            and all(isinstance(scheme, str) for scheme in schemes)
            and all(
                not values or (_are_numbers([values[key] for key in _CT_PROPERTIES], 4) and values["std"] > 0)
                for values in channels
            )
        )
    except (AttributeError, KeyError, TypeError):  # a value of another type
        return False


def _are_numbers(values: Any, count: int) -> bool:
    return len(values) == count and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_citation(entry: Any) -> bool:
    references = entry.get("apa_citations") if isinstance(entry, dict) else None
    return isinstance(references, list) and all(isinstance(text, str) for text in references)


def load_encoder_network(path: str | os.PathLike[str]) -> tuple[Encoder, EncoderCheckpoint]:
    """The pre-trained encoder, in evaluation mode, and the checkpoint it is from.

    Called with views (B, channels, D, H, W) that are normalised as the checkpoint's ``pgl["intensity"]`` says, it
    returns its maps, deepest last.

    Raises:
        CheckpointError: The file cannot be used, or holds other weights than its architecture has.
    """
    checkpoint = load_checkpoint(path)
    encoder = untrained_encoder(checkpoint, str(path))
    try:
        encoder.load_state_dict(_with_all_names(encoder, checkpoint.encoder_weights))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: its weights do not fit its architecture; copy it again") from error
    return encoder.eval(), checkpoint


def _with_all_names(encoder: Encoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under both names that nnU-Net's networks have for a parameter; files may have one of them."""
    given = unaliased(weights)
    names = {key: canonical(key) for key in encoder.state_dict()}
    known = {key: given[name] for key, name in names.items() if name in given}
    return known | {key: value for key, value in given.items() if key not in names.values()}


def untrained_encoder(checkpoint: EncoderCheckpoint, path: str) -> Encoder:
    """The network of a checkpoint, with random weights; a CheckpointError if its architecture is not known here."""
    architecture = checkpoint.architecture
    try:
        channels, padding = int(architecture["in_channels"]), architecture.get("padding", "zeros")
        if "network" in architecture:
            return PlannedEncoder(PlannedNetwork.from_dict(architecture["network"], path), channels, padding)
        norm, centred = architecture["norm"], architecture["centred"]
        return ResNet50Encoder(channels, architecture["strides"], norm, centred, padding)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its architecture is not known here ({error}); see pgl_info") from error
