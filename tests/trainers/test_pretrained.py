from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_pgl.addresses import Located
from nnunetv2_pgl.checkpoint import load_checkpoint, save_checkpoint
from nnunetv2_pgl.export.weights_file import halved
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.trainers.pretrained import (
    ALLOW_PARTIAL,
    TRANSFER_DECODER,
    PretrainedEncoder,
    find_encoder_checkpoint,
    is_asked_for,
)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("PGL_CHECKPOINT", raising=False)
    return tmp_path / "PGL"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_order(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = touch(runs / "a" / "checkpoint_final.pth")
    touch(runs / "unfinished" / "checkpoint_latest.pth")
    assert find_encoder_checkpoint({})[0].path == only
    variable = touch(tmp_path / "v.pth")
    monkeypatch.setenv("PGL_CHECKPOINT", str(variable))
    assert find_encoder_checkpoint({}) == (Located(variable), "PGL_CHECKPOINT")
    plans = touch(tmp_path / "p.pth")
    assert find_encoder_checkpoint({"pretrain_info": {"checkpoint_path": str(plans)}}) == (Located(plans), "the plans")


def test_none_and_several_stop_with_what_to_type(runs: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none was found.*export PGL_CHECKPOINT=.*nnUNetTrainerPGLScratch"):
        find_encoder_checkpoint({})
    paths = [touch(runs / name / "checkpoint_final.pth") for name in ("a", "b")]
    with pytest.raises(CheckpointError) as stop:
        find_encoder_checkpoint({})
    assert all(str(path) in str(stop.value) for path in paths)


def test_a_named_checkpoint_that_is_missing_is_never_passed_over(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(runs / "a" / "checkpoint_final.pth")
    monkeypatch.setenv("PGL_CHECKPOINT", str(tmp_path / "gone.pth"))
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such checkpoint.*variable PGL_CHECKPOINT"):
        find_encoder_checkpoint({})
    with pytest.raises(CheckpointError, match=r"lost\.pth: no such checkpoint.*in the plans"):
        find_encoder_checkpoint({"pretrain_info": {"checkpoint_path": "lost.pth"}})


@pytest.mark.parametrize("request_", [TRANSFER_DECODER, ALLOW_PARTIAL])
def test_a_decoder_and_a_partial_start_are_taken_on_request_only(
    request_: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, variable, _ = request_
    monkeypatch.delenv(variable, raising=False)
    assert not is_asked_for({}, *request_)
    assert not is_asked_for({"pretrain_info": {"checkpoint_path": "a.pth"}}, *request_)
    assert is_asked_for({"pretrain_info": {key: True}}, *request_)
    monkeypatch.setenv(variable, "1")
    assert is_asked_for({}, *request_)
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(CheckpointError, match=f"{variable}=yes: must be 1"):
        is_asked_for({}, *request_)


def test_requests_have_the_documented_names() -> None:
    assert TRANSFER_DECODER[:2] == ("transfer_decoder", "PGL_TRANSFER_DECODER")
    assert ALLOW_PARTIAL[:2] == ("allow_partial", "PGL_ALLOW_PARTIAL")


@pytest.mark.parametrize("is_half", [True, False])
def test_the_log_says_whether_weights_were_rounded(tmp_path: Path, save_encoder: Any, is_half: bool) -> None:
    path = tmp_path / "encoder.pth"
    save_encoder(path)
    if is_half:
        save_checkpoint(halved(load_checkpoint(path)), path)
    encoder = PretrainedEncoder.find({"pretrain_info": {"checkpoint_path": str(path)}})
    network: Any = SimpleNamespace(encoder=SimpleNamespace(strides=[[1, 1, 1], [2, 2, 2]]))
    plans: Any = SimpleNamespace(plans={}, foreground_intensity_properties_per_channel={})
    configuration: Any = SimpleNamespace(spacing=(3, 1, 1), normalization_schemes=["ZScoreNormalization"])
    first = next(encoder.lines("loaded", network, plans, configuration))
    rounded = ", weights rounded to float16" if is_half else ""
    assert first.endswith(f"pgl, 3 epochs on 2 scans, spacing [3.0, 1.0, 1.0] mm{rounded}; loaded")
