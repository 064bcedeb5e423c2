"""What numpy could be made to do by a checkpoint: of its values, only numbers are read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.formats.weights_only import CheckpointError, load_weights_only
from tests.nnunet_models import nnunet_content
from tests.planned_networks import small_network

SCALAR = np.float64(1).__reduce__()[0]


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class Made:
    """Pickled as any call with any state."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def hostile_values(witness: Path) -> dict[str, Any]:
    payload = Payload(witness)
    nested, double = pickle.dumps(payload), np.dtype("f8")
    objects = np.empty(1, dtype=object)
    objects[0] = payload
    return {
        "array of objects": objects,
        "array of numbers": np.zeros(3),
        "array of nested pickles": np.array([nested]),
        "scalar of a nested pickle": np.bytes_(nested),
        "scalar of an object": Made(SCALAR, np.dtype("O"), payload),
        "object type over a pickle": Made(SCALAR, np.dtype("O"), nested),
        "pickle as a number": Made(SCALAR, double, nested),
        "number of no bytes": Made(SCALAR, double, payload),
        "type with metadata": np.dtype("f8", metadata={"x": payload}),
        "type with plain metadata": np.dtype("f8", metadata={"x": 1}),
        "record": np.zeros(1, dtype=[("a", "f8")])[0],
        "type with fields": Made(
            np.dtype, "f8", False, True, state=(3, "<", None, ("a",), {"a": (double, 0)}, -1, -1, 0)
        ),
        "type with another state": Made(np.dtype, "f8", False, True, state=payload),
        "type of a class": np.dtype(Payload),
        "date": np.datetime64("2020-01-01"),
        "text": np.str_("x"),
        "complex": np.complex128(1j),
        "call without arguments": Made(SCALAR),
        "reconstructed": Made(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b"),
        "random state": np.random.RandomState(0),
        "loader": Made(np.load, str(witness)),
        "memory map": Made(np.memmap, str(witness), "uint8", "w+", 0, (8,)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", hostile_values(Path("x")))
def test_only_numbers_are_read(tmp_path: Path, what: str, zipped: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "hostile.pth"
    value = hostile_values(witness)[what]
    content = {**nnunet_content(small_network(features=(4, 8))), "optimizer_state": None, "_best_ema": value}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if what == "type of a class":  # numpy makes the type of objects of it, which is read as no number and never used
        assert load_checkpoint(path).pgl["epochs"] == 1000
        content["_best_ema"] = Made(SCALAR, value, pickle.dumps(Payload(witness)))
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"hostile\.pth: (holds pickled objects|damaged)"):
        load_checkpoint(path)
    assert not witness.exists()


def test_the_payload_is_one(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(hostile_values(witness)["array of objects"]))
    assert witness.exists()


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_byte_order_is_followed(tmp_path: Path, order: str) -> None:
    path = tmp_path / "numbers.pth"
    kind = np.dtype("f8").newbyteorder(order)
    torch.save({"value": Made(SCALAR, kind, np.array(3.5, kind).tobytes())}, path)
    assert load_weights_only(path)["value"] == 3.5


def test_torch_s_list_of_what_may_be_read_is_as_before(tmp_path: Path) -> None:
    before, path = torch.serialization.get_safe_globals(), tmp_path / "numbers.pth"
    torch.save({"value": np.float64(1)}, path)
    load_weights_only(path)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        load_weights_only(path)
    torch.save({"value": Payload(path)}, path)
    with pytest.raises(CheckpointError, match=r"\(posix\.system\)"):
        load_weights_only(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    torch.save({"value": np.float64(1)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
