"""``--checkpoint NAME=ADDRESS``: all runs of a comparison start from the content that it has begun with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from pretraining.comparison.derived import KINDS
from pretraining.comparison.files import ComparisonFolder
from pretraining.comparison.inits import Initialisation
from tests.stand_in_commands import NAME, CompareCommand, tree
from tests.web_server import COMMIT, LATER, Server, served

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")
ADDRESS = "hf://me/encoder"
PINNED = f"hf://me/encoder@{COMMIT}/checkpoint_final.pth"
WORDS = ("-d", "7", "-device", "cpu", "-np", "1", "--seeds", "1", "--init", "random", "mine")
GIVEN = ("--checkpoint", f"mine={ADDRESS}", "--fractions", "1")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with served(tmp_path / "cache", monkeypatch) as server:
        server.put_on_hub("me/encoder", "checkpoint_final.pth", checkpoint(tmp_path, 0))
        yield server


def checkpoint(folder: Path, value: float) -> bytes:
    architecture = {"name": "resnet50", "norm": "batch", "centred": True, "strides": [8, 8, 8], "in_channels": 1}
    pgl: dict[str, Any] = {"architecture": architecture, "datasets": [NAME], "config": {"exclude": 9}}
    save_checkpoint(EncoderCheckpoint({"weight": torch.full((100,), value)}, pgl, {}), folder / "made.pth")
    content = (folder / "made.pth").read_bytes()
    (folder / "made.pth").unlink()
    return content


def named_in_plans(compare: CompareCommand) -> dict[str, str]:
    """By initialisation."""
    found = {}
    for path in (compare.root / "nnUNet_preprocessed" / NAME).glob("nnUNetPlans_*.json"):
        plans = json.loads(path.read_text())
        found[path.stem.split("_")[1]] = plans.get("pretrain_info", {}).get("checkpoint_path")
    return found


def test_a_branch_that_moves_does_not_move_the_comparison(compare: CompareCommand, server: Server) -> None:
    ran, code = compare.call(*WORDS, "decoder:mine", *GIVEN)
    assert "mine" in str(code)  # no decoder was trained
    assert not ran
    ran, code = compare.call(*WORDS, *GIVEN)
    assert code == 0
    assert "perhaps on test cases" in compare.output
    assert named_in_plans(compare) == {"random": None, "mine": PINNED}
    assert json.loads((compare.folder / "settings.json").read_text())["checkpoints"] == {"mine": ADDRESS}
    assert json.loads((compare.folder / "addresses.json").read_text()) == {"mine": PINNED}

    server.put_on_hub("me/encoder", "checkpoint_final.pth", checkpoint(compare.root, 1), LATER)
    server.requests.clear()
    ran, code = compare.call(*WORDS, *GIVEN, "0.5")
    assert code == 0
    assert len([line for line in ran if line.startswith("nnUNetv2_train")]) == 2
    assert set(named_in_plans(compare).values()) == {None, PINNED}
    assert server.requests == []
    shutil.rmtree(constants.HF_HUB_CACHE)
    ran, code = compare.call(*WORDS, *GIVEN, "0.2")
    assert code == 0
    assert {COMMIT in request.path for request in server.requests} == {True}
    assert set(named_in_plans(compare).values()) == {None, PINNED}


def test_what_is_made_from_it_names_it_or_its_own_file(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "mine")
    mine = Initialisation("mine", given=tmp_path / "cached.pth", address=PINNED)
    of = {kind: Initialisation(f"{kind}:mine", kind=kind, source=mine) for kind in KINDS}
    named = {kind: init.named_in_plans(folder) for kind, init in of.items()}
    assert named == {"decoder": PINNED, "longer": None, "shuffled": str(folder.derived("shuffled:mine", "pth"))}
    local = Initialisation("mine", given=tmp_path / "local.pth")
    assert local.named_in_plans(folder) == str(tmp_path / "local.pth")


def test_other_content_at_the_address_of_a_comparison_is_refused(compare: CompareCommand, server: Server) -> None:
    address = server.put("/encoder.pth", checkpoint(compare.root, 0))
    words = (*WORDS, "--checkpoint", f"mine={address}", "--fractions")
    assert compare.call(*words, "1")[1] == 0
    shutil.rmtree(constants.HF_ASSETS_CACHE)
    server.put("/encoder.pth", checkpoint(compare.root, 1))
    line = compare.refused(*words, "0.5")
    assert line.startswith(f"pgl_compare: --checkpoint mine={address}: ")
    assert "has the checksum" in line


def test_a_dry_run_downloads_nothing(compare: CompareCommand, server: Server) -> None:
    before = tree(compare.root)
    line = compare.refused(*WORDS, *GIVEN, "--dry_run")
    assert f"not downloaded yet; if you trust it, download it with: pgl_info '{ADDRESS}'" in line
    assert server.requests == []
    assert tree(compare.root) == before
    assert compare.call(*WORDS, *GIVEN, "--only", "prepare")[1] == 0
    assert compare.call(*WORDS, *GIVEN, "--dry_run")[1] == 0
    assert f"uses {PINNED}" in compare.output


def test_config_json_of_an_export_is_not_taken_for_that_of_a_run(compare: CompareCommand, server: Server) -> None:
    path = compare.root / "hub" / "checkpoint_final.pth"
    path.parent.mkdir()
    path.write_bytes(checkpoint(compare.root, 0))
    path.with_name("config.json").write_text(json.dumps({"library": "nnunetv2-pgl", "checkpoint_sha256": "0"}))
    assert compare.call(*WORDS, "--checkpoint", f"mine={path}", "--only", "prepare")[1] == 0
    assert "perhaps on test cases: it lists no names" in compare.output
