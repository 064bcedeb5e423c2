from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_pgl.checkpoint import CheckpointError
from nnunetv2_pgl.trainers.pretrained import decoder_is_wanted, find_encoder_checkpoint, partial_is_allowed


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
    assert find_encoder_checkpoint({})[0] == only
    variable = touch(tmp_path / "v.pth")
    monkeypatch.setenv("PGL_CHECKPOINT", str(variable))
    assert find_encoder_checkpoint({}) == (variable, "PGL_CHECKPOINT")
    plans = touch(tmp_path / "p.pth")
    assert find_encoder_checkpoint({"pretrain_info": {"checkpoint_path": str(plans)}}) == (plans, "the plans")


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


def test_the_decoder_is_used_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGL_TRANSFER_DECODER", raising=False)
    assert not decoder_is_wanted({"pretrain_info": {"checkpoint_path": "a.pth"}})
    assert decoder_is_wanted({"pretrain_info": {"transfer_decoder": True}})
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "1")
    assert decoder_is_wanted({})
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "yes")
    with pytest.raises(CheckpointError, match="PGL_TRANSFER_DECODER=yes: must be 1"):
        decoder_is_wanted({})


def test_a_partial_start_is_allowed_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGL_ALLOW_PARTIAL", raising=False)
    assert not partial_is_allowed({})
    assert partial_is_allowed({"pretrain_info": {"allow_partial": True}})
    monkeypatch.setenv("PGL_ALLOW_PARTIAL", "1")
    assert partial_is_allowed({})
    monkeypatch.setenv("PGL_ALLOW_PARTIAL", "no")
    with pytest.raises(CheckpointError, match="PGL_ALLOW_PARTIAL=no: must be 1"):
        partial_is_allowed({})
