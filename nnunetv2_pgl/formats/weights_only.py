"""Files of tensors and plain values, read without running code."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.formats.other_frameworks import is_legacy_file

GET_IT_AGAIN = "copy it again from where it was made"


class CheckpointError(PGLError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and what to do."""


def load_weights_only(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads a file of tensors and plain values onto the CPU; nothing in it is executed.

    Numbers of numpy, of which nnU-Net's checkpoints have some, become Python's.

    Raises:
        CheckpointError: If the file is missing, truncated, not a PyTorch file, or holds other objects.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; give the checkpoint_final.pth in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give the checkpoint_final.pth of a pgl_pretrain run")
    if not is_legacy_file(path):
        _require_uncompressed(path)
    try:
        with open(path, "rb") as file, _numbers_of_numpy():  # by its name torch would take it for one of safetensors
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        raise CheckpointError(
            f"{path}: holds pickled objects other than tensors and plain values{f' ({named[1]})' if named else ''}, "
            "which could run code, or is damaged, and was not loaded; use a checkpoint_final.pth written by "
            "pgl_pretrain, nnU-Net or nnssl"
        ) from error
    except Exception as error:  # torch checks little of what it reads
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(f"{path}: damaged ({reason}); {GET_IT_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint written by pgl_pretrain")
    return content


def _require_uncompressed(path: Path) -> None:
    """Refuses an archive that unpacks to more than the file has, as no file of `torch.save` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # of a damaged table of contents, too
        raise CheckpointError(f"{path}: truncated, or not a PyTorch checkpoint; {GET_IT_AGAIN}") from error
    unpacked = sum(part.file_size for part in parts)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: would unpack to {unpacked} bytes, more than it has, which PyTorch never writes; {GET_IT_AGAIN}"
        )


def is_whole_tensor(value: object) -> bool:
    """Whether it is a plain tensor that has all of its values, not a small storage in a large shape."""
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same values in memory, as the two names of nnU-Net's networks give them."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def converted(weights: Mapping[str, Tensor], convert: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The tensors as a function makes them; one that has two names stays one tensor."""
    made: dict[tuple[Any, ...], Tensor] = {}
    for value in weights.values():
        if memory_of(value) not in made:
            made[memory_of(value)] = convert(value)
    return {key: made[memory_of(value)] for key, value in weights.items()}


class _NumpyType:
    """Stands in for `numpy.dtype` in a file: the type of a number, and nothing that numpy would do with it."""

    name, order = "", "="

    def __init__(self, name: object = "", *_: object):
        self.name = name if isinstance(name, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", name) else ""

    def __setstate__(self, state: object) -> None:
        """Takes the byte order; records, objects and metadata are refused."""
        if not (isinstance(state, tuple) and len(state) == 8 and state[1] in tuple("<>|=") and not any(state[2:5])):
            raise pickle.UnpicklingError("a type of numpy other than a number's")
        self.order = state[1]


def _number(kind: object, value: object = None) -> bool | int | float:
    """Stands in for numpy's ``scalar``: the number as Python's."""
    if not (
        isinstance(kind, _NumpyType) and kind.name and isinstance(value, bytes) and str(len(value)) == kind.name[1:]
    ):
        raise pickle.UnpicklingError("a value of numpy other than a number")
    number: bool | int | float = np.frombuffer(value, kind.order + kind.name)[0].item()
    return number


def _bytes(text: object, encoding: object) -> bytes:
    """Stands in for ``_codecs.encode``, by which pickles of the second protocol hold bytes (torch before 2.5)."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an encoding other than Latin-1")
    return text.encode("latin1")


def _named(module: str, name: str, stand_in: Any) -> Any:
    """A stand-in under the name that files have for the original, as releases of torch before 2.6 look for it."""
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


_STAND_INS = [
    _named("numpy", "dtype", type("dtype", (_NumpyType,), {})),
    _named("numpy._core.multiarray", "scalar", lambda *values: _number(*values)),
    _named("numpy.core.multiarray", "scalar", lambda *values: _number(*values)),  # before numpy 2
    _named("_codecs", "encode", lambda *values: _bytes(*values)),
]


@contextmanager
def _numbers_of_numpy() -> Iterator[None]:
    """While it lasts, `torch.load` reads numbers of numpy, by the stand-ins."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
