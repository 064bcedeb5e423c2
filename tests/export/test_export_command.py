from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.export.hub_folder import export_entry
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.formats.nnssl import adaptation_plan
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork

FILES = ["README.md", "adaptation_plan.json", "checkpoint_final.pth", "config.json"]
SHA = "ab" * 32


def checkpoint_of(**pgl: Any) -> EncoderCheckpoint:
    """A small encoder of nnU-Net's with all that a run records."""
    whole = PlannedNetwork.from_preset("resenc_l", (8, 16, 16), (1.0, 1.0, 1.0))
    width = {"features_per_stage": [2] * len(whole.strides), "n_blocks_per_stage": [1] * len(whole.strides)}
    network = PlannedNetwork(whole.class_name, {**whole.kwargs, **width}, whole.requires_import)
    described = {
        "method": "pgl",
        "architecture": {"name": "resenc_l", "norm": "instance", "centred": False, "strides": list(network.strides[-1])}
        | {"in_channels": 1, "network": network.to_dict()},
        "config": {"datasets": ["Dataset501_Chest", "ribs"], "epochs": 40, "seed": 99},
        "datasets": ["Dataset501_Chest", "ribs"],
        "epochs": 40,
        "num_scans": 7,
        "manifest": {"sha256": SHA, "scans_per_source": {"Dataset501_Chest": 6, "ribs": 1}},
        "sources": [
            {"name": "Dataset501_Chest", "scans": 6, "held_out": 1, "channels": ["CT"], "licence": "CC-BY-SA 4.0"}
            | {"reference": "a|b", "release": "1.0"},
            {"name": "ribs", "scans": 1, "held_out": 0, "channels": ["CT"], "licence": None, "reference": None},
        ],
        "intensity": {"modality": "ct", "clip": [-1024.0, 325.0], "normalisation": "z-score per scan"},
        "spacing": [3.0, 1.0, 0.75],
        "view_size": [8, 16, 16],
        "metrics": {"loss": 1.25, "flipped_right": 0.8125, "position_code": 0.015, "ceiling": 0.99, "decoy": 0.0625},
        "metrics_before": {"flipped_right": 0.025, "decoy": 0.2},
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.9"},
    }
    weights = dict(PlannedEncoder(network).state_dict())
    plan = adaptation_plan(network, 1, (8, 16, 16), (3.0, 1.0, 0.75))
    return EncoderCheckpoint(weights, described | pgl, plan)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint_final.pth"
    save_checkpoint(checkpoint_of(), path)
    return path


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["pgl_export", *map(str, arguments)])
        export_entry()

    return call


def card_of(folder: Path) -> tuple[dict[str, str], str]:
    """The simple keys of the metadata, and the text."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return dict(re.findall(r"^(\w+): (.+)$", metadata, re.MULTILINE)), text


def refusal(error: pytest.ExceptionInfo[SystemExit]) -> str:
    message = str(error.value.code)
    assert message.startswith("pgl_export: ")
    assert "\n" not in message
    return message


def test_the_folder_that_nnunet_asks_for(saved: Path, tmp_path: Path, export: Any) -> None:
    export(saved, "--hub", tmp_path / "new" / "hub", "--licence", "CC-BY-4.0")
    folder = tmp_path / "new" / "hub"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["hub"]  # no temporary folder is left
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert json.loads((folder / "adaptation_plan.json").read_text()) == content["nnssl_adaptation_plan"]
    config = json.loads((folder / "config.json").read_text())
    assert (folder / "checkpoint_final.pth").read_bytes() == saved.read_bytes()
    assert config["checkpoint_sha256"] == sha256_of(saved)
    assert config["architecture"]["name"] == "resenc_l"
    assert config["licence"] == "CC-BY-4.0"


def test_the_card_tells_what_the_checkpoint_tells(saved: Path, tmp_path: Path, export: Any) -> None:
    export(saved, "--hub", tmp_path / "hub", "--licence", "CC-BY-4.0")
    metadata, text = card_of(tmp_path / "hub")
    assert metadata["license"] == "cc-by-4.0"
    assert "license_name" not in metadata
    told = [SHA, "3 x 1 x 0.75 mm", "-1024 to 325", "`loss` 1.25", "of the held-out scans"]
    told += ["find 1.5% of the right places"]
    told += [
        "| `Dataset501_Chest` | 6 | CT | CC-BY-SA 4.0 | a\\|b, 1.0 |",
        "| `ribs` | 1 | CT | not stated | not recorded |",
    ]
    told += ["the right place of the scan | 2.5% | 81.2% |", "same place in the view instead | 20.0% | 6.2% |"]
    told += ["of the scan, 99.0%", "No fine-tuning result is recorded", "7, and 1 scan held out", "Not given yet"]
    told += ['"seed": 99', "Xie, Y.", "2026-01-02", sha256_of(tmp_path / "hub" / "checkpoint_final.pth"), "> CC-BY-4.0"]
    told += ["nnUNetTrainerPGL -p nnUNetResEncUNetLPlans", "nnUNetv2_preprocess_like_nnssl", "nnUNetPlannerResEncL"]
    told += ["Padding in the pre-training: zeros"]
    for piece in told:
        assert piece in text, piece
    assert "Not trained" not in text
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert settings == load_checkpoint(saved).pgl["config"]


def test_stages_without_training_are_named(tmp_path: Path, export: Any) -> None:
    save_checkpoint(checkpoint_of(untrained_stages=[2, 3]), tmp_path / "c.pth")
    export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    assert "Not trained: stages 2, 3" in card_of(tmp_path / "hub")[1]


def test_a_licence_of_ones_own_becomes_a_file(saved: Path, tmp_path: Path, export: Any) -> None:
    text = "Research use only.\nAsk the clinic first."
    export(saved, "--hub", tmp_path / "hub", "--license", text)
    metadata, card = card_of(tmp_path / "hub")
    assert metadata["license"] == "other"
    assert metadata["license_link"] == "LICENSE"
    assert re.fullmatch(r'"[a-z0-9.-]+"', metadata["license_name"])
    assert (tmp_path / "hub" / "LICENSE").read_text().strip() == text
    assert "> Research use only.\n> Ask the clinic first.\n" in card


@pytest.mark.parametrize(
    ("given", "identifier"),
    [("Apache-2.0", "apache-2.0"), ("GPL-3.0-or-later", "gpl-3.0"), ("mit", "mit"), ("CC-BY-9.0", "other")],
)
def test_spdx_identifiers(saved: Path, tmp_path: Path, export: Any, given: str, identifier: str) -> None:
    export(saved, "--hub", tmp_path / "hub", "--licence", given)
    assert card_of(tmp_path / "hub")[0]["license"] == identifier


def test_no_absolute_path_leaves_the_machine(tmp_path: Path, export: Any) -> None:
    config = {"datasets": ["/data/somebody/scans"], "plans_from": r"D:\somebody\plans.json", "views": (1, 2)}
    save_checkpoint(checkpoint_of(config=config, datasets=["/data/somebody/scans"]), tmp_path / "c.pth")
    export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    for path in (tmp_path / "hub").iterdir():
        content = path.read_bytes()
        assert b"somebody" not in content, path
        assert str(tmp_path).encode() not in content, path
    exported = load_checkpoint(tmp_path / "hub" / "checkpoint_final.pth")
    assert exported.pgl["config"] == {"datasets": ["scans"], "plans_from": "plans.json", "views": (1, 2)}
    original = load_checkpoint(tmp_path / "c.pth").encoder_weights
    assert all(torch.equal(value, original[key]) for key, value in exported.encoder_weights.items())
    assert "`Dataset501_Chest` | 6" in card_of(tmp_path / "hub")[1]


def test_resnet50_is_for_our_trainer_alone(tmp_path: Path, export: Any) -> None:
    architecture = {"name": "resnet50", "norm": "batch", "centred": False, "strides": [8, 16, 16], "in_channels": 1}
    save_checkpoint(checkpoint_of(architecture=architecture), tmp_path / "c.pth")
    export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    text = card_of(tmp_path / "hub")[1]
    assert "Only nnUNetTrainerPGL reads this encoder" in text
    assert "nnUNetv2_preprocess_like_nnssl" not in text
    assert "-tr nnUNetTrainerPGL -p nnUNetPlans" in text


def test_what_is_missing_or_in_the_way(saved: Path, tmp_path: Path, export: Any) -> None:
    hub = tmp_path / "hub"
    for licence in ((), ("--licence", " ")):
        with pytest.raises(SystemExit) as error:
            export(saved, "--hub", hub, *licence)
        assert "--licence is missing" in refusal(error)
    with pytest.raises(SystemExit) as error:
        export(tmp_path / "nothing.pth", "--hub", hub, "--licence", "MIT")
    assert "nothing.pth: no such checkpoint" in refusal(error)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as error:
        export(saved, "--hub", tmp_path / "file", "--licence", "MIT")
    assert "file: a file; give a folder" in refusal(error)
    assert (tmp_path / "file").read_text() == "mine"
    assert not hub.exists()


def test_overwrite_replaces_an_export_and_nothing_else(saved: Path, tmp_path: Path, export: Any) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    export(saved, "--hub", hub, "--licence", "a licence of one's own")  # an empty folder is free
    with pytest.raises(SystemExit) as error:
        export(saved, "--hub", hub, "--licence", "MIT")
    assert "not empty; give a new folder, or --overwrite" in refusal(error)
    export(hub / "checkpoint_final.pth", "--hub", hub, "--licence", "MIT", "--overwrite")
    assert sorted(path.name for path in hub.iterdir()) == FILES  # the former LICENSE has gone
    assert card_of(hub)[0]["license"] == "mit"
    (hub / "thesis.tex").write_text("ten years")
    with pytest.raises(SystemExit) as error:
        export(saved, "--hub", hub, "--licence", "MIT", "--overwrite")
    assert "holds thesis.tex, which pgl_export did not write" in refusal(error)
    assert (hub / "thesis.tex").read_text() == "ten years"
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_failure_leaves_the_former_export(
    saved: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    export(saved, "--hub", hub, "--licence", "MIT")
    before = {path.name: path.read_bytes() for path in hub.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunetv2_pgl.export.hub_folder.model_card", full)
    with pytest.raises(SystemExit) as error:
        export(saved, "--hub", hub, "--licence", "Apache-2.0", "--overwrite")
    assert "No space left" in refusal(error)
    assert {path.name: path.read_bytes() for path in hub.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_checkpoint_without_a_plan_is_refused(tmp_path: Path, export: Any) -> None:
    made = checkpoint_of()
    save_checkpoint(EncoderCheckpoint(made.encoder_weights, made.pgl, {}), tmp_path / "c.pth")
    with pytest.raises(SystemExit) as error:
        export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    assert "c.pth: holds no nnssl_adaptation_plan" in refusal(error)


def test_nnssl_checkpoints_are_refused(saved: Path, tmp_path: Path, export: Any) -> None:
    content = torch.load(saved, weights_only=True)
    del content["pgl"]
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(SystemExit) as error:
        export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    assert "made by nnssl" in refusal(error)


def test_as_a_command(saved: Path, tmp_path: Path) -> None:
    code = "from nnunetv2_pgl.export.hub_folder import export_entry; export_entry()"
    command = [sys.executable, "-c", code, str(saved), "--hub", "hub", "--licence", "MIT"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == FILES
    assert "Nothing was sent anywhere" in done.stdout
    assert done.stderr == ""


def test_the_licences_of_the_scans_are_beside_the_one_given(
    saved: Path, tmp_path: Path, export: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    export(saved, "--hub", tmp_path / "hub", "--licence", "MIT")
    expected = "Licences of the scans: Dataset501_Chest: CC-BY-SA 4.0; ribs: not stated. Check that they allow MIT.\n"
    assert expected in capsys.readouterr().out


def test_a_checkpoint_of_former_versions_says_what_it_does_not_know(tmp_path: Path, export: Any) -> None:
    made = checkpoint_of()
    pgl = {key: value for key, value in made.pgl.items() if key not in ("sources", "metrics", "metrics_before")}
    save_checkpoint(replace(made, pgl=pgl), tmp_path / "c.pth")
    export(tmp_path / "c.pth", "--hub", tmp_path / "hub", "--licence", "MIT")
    text = card_of(tmp_path / "hub")[1]
    assert "| `ribs` | 1 | not recorded | not recorded | not recorded |" in text
    assert "Nothing of what the encoder knows of anatomy is recorded." in text
    assert "The licences of the scans are not recorded." in text
    assert "Licences and references are as" not in text
    metrics = {key: value for key, value in made.pgl["metrics"].items() if key != "flipped_right"}  # of 0.1.0
    save_checkpoint(replace(made, pgl={**made.pgl, "metrics": metrics}), tmp_path / "c.pth")
    export(tmp_path / "c.pth", "--hub", tmp_path / "hub2", "--licence", "MIT")
    assert "Nothing of what the encoder knows of anatomy is recorded." in card_of(tmp_path / "hub2")[1]
