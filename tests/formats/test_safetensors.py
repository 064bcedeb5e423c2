"""Checkpoints as .safetensors: what the format's own library reads, all that a .pth says, and nothing that harms."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, load_encoder_network, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.export.weights_file import fits_half, halved
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import PlannedEncoder
from tests.hostile import harmed, variants
from tests.planned_networks import small_network


def checkpoint_of(encoder: torch.nn.Module, **pgl: Any) -> EncoderCheckpoint:
    architecture = {"name": "resenc_m", "norm": "instance", "centred": False, "strides": [2, 2, 2], "in_channels": 1}
    architecture["network"] = encoder.network.to_dict()
    described = {"method": "pgl", "architecture": architecture, "metrics": {"loss": float("nan")}, **pgl}
    return EncoderCheckpoint(dict(encoder.state_dict()), described, {"key_to_encoder": "encoder.stages"})


@pytest.fixture(scope="module")
def encoder() -> PlannedEncoder:
    torch.manual_seed(0)
    return PlannedEncoder(small_network(features=(4, 8)))


@pytest.fixture(scope="module")
def saved(encoder: PlannedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(checkpoint_of(encoder, epochs=3), path)
    return path


def header_of(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def with_header(content: bytes, header: Any) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def test_it_says_what_a_pth_says(encoder: PlannedEncoder, saved: Path, tmp_path: Path) -> None:
    save_checkpoint(checkpoint_of(encoder, epochs=3), tmp_path / "c.pth")
    ours, theirs = load_checkpoint(saved), load_checkpoint(tmp_path / "c.pth")
    assert ours.encoder_weights.keys() == theirs.encoder_weights.keys() == encoder.state_dict().keys()
    assert all(torch.equal(value, ours.encoder_weights[key]) for key, value in theirs.encoder_weights.items())
    assert repr(ours.pgl) == repr(theirs.pgl)  # of a NaN, too
    assert (ours.nnssl_adaptation_plan, ours.citations) == (theirs.nnssl_adaptation_plan, theirs.citations)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_each_tensor_is_in_it_once(encoder: PlannedEncoder, saved: Path) -> None:
    """Under one of its two names, and no tensor is lost: nnU-Net's networks have ``conv`` and ``all_modules.0``."""
    stored = safetensors.numpy.load_file(saved)
    assert sorted(value.size for value in stored.values()) == sorted(value.numel() for value in encoder.parameters())
    assert len(encoder.state_dict()) > len(stored)
    with safe_open(saved, "np") as file:
        metadata = file.metadata()
    aliases = json.loads(metadata["aliases"])
    assert {f"encoder.{key}" for key in encoder.state_dict()} == stored.keys() | aliases.keys()
    assert not stored.keys() & aliases.keys()
    assert json.loads(metadata["pgl"])["epochs"] == 3


def test_the_encoder_is_the_same_network(encoder: PlannedEncoder, saved: Path) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        expected, found = encoder.eval()(image), load_encoder_network(saved)[0](image)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_the_content_counts_and_not_the_name(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(saved.read_bytes())
    assert load_checkpoint(tmp_path / "model.pth").pgl["epochs"] == 3
    save_checkpoint(load_checkpoint(saved), tmp_path / "c.pth")
    (tmp_path / "c.pth").rename(tmp_path / "c.safetensors")
    assert load_checkpoint(tmp_path / "c.safetensors").pgl["epochs"] == 3


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_half_is_rounded_in_the_file_and_float32_where_it_is_used(
    encoder: PlannedEncoder, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"half{ending}"
    save_checkpoint(halved(checkpoint_of(encoder)), path)
    loaded = load_checkpoint(path)
    assert loaded.pgl["precision"] == "float16"
    for key, value in encoder.state_dict().items():
        expected = value.numpy().astype(np.float16).astype(np.float32) if value.ndim > 1 else value.numpy()
        found = loaded.encoder_weights[key]
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), expected), key
    assert len({value.data_ptr() for value in loaded.encoder_weights.values()}) == len(list(encoder.parameters()))
    if ending == ".safetensors":
        dtypes = {value.ndim > 1: value.dtype for value in safetensors.numpy.load_file(path).values()}
        assert dtypes == {True: np.float16, False: np.float32}


@pytest.mark.parametrize("recorded", [True, ["float16"], "float32", "odd"])
def test_a_precision_that_is_none_is_not_repeated(encoder: PlannedEncoder, tmp_path: Path, recorded: object) -> None:
    checkpoint = checkpoint_of(encoder)
    path = tmp_path / "odd.pth"
    save_checkpoint(replace(checkpoint, pgl={**checkpoint.pgl, "precision": recorded}), path)
    assert "precision     float32" in describe(load_checkpoint(path))


@pytest.mark.parametrize(
    ("scale", "fits"), [(1.0, True), (1e-3, True), (7e4, False), (1e-6, False), (0.0, True), (float("nan"), False)]
)
def test_what_float16_cannot_hold_stays_float32(scale: float, fits: bool) -> None:
    """In one channel of several: the norm after it would scale up what has lost its digits."""
    weight = torch.rand(3, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    weight[1] *= scale
    assert fits_half(weight) == fits
    kept = halved(EncoderCheckpoint({"w": weight}, {}, {})).encoder_weights["w"]
    assert kept.dtype == (torch.float16 if fits else torch.float32)


def test_whatever_bytes_it_has(saved: Path, tmp_path: Path) -> None:
    content, rng, path = saved.read_bytes(), random.Random(0), tmp_path / "harmed.safetensors"
    header = 8 + struct.unpack("<Q", content[:8])[0]
    refused = 0
    for _ in range(500):
        path.write_bytes(harmed(content, rng, 0, header))
        refused += is_refused(path)
    assert 250 < refused <= 500
    for kept in (0, 7, 8, 9, header - 1, header, len(content) - 1):
        path.write_bytes(content[:kept])
        assert is_refused(path), kept


def test_whatever_its_header_says(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "wrong.safetensors"
    header = header_of(content)
    (name, *_) = (key for key in header if key != "__metadata__")
    few = {key: header[key] for key in ("__metadata__", name)}
    for _, wrong in variants(few):
        path.write_bytes(with_header(content, {**header, **wrong} if isinstance(wrong, dict) else wrong))
        is_refused(path)
    aliases = json.loads(header["__metadata__"]["aliases"])
    stored_twice = {name: next(key for key in header if key not in ("__metadata__", name))}
    for wrong in ([], {"x": "not there"}, {"x": 3}, 7, dict.fromkeys(aliases, None), stored_twice):
        metadata = {**header["__metadata__"], "aliases": json.dumps(wrong)}
        path.write_bytes(with_header(content, {**header, "__metadata__": metadata}))
        assert is_refused(path) or wrong == [], wrong
    path.write_bytes(struct.pack("<Q", 2**63) + content[8:])
    assert is_refused(path)
    path.write_bytes(with_header(content, {**header, name: {**header[name], "shape": [10**12]}}))
    assert is_refused(path)


def is_refused(path: Path) -> bool:
    message = ""
    try:
        load_checkpoint(path)
    except PGLError as error:
        message = str(error)
    assert not message or message.startswith(f"{path}: ")
    assert "\n" not in message
    return bool(message)


def test_those_of_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"blocks.0.attn.qkv.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights of a vision transformer"):
        load_checkpoint(path)
    safetensors.numpy.save_file({"w": np.zeros((2, 2), np.float32)}, path, {"pgl": "{}"})
    with pytest.raises(CheckpointError, match="format version None"):
        load_checkpoint(path)
    safetensors.numpy.save_file({"w": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"not written by pgl_pretrain \(it holds: w\)"):
        load_checkpoint(path)
