"""Checkpoints as ``.safetensors`` files: the tensors, and as texts in the header what a ``.pth`` file says beside them.

The header's ``__metadata__`` holds JSON under ``pgl``, ``nnssl_adaptation_plan``, ``citations`` and ``aliases``. The
format knows no two names for one tensor, as nnU-Net's networks have (see `adaptation.canonical`), so a tensor is stored
once and ``aliases`` gives for each of its other names the one that it is stored under.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from nnunetv2_pgl.files import write_bytes
from nnunetv2_pgl.formats.weights_only import GET_IT_AGAIN, CheckpointError, memory_of

ENDING = ".safetensors"
_DESCRIPTIONS = ("pgl", "nnssl_adaptation_plan", "citations")
_LENGTH = 8  # bytes that give the header's length; the header, JSON, follows


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one, whatever its name is."""
    with open(path, "rb") as file:
        start = file.read(_LENGTH + 1)
    return start[_LENGTH:] == b"{"  # PyTorch's files, zip archives and pickles, have another byte there


def save_safetensors(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint, at once.

    Args:
        content: As in a ``.pth`` file: ``network_weights``, CPU tensors, and the descriptions.
        path: The file.

    Raises:
        OSError: It cannot be written.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    for name, value in content["network_weights"].items():
        first = first_names.setdefault(memory_of(value), name)
        if first == name:
            # The format takes no two tensors that share memory.
            stored[name] = value.contiguous().clone()
        else:
            aliases[name] = first
    texts = {key: json.dumps(content[key]) for key in _DESCRIPTIONS} | {"aliases": json.dumps(aliases)}
    write_bytes(Path(path), safetensors.torch.save(stored, {"format": "pt", **texts}))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint into the form that a ``.pth`` file has; nothing in it is executed.

    Returns:
        ``network_weights`` under all their names, and the descriptions. Of a file that describes nothing, as those of
        other programs, the tensors alone.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            # Copies: the tensors of an open file change with it.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        content = {key: json.loads(texts[key]) for key in _DESCRIPTIONS if key in texts}
        named = json.loads(texts.get("aliases", "{}"))
        if missing := [first for first in named.values() if first not in weights]:
            raise ValueError(f"{missing[0]}, which its aliases name, is not stored")
        aliases = {name: weights[first] for name, first in named.items()}
        if twice := sorted(aliases.keys() & weights.keys()):
            raise ValueError(f"{twice[0]} is stored and another name for a tensor at once")
    except Exception as error:  # whatever is in the header
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(f"{path}: damaged ({reason}); {GET_IT_AGAIN}") from error
    weights |= aliases
    return {"network_weights": weights, **content} if content else weights
