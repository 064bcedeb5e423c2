"""``--half``, ``--safetensors`` and ``-o``: the files that the command writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint, save_checkpoint
from nnunetv2_pgl.export.hub_folder import export_entry
from nnunetv2_pgl.export.weights_file import fits_half, halved
from nnunetv2_pgl.files import sha256_of
from tests.export.test_export_command import FILES, card_of, checkpoint_of, refusal


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["pgl_export", *map(str, arguments)])
        export_entry()

    return call


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(checkpoint_of(), tmp_path / "checkpoint_final.pth")
    return tmp_path / "checkpoint_final.pth"


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)["network_weights"]


def test_one_file_in_the_format_of_its_ending(saved: Path, tmp_path: Path, export: Any) -> None:
    export(saved, "-o", tmp_path / "new" / "copy.pth")
    assert (tmp_path / "new" / "copy.pth").read_bytes() == saved.read_bytes()
    export(saved, "-o", tmp_path / "new" / "same.safetensors")
    ours, theirs = load_checkpoint(tmp_path / "new" / "same.safetensors"), load_checkpoint(saved)
    assert ours.pgl == theirs.pgl
    assert all(torch.equal(value, ours.encoder_weights[key]) for key, value in theirs.encoder_weights.items())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["copy.pth", "same.safetensors"]


@pytest.mark.parametrize("name", ["half.pth", "half.safetensors"])
def test_half_of_it_stays_half(saved: Path, tmp_path: Path, export: Any, name: str) -> None:
    export(saved, "-o", tmp_path / name, "--half")
    for key, value in weights_in(tmp_path / name).items():
        assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), key
    again = tmp_path / "again.safetensors"
    export(tmp_path / name, "-o", again)  # which does not ask for half
    assert any(value.dtype == torch.float16 for value in weights_in(again).values())
    assert load_checkpoint(again).pgl == load_checkpoint(saved).pgl | {"precision": "float16"}


def test_a_folder_with_both_formats_in_half(saved: Path, tmp_path: Path, export: Any) -> None:
    hub = tmp_path / "hub"
    export(saved, "-hub", hub, "--licence", "MIT", "--half", "--safetensors")
    assert sorted(path.name for path in hub.iterdir()) == sorted([*FILES, "model.safetensors"])
    assert load_checkpoint(hub / "model.safetensors").pgl == load_checkpoint(hub / "checkpoint_final.pth").pgl
    digests = {name: sha256_of(hub / name) for name in ("checkpoint_final.pth", "model.safetensors")}
    config = json.loads((hub / "config.json").read_text())
    assert (config["sha256"], config["precision"]) == (digests, "float16")
    card = card_of(hub)[1]
    assert "rounded to float16" in card
    lines = card.split("these lines:\n\n```\n")[1].split("\n```")[0]
    done = subprocess.run(["sha256sum", "--check"], cwd=hub, input=lines + "\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 2), done.stderr
    export(saved, "-hub", hub, "--licence", "MIT", "--overwrite")
    assert sorted(path.name for path in hub.iterdir()) == FILES
    assert "rounded" not in card_of(hub)[1]


def test_tensors_that_float16_cannot_hold_are_counted(
    tmp_path: Path, export: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoint_of()
    key = "stem.convs.0.conv.weight"
    checkpoint.encoder_weights[key] = checkpoint.encoder_weights["stem.convs.0.all_modules.0.weight"] = (
        checkpoint.encoder_weights[key] * 1e-7
    )
    save_checkpoint(checkpoint, tmp_path / "c.pth")
    export(tmp_path / "c.pth", "-o", tmp_path / "half.pth", "--half")
    assert "cannot hold them: the weights of 1 convolution\n" in capsys.readouterr().out
    assert torch.equal(load_checkpoint(tmp_path / "half.pth").encoder_weights[key], checkpoint.encoder_weights[key])


def test_no_absolute_path_is_in_a_file(tmp_path: Path, export: Any) -> None:
    save_checkpoint(checkpoint_of(config={"datasets": ["/data/somebody/scans"]}), tmp_path / "c.pth")
    for name in ("c2.pth", "c2.safetensors"):
        export(tmp_path / "c.pth", "-o", tmp_path / name)
        assert b"somebody" not in (tmp_path / name).read_bytes()


def test_what_is_wrong_costs_one_line(
    saved: Path, tmp_path: Path, export: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.pth").write_text("mine")
    for arguments, message in (
        (("-o", tmp_path / "x.bin"), "give the file the ending .pth or .safetensors"),
        (("-o", tmp_path / "mine.pth"), "exists; give another name, or --overwrite"),
        (("-o", tmp_path / "x.pth", "--licence", "MIT"), "--licence is for -hub"),
        (("-o", tmp_path / "x.pth", "--safetensors"), "--safetensors is for -hub; with -o the ending of FILE"),
    ):
        with pytest.raises(SystemExit) as error:
            export(saved, *arguments)
        assert message in refusal(error)
    (tmp_path / "x.pth").mkdir()
    with pytest.raises(SystemExit) as error:
        export(saved, "-o", tmp_path / "x.pth")
    assert "x.pth: a folder; give the name of a file" in refusal(error)
    assert (tmp_path / "mine.pth").read_text() == "mine"
    for arguments in ((), ("-o", tmp_path / "x.pth", "-hub", tmp_path / "hub"), ("--hal",)):
        with pytest.raises(SystemExit):
            export(saved, *arguments)
        assert capsys.readouterr().err.count("\n") == 1
    export(saved, "-o", tmp_path / "mine.pth", "--overwrite")
    assert load_checkpoint(tmp_path / "mine.pth").pgl["epochs"] == 40


@pytest.mark.parametrize("scale", [1e19, 1e-25, 1e-9])
def test_extreme_weights_stay_as_they_are(scale: float) -> None:
    """Their norms in float32 are infinite or zero, with which every comparison would hold."""
    weight = torch.randn(4, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * scale
    assert not fits_half(weight)
    assert fits_half(weight / scale)
    kept = halved(replace(checkpoint_of(), encoder_weights={"conv.weight": weight}, decoder_weights={}))
    assert torch.equal(kept.encoder_weights["conv.weight"], weight)
    assert "precision" not in kept.pgl  # nothing was rounded
