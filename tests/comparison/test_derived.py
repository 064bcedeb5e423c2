"""Initialisations that are made from others: names, plans, shuffled weights, computation, start with the decoder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PlannedEncoder
from nnunetv2_pgl.trainers.plans import PlannedRun
from nnunetv2_pgl.transfer import load_encoder
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import require_decoder, shuffled, write_shuffled
from pretraining.comparison.files import ComparisonFolder
from pretraining.comparison.inits import initialisations
from pretraining.comparison.runs import TrainingRun, plans_name, plans_of_run
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Fold, Splits
from pretraining.settings.config import recommended
from pretraining.training.footprint import flop
from pretraining.training.networks import make_objective
from tests.planned_networks import small_network

NAME = "Dataset007_Small"
SPLITS = Splits(("t",), "", "", (Fold(("d",), (("a", "b"),)),))
ARCHITECTURE = {"name": "resnet50", "norm": "instance", "centred": True, "strides": [8, 8, 8], "in_channels": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparisonFolder:
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    plans = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans.parent.mkdir(parents=True)
    plans.write_text(json.dumps({"dataset_name": NAME, "plans_name": "nnUNetPlans", "configurations": {}}))
    return ComparisonFolder.from_name(NAME)


def settings(*inits: str, **changes: Any) -> ComparisonSettings:
    return ComparisonSettings(NAME, (NAME,), inits=inits, fractions=(1.0,), seeds=1, **changes)


def planned(folder: ComparisonFolder, init: str, extra_epochs: int = 0) -> dict[str, Any]:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.splits.write_text(json.dumps(asdict(SPLITS)))
    comparison = Comparison(folder, settings(*dict.fromkeys(("random", "mae", init))), "cpu", 1)
    return plans_of_run(comparison, TrainingRun(init, 1.0, 0, 0), extra_epochs)


def test_the_plans_of_each_kind(folder: ComparisonFolder) -> None:
    of_mae = planned(folder, "mae")["pretrain_info"]["checkpoint_path"]
    assert planned(folder, "decoder:mae")["pretrain_info"] == {"checkpoint_path": of_mae, "transfer_decoder": True}
    own = planned(folder, "shuffled:mae")["pretrain_info"]
    assert own == {"checkpoint_path": str(folder.path / "derived" / "shuffled-mae.pth")}
    longer = planned(folder, "longer:mae", 7)
    assert "pretrain_info" not in longer
    assert longer["pgl_network"] == planned(folder, "random")["pgl_network"]
    run = PlannedRun.from_plans(longer, 0)
    assert run is not None
    assert (run.is_random, run.extra_epochs) == (True, 7)
    assert "7 epochs longer" in str(run)
    assert "extra_epochs" not in planned(folder, "random")["pgl_run"]


def test_names_of_files_have_no_colon(folder: ComparisonFolder) -> None:
    run = TrainingRun("shuffled:mae", 0.2, 0, 0)
    assert run.name == "shuffled-mae_20pct_fold0_seed0"
    assert plans_name(Comparison(folder, settings("random"), "cpu", 1), run) == "nnUNetPlans_shuffled-mae_20pct_seed0"


@pytest.mark.parametrize(
    ("inits", "message"),
    [
        (("random", "mixed:pgl"), "--init mixed:pgl: before the colon can be shuffled, longer, decoder"),
        (("random", "shuffled:pgl"), "--init shuffled:pgl: .* add pgl to --init"),
        (("random", "pgl", "shuffled:random"), "--init shuffled:random: after the colon .* compared: pgl"),
        (("random", "longer:"), "--init longer:: after the colon .* compared: none is"),
        (("random", "pgl", "shuffled:pgl", "decoder:shuffled:pgl"), "after the colon .* compared: pgl"),
    ],
)
def test_what_cannot_be_made_is_refused(folder: ComparisonFolder, inits: tuple[str, ...], message: str) -> None:
    with pytest.raises(PGLError, match=message):
        initialisations(settings(*inits))


def test_two_of_the_same_file_names_are_refused(folder: ComparisonFolder) -> None:
    wanted = settings("random", "pgl", "shuffled:pgl", "shuffled-pgl", definitions={"shuffled-pgl": "-m byol"})
    with pytest.raises(PGLError, match="their files would have the same names"):
        initialisations(wanted)


def test_values_stay_and_places_go() -> None:
    weights = {"a": torch.arange(60.0).reshape(3, 4, 5), "b": torch.arange(7.0), "count": torch.tensor(3)}
    weights["alias"] = weights["a"]
    result = shuffled(weights, seed=0)
    for key, value in weights.items():
        assert result[key].shape == value.shape
        assert torch.equal(result[key].flatten().sort().values, value.flatten().sort().values)
    assert not torch.equal(result["a"], weights["a"])
    assert result["alias"] is result["a"]
    assert torch.equal(shuffled(weights, 0)["a"], result["a"])
    assert not torch.equal(shuffled(weights, 1)["a"], result["a"])


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_both_names_of_a_parameter_are_shuffled_alike(tmp_path: Path, kind: str) -> None:
    """Files of others may hold two copies of what is one tensor in nnU-Net's networks."""
    encoder = PlannedEncoder(small_network(kind))
    weights = {key: value.clone() for key, value in encoder.state_dict().items()}
    report = load_encoder(encoder, shuffled(weights, seed=0), "shuffled.pth")
    assert report.share == 1
    changed = [key for key, value in encoder.state_dict().items() if not torch.equal(value, weights[key])]
    assert any("all_modules" in key for key in changed)


def saved(path: Path, decoder: bool = True) -> Path:
    weights = {"conv.weight": torch.arange(64.0).reshape(64, 1, 1, 1, 1)}
    decoder_weights = {"aspp.weight": torch.ones(2)} if decoder else {}
    values = {"architecture": ARCHITECTURE, "method": "mae" if decoder else "pgl"}
    save_checkpoint(EncoderCheckpoint(weights, values, {}, decoder_weights=decoder_weights), path)
    return path


def test_a_shuffled_checkpoint_has_no_decoder_and_says_what_it_is(tmp_path: Path) -> None:
    write_shuffled(saved(tmp_path / "a.pth"), tmp_path / "derived" / "b.pth")
    checkpoint = load_checkpoint(tmp_path / "derived" / "b.pth")
    assert not checkpoint.decoder_weights
    assert checkpoint.pgl["shuffled"]
    values = checkpoint.encoder_weights["conv.weight"].flatten()
    assert sorted(values.tolist()) == list(range(64))
    assert values.tolist() != list(range(64))


def test_no_decoder_to_start_from(tmp_path: Path) -> None:
    require_decoder(saved(tmp_path / "a.pth"), "decoder:mae")
    with pytest.raises(PGLError, match=r"^decoder:pgl: pgl has trained no decoder"):
        require_decoder(saved(tmp_path / "b.pth", decoder=False), "decoder:pgl")


def test_what_checkpoints_lack_is_said_before_anything_runs(folder: ComparisonFolder, tmp_path: Path) -> None:
    given = {"mine": str(saved(tmp_path / "b.pth", decoder=False))}
    for kind, message in (("decoder", "pgl has trained no decoder"), ("longer", ".* does not record how it was pre-t")):
        with pytest.raises(PGLError, match=f"^--init {kind}:mine: {message}"):
            initialisations(settings("random", "mine", f"{kind}:mine", checkpoints=given))
    initialisations(settings("random", "mine", "shuffled:mine", checkpoints=given))


@pytest.mark.parametrize("method", METHODS)
def test_methods_with_a_decoder_are_those_that_keep_one(folder: ComparisonFolder, method: str) -> None:
    with torch.device("meta"):
        keeps = bool(make_objective(replace(recommended(), method=method), None).kept_decoder())
    if keeps:
        initialisations(settings(method, f"decoder:{method}"))
    else:
        with pytest.raises(PGLError, match=f"^--init decoder:{method}: {method} trains no decoder"):
            initialisations(settings(method, f"decoder:{method}"))


def test_operations_are_those_of_the_convolutions() -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Conv3d(3, 5, 1, bias=False))
    voxels = 4 * 5 * 6
    first, second = 2 * voxels * 27 * 3, 2 * voxels * 3 * 5
    # Forward; the gradients of the weights; those of the input, which the first layer's needs not.
    assert flop(network.to("meta"), (1, 1, 4, 5, 6)) == 2 * first + 3 * second
