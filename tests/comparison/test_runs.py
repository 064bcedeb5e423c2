"""The runs of a comparison: names that never meet, states, shares, plans, starts, and settings that may grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.trainers.plans import PlannedRun
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.files import ComparisonFolder
from pretraining.comparison.inits import BUILT_IN, initialisations
from pretraining.comparison.runs import (
    State,
    model_folder,
    plans_name,
    plans_of_run,
    share,
    state_of_pretraining,
    state_of_training,
    training_runs,
    write_plans,
)
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Fold, Splits

NAME = "Dataset007_Small"
SPLITS = Splits(("t",), "", "", (Fold(("d",), (("a", "b", "c"), ("c", "a", "b"))), Fold(("a",), (("b",), ("b",)))))
BASE_PLANS = {
    "dataset_name": NAME,
    "plans_name": "nnUNetPlans",
    "configurations": {"3d_fullres": {"data_identifier": "x"}},
}


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    plans = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans.parent.mkdir(parents=True)
    plans.write_text(json.dumps(BASE_PLANS))
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def save(norm: str) -> Path:
        path = tmp_path / f"{norm}.pth"
        architecture = {"name": "resnet50", "norm": norm, "centred": True, "strides": [8, 8, 8], "in_channels": 1}
        save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1)}, {"architecture": architecture}, {}), path)
        return path

    return save


def settings(**changes: Any) -> ComparisonSettings:
    return ComparisonSettings(**{"dataset": NAME, "pretrain_on": (NAME,), **changes})


def comparison(name: str = NAME, **changes: Any) -> Comparison:
    """With the splits above, stored."""
    made = Comparison(ComparisonFolder.from_name(name), settings(**changes), "cpu", 1)
    made.folder.path.mkdir(parents=True, exist_ok=True)
    made.folder.splits.write_text(json.dumps(asdict(SPLITS)))
    return made


def test_no_two_runs_share_a_model_folder(nnunet: Path) -> None:
    """Over comparisons of one dataset too; and nnU-Net can take the names apart."""
    inits, fractions = ("random", "pgl", "pgl_no_flips"), (0.05, 0.2, 0.125, 1.0)
    folders = []
    for name in (NAME, "other", "pgl"):
        wide = comparison(name, inits=inits, fractions=fractions, folds=(0, 1), seeds=2)
        runs = training_runs(wide.settings)
        assert len({run.name for run in runs}) == len(runs) == 3 * 4 * 2 * 2
        folders += [model_folder(wide, run) for run in runs]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        trainer, plans, configuration = folder.parent.name.split("__")
        assert (trainer, configuration) == ("nnUNetTrainerPGL", "3d_fullres")
        assert plans.startswith("nnUNetPlans_")
    run = training_runs(settings())[0]
    assert plans_name(comparison(), run) == "nnUNetPlans_random_20pct_seed0"
    assert plans_name(comparison("other"), run) == "nnUNetPlans_other_random_20pct_seed0"


@pytest.mark.parametrize("name", ["a__b", "_a", "a_", "a/b", "", "a b"])
def test_names_that_would_break_folders_are_refused(nnunet: Path, name: str) -> None:
    with pytest.raises(PGLError, match="-o"):
        ComparisonFolder.from_name(name)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shares_are_all_of_it_and_meet_nowhere(count: int) -> None:
    runs = training_runs(settings())
    dealt = [run for index in range(count) for run in share(runs, (index, count))]
    assert len(dealt) == len(runs)
    assert set(dealt) == set(runs)
    assert share(runs, None) == runs


def test_states(nnunet: Path) -> None:
    made, folder = comparison(), ComparisonFolder.from_name(NAME)
    run = training_runs(settings())[0]
    model = model_folder(made, run)
    model.mkdir(parents=True)
    assert state_of_training(made, run) is State.TO_DO
    (model / "checkpoint_best.pth").touch()  # nnU-Net cannot go on from it as it was
    assert state_of_training(made, run) is State.TO_DO
    (model / "checkpoint_latest.pth").touch()
    assert state_of_training(made, run) is State.TO_CONTINUE
    folder.metrics(run.name).parent.mkdir(parents=True)
    folder.metrics(run.name).touch()
    assert state_of_training(made, run) is State.DONE

    random, genesis = initialisations(settings())[:2]
    assert state_of_pretraining(made, random) is State.DONE
    pretraining = nnunet / "nnUNet_results" / "PGL" / f"{NAME}_models_genesis"
    pretraining.mkdir(parents=True)
    for file, state in (("config.json", State.TO_DO), ("checkpoint_latest.pth", State.TO_CONTINUE)):
        (pretraining / file).touch()
        assert state_of_pretraining(made, genesis) is state
    (pretraining / "checkpoint_final.pth").touch()
    assert state_of_pretraining(made, genesis) is State.DONE


def test_plans_say_what_the_trainer_needs(nnunet: Path) -> None:
    made = comparison(seeds=2, pretrain_options="-norm instance")
    for run in training_runs(made.settings):
        plans = plans_of_run(made, run)
        assert plans["plans_name"] == plans_name(made, run)
        assert plans["configurations"] == BASE_PLANS["configurations"]
        planned = PlannedRun.from_plans(plans, run.fold)
        assert planned is not None
        assert (planned.initialisation, planned.seed) == (run.init, run.seed)
        order = SPLITS.folds[0].training_by_seed[run.seed]
        assert planned.training_cases == order[: {0.2: 1, 0.5: 2, 1.0: 3}[run.fraction]]
        assert planned.validation_cases == ("d",)
        if run.init == "random":
            assert plans["pgl_network"]["norm"] == "instance"  # as the others will have
            assert "pretrain_info" not in plans
        else:
            final = nnunet / "nnUNet_results" / "PGL" / f"{NAME}_{run.init}" / "checkpoint_final.pth"
            assert plans["pretrain_info"] == {"checkpoint_path": str(final)}


def test_plans_are_never_overwritten(nnunet: Path) -> None:
    made = comparison()
    run = training_runs(made.settings)[0]
    path = write_plans(made, run)
    before = path.read_bytes()
    assert write_plans(made, run) == path
    (nnunet / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps({**BASE_PLANS, "new": 1}))
    with pytest.raises(PGLError, match=r"nnUNetPlans_random_20pct_seed0\.json exists, and differs in new"):
        write_plans(made, run)
    assert path.read_bytes() == before


def test_random_has_the_network_of_a_given_checkpoint(nnunet: Path, checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("instance")
    made = comparison(inits=("random", "mine"), seeds=2, checkpoints={"mine": str(path)})
    plans = {run.init: plans_of_run(made, run) for run in training_runs(made.settings)}
    assert plans["random"]["pgl_network"] == {"architecture": "resnet50", "norm": "instance", "centred": True}
    assert plans["mine"]["pretrain_info"]["checkpoint_path"] == str(path)


def test_every_built_in_start_is_an_option_of_the_pretraining(nnunet: Path) -> None:
    inits = initialisations(settings(inits=("random", *BUILT_IN), pretrain_options="-epochs 3"))
    assert [init.name for init in inits if init.options] == list(BUILT_IN)
    assert all(init.options[-2:] == ("-epochs", "3") for init in inits if init.options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inits": ("pgl", "simclr")}, "--init simclr: unknown"),
        ({"inits": ("pgl",), "definitions": {"short": "-m pgl"}}, "--define short: add short to --init"),
        ({"inits": ("pgl",), "definitions": {"pgl": "-m byol"}}, "--define pgl: this name is taken"),
        (
            {"inits": ("short",), "definitions": {"short": "-m pgl --epoch 3"}},
            "--define short: unrecognized.*--epoch 3",
        ),
        ({"inits": ("short",), "definitions": {"short": "-scale 2 1"}}, "--define short: -scale 2 1"),
        (
            {"inits": ("pgl",), "pretrain_options": "-o name"},
            "--pretrain_options '-o name': -o is set by the comparison",
        ),
        ({"inits": ("pgl",), "pretrain_options": "-m byol"}, "--pretrain_options .*: -m is set by the comparison"),
        ({"inits": ("pgl",), "checkpoints": {"byol": "x"}}, "--checkpoint byol: add byol to --init"),
        ({"inits": ("pgl",), "checkpoints": {"pgl": "/none.pth"}}, "--checkpoint pgl=/none.pth: .*no such checkpoint"),
    ],
)
def test_wrong_starts_are_refused_before_anything_runs(nnunet: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PGLError, match=message):
        initialisations(settings(**changes))


def test_only_lists_grow(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    settings(inits=("random", "pgl"), fractions=(0.2,), tolerance=2.0).save(file)
    stored = ComparisonSettings.load(file)
    assert stored == settings(inits=("random", "pgl"), fractions=(0.2,), tolerance=2.0)
    grown = stored.extended({"inits": ("byol", "pgl"), "fractions": (1.0,), "seeds": 2, "folds": (0, 3)}, file)
    assert (grown.inits, grown.fractions, grown.seeds, grown.folds) == (
        ("random", "pgl", "byol"),
        (0.2, 1.0),
        5,
        (0, 3),
    )
    assert stored.extended({}, file) == stored
    for changed, message in (
        ({"tolerance": 1.0}, "--tolerance: this comparison has 2.0, you gave 1.0"),
        ({"trainer": "Other"}, "-tr: this comparison has nnUNetTrainerPGL, you gave Other"),
        ({"test_cases": ("a",)}, "--test_cases: this comparison has none, you gave a"),
        ({"pretrain_options": "-b 2"}, "--pretrain_options: this comparison has none, you gave -b 2"),
    ):
        with pytest.raises(PGLError, match=message):
            stored.extended(changed, file)
    named = settings(inits=("mine",), definitions={"mine": "-m pgl"})
    assert named.extended({"definitions": {"other": "-m byol"}}, file).definitions == {
        "mine": "-m pgl",
        "other": "-m byol",
    }
    with pytest.raises(PGLError, match="--define mine: this comparison has -m pgl, you gave -m byol"):
        named.extended({"definitions": {"mine": "-m byol"}}, file)
    file.write_text('{"dataset": "x", "surprise": 1}')
    with pytest.raises(PGLError, match=r"settings\.json: not the settings"):
        ComparisonSettings.load(file)


def test_a_checkpoint_given_later_does_not_replace_a_pretraining(tmp_path: Path) -> None:
    """Half of the runs would start from one encoder, half from another."""
    with pytest.raises(PGLError, match="--checkpoint pgl"):
        settings(inits=("pgl",)).extended({"checkpoints": {"pgl": "/other.pth"}}, tmp_path / "settings.json")
