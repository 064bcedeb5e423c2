from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import (
    CheckpointError,
    EncoderCheckpoint,
    load_checkpoint,
    save_checkpoint,
)
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from nnunetv2_pgl.transfer import load_decoder, load_encoder


def make_checkpoint(encoder: torch.nn.Module, **pgl: Any) -> EncoderCheckpoint:
    described = {"method": "pgl", "architecture": {"name": "resnet50", "norm": "batch", "centred": True}, **pgl}
    return EncoderCheckpoint(dict(encoder.state_dict()), described, {"key_to_encoder": "encoder"})


@pytest.fixture(scope="module")
def encoder() -> ResNet50Encoder:
    return ResNet50Encoder()


@pytest.fixture(scope="module")
def saved(encoder: ResNet50Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_final.pth"
    save_checkpoint(make_checkpoint(encoder, epochs=3), path)
    return path


def test_round_trip(encoder: ResNet50Encoder, saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.pgl["epochs"] == 3
    assert loaded.architecture["norm"] == "batch"
    assert loaded.nnssl_adaptation_plan == {"key_to_encoder": "encoder"}
    assert "Xie" in loaded.citations[0]["apa_citations"][0]
    state = encoder.state_dict()
    assert loaded.encoder_weights.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.encoder_weights.items())


def test_plain_torch_reads_it_too(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert all(key.startswith("encoder.") for key in content["network_weights"])


def test_weights_arrive(encoder: ResNet50Encoder, saved: Path) -> None:
    other = ResNet50Encoder(strides=(8, 8, 8))
    report = load_encoder(other, load_checkpoint(saved).encoder_weights, str(saved))
    assert len(report.loaded) == len(encoder.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), other.parameters(), strict=True))
    assert "318 of 318" in str(report)


def test_stem_adapts_to_channels(encoder: ResNet50Encoder, saved: Path) -> None:
    """An image repeated over three channels gives the features of the single one."""
    other = ResNet50Encoder(3)
    report = load_encoder(other, load_checkpoint(saved).encoder_weights, str(saved))
    assert report.adapted == ("conv.weight",)
    image = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        one, three = encoder.eval()(image)[-1], other.eval()(image.expand(-1, 3, -1, -1, -1))[-1]
    torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-3)


def test_a_misfit_changes_nothing(encoder: ResNet50Encoder) -> None:
    other = ResNet50Encoder()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    weights = dict(encoder.state_dict())
    wider = {**weights, "stage1.0.conv1.weight": torch.zeros(128, 64, 1, 1, 1)}
    with pytest.raises(CheckpointError, match=r"file\.pth: does not fit.*stage1\.0\.conv1\.weight: \(128, "):
        load_encoder(other, wider, "file.pth")
    with pytest.raises(CheckpointError, match=r"1 keys are not loaded \(conv\.weight: not in"):
        load_encoder(other, {k: v for k, v in weights.items() if k != "conv.weight"}, "file.pth")
    with pytest.raises(CheckpointError, match="left over"):
        load_encoder(other, ResNet50Encoder(norm="instance").state_dict() | {"surprise": torch.zeros(1)}, "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated(saved: Path, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "short.pth"
    content = saved.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"short\.pth: (truncated|damaged)"):
        load_checkpoint(path)


def test_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path))}: a folder; give the checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"other\.pth: no such checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"not written by pgl_pretrain \(it holds: epoch, state_dict\)"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(path)
    torch.save({"pgl": {"format_version": 99}, "network_weights": {"encoder.w": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="format version 99"):
        load_checkpoint(path)
    torch.save({"training_state": 1, "pgl": {}}, path)
    with pytest.raises(CheckpointError, match="continued with --c"):
        load_checkpoint(path)
    torch.save({"pgl": {"format_version": 1}, "network_weights": {"encoder.w": "x"}}, path)
    with pytest.raises(CheckpointError, match="named tensors"):
        load_checkpoint(path)


def test_a_decoder_that_was_trained_is_kept_apart_and_loaded_on_request(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    trained = PGLSegmenter(1, 1, (8, 8, 8))
    checkpoint = make_checkpoint(trained.encoder)
    save_checkpoint(replace(checkpoint, decoder_weights=trained.decoder_weights()), path)
    loaded = load_checkpoint(path)
    assert loaded.encoder_weights.keys() == trained.encoder.state_dict().keys()
    segmenter = PGLSegmenter(1, 3, (8, 8, 8))
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    count = load_decoder(segmenter, loaded, str(path))
    arrived = [key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])]
    assert arrived
    assert all(key.startswith(("aspp.", "decoder.")) for key in arrived)  # neither encoder nor head
    state = trained.state_dict()
    assert count == len(loaded.decoder_weights) == sum(key.startswith(("aspp.", "decoder.")) for key in state)
    assert all(torch.equal(segmenter.state_dict()[key], state[key]) for key in loaded.decoder_weights)


def test_a_decoder_that_is_missing_or_does_not_fit_is_named(saved: Path, tmp_path: Path) -> None:
    segmenter = PGLSegmenter(1, 2, (8, 8, 8))
    with pytest.raises(CheckpointError, match="holds no decoder: its method, pgl, trains none"):
        load_decoder(segmenter, load_checkpoint(saved), str(saved))
    other = PGLSegmenter(1, 1, (8, 16, 16))  # its transposed convolutions have other kernels
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    checkpoint = replace(make_checkpoint(other.encoder), decoder_weights=other.decoder_weights())
    with pytest.raises(CheckpointError, match=r"does not fit this network \(decoder\..*-strides"):
        load_decoder(segmenter, checkpoint, "some.pth")
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1j])
def test_weights_from_which_no_training_can_start(tmp_path: Path, value: complex) -> None:
    checkpoint = make_checkpoint(ResNet50Encoder())
    key = "stage1.0.conv1.weight"
    weight = checkpoint.encoder_weights[key].to(torch.complex64 if isinstance(value, complex) else torch.float32)
    weight.view(-1)[7] = value
    save_checkpoint(
        replace(checkpoint, encoder_weights={**checkpoint.encoder_weights, key: weight}), tmp_path / "a.pth"
    )
    with pytest.raises(CheckpointError, match=rf"a\.pth: encoder\.{key} holds NaN, infinite or complex values"):
        load_checkpoint(tmp_path / "a.pth")
