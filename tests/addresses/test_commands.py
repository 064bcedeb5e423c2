"""``pgl_info``, ``pgl_export`` and the trainers' search take addresses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.export.hub_folder import export_entry
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.info.command import info_entry
from nnunetv2_pgl.trainers.pretrained import find_encoder_checkpoint
from tests.web_server import COMMIT, Server

ADDRESS = "hf://me/encoder"
PINNED = f"hf://me/encoder@{COMMIT}/checkpoint_final.pth"


@pytest.fixture
def made(server: Server, tmp_path: Path) -> Path:
    """A checkpoint, on the Hub and on another server."""
    path = tmp_path / "made.pth"
    architecture = {"name": "resnet50", "norm": "batch", "centred": True, "strides": [8, 8, 8], "in_channels": 1}
    pgl: dict[str, Any] = {"method": "pgl", "architecture": architecture, "datasets": ["Dataset501_Chest"]}
    save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1000)}, pgl, {"plan": 1}), path)
    server.put_on_hub("me/encoder", "checkpoint_final.pth", path.read_bytes())
    server.put("/a/encoder.pth", path.read_bytes())
    return path


def called(monkeypatch: pytest.MonkeyPatch, entry: Any, *words: str) -> str:
    """The line that a command ends with, empty if it did what it should."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    try:
        entry()
    except SystemExit as stop:
        line = str(stop.code)
    else:
        return ""
    assert "\n" not in line
    return line


def test_info_downloads_and_says_where_it_is(
    server: Server, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, info_entry, ADDRESS) == ""
    output = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in output.out.splitlines())
    assert facts["address"] == PINNED
    assert Path(facts["file"]).read_bytes() == made.read_bytes()
    assert facts["sha256"] == sha256_of(made)
    assert f"Downloading {PINNED}" in output.err
    assert called(monkeypatch, info_entry, str(made)) == ""
    assert "address" not in capsys.readouterr().out
    assert called(monkeypatch, info_entry, f"{server.address}/b.pth").startswith("pgl_info: http://127.0.0.1")


def test_a_file_from_elsewhere_is_read_as_any_other(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle that would run code, and what is no checkpoint at all."""

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch it_ran",)

    monkeypatch.chdir(tmp_path)
    torch.save({"network_weights": Runs()}, "hostile.pth")
    server.put_on_hub("me/encoder", "checkpoint_final.pth", Path("hostile.pth").read_bytes())
    assert "which could run code" in called(monkeypatch, info_entry, ADDRESS)
    assert not Path("it_ran").exists()
    assert "not a PyTorch checkpoint" in called(monkeypatch, info_entry, server.put("/a.pth", b"text" * 1000))


def test_export_takes_an_address(server: Server, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"{server.address}/a/encoder.pth", "--hub", str(tmp_path / "hub"), "--licence", "CC-BY-4.0")
    assert called(monkeypatch, export_entry, *words) == ""
    assert load_checkpoint(tmp_path / "hub" / "checkpoint_final.pth").pgl["method"] == "pgl"


def test_the_variable_is_the_users_word_and_plans_are_not(
    server: Server, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {"pretrain_info": {"checkpoint_path": ADDRESS}}
    for _ in range(2):
        with pytest.raises(CheckpointError) as refused:
            find_encoder_checkpoint(plans)
        assert f"download it with: pgl_info '{ADDRESS}'" in str(refused.value)
        assert str(refused.value).endswith("(named by pretrain_info.checkpoint_path in the plans)")
    assert server.requests == []
    monkeypatch.setenv("PGL_CHECKPOINT", ADDRESS)
    lines: list[str] = []
    located, named_by = find_encoder_checkpoint({}, lines.append)
    assert (located.pinned, named_by, len(lines)) == (PINNED, "PGL_CHECKPOINT", 1)
    server.requests.clear()
    assert find_encoder_checkpoint(plans) == (located, "the plans")
    assert server.requests == []
    monkeypatch.setenv("PGL_CHECKPOINT", "hf://me/other")
    with pytest.raises(CheckpointError, match=r"not found, or not accessible to you.*variable PGL_CHECKPOINT"):
        find_encoder_checkpoint({})
