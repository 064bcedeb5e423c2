"""The recommended settings and the paper's: what they are, what the log says, and runs of the release before."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.trainers.plans import ModelNetwork
from pretraining import cli
from pretraining.comparison.inits import BUILT_IN, initialisations, random_network
from pretraining.comparison.settings import ComparisonSettings
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig, published_for_mae, recommended
from pretraining.settings.options import OptionParser, add_pretraining_options, settings_of
from pretraining.training.pool import Pool
from pretraining.training.run_folder import RunFolder
from pretraining.training.summary import opening_lines
from tests.golden.make import GOLDEN, RUN

PAPER = PretrainConfig(datasets=())


def settings(options: str) -> PretrainConfig:
    parser = OptionParser()
    add_pretraining_options(parser)
    config = settings_of(parser.parse_args(shlex.split(options)))
    check_config(config)
    return config


def test_the_paper_is_the_data_class_and_the_default_is_recommended() -> None:
    assert settings("--paper") == PAPER
    assert settings("") == recommended()
    changed = {name for name, _, _ in recommended().differences(PAPER)}
    assert changed == {
        *("method", "norm", "padding", "views.no_flip", "preset", "batch_size", "optimizer", "target_decay"),
    }
    assert (recommended().optimizer_name, recommended().peak_learning_rate) == ("adamw", 2e-3)
    assert (PAPER.method, PAPER.norm, PAPER.padding, PAPER.target_decay) == ("pgl", "batch", "zeros", 0.996)
    assert (PAPER.optimizer_name, PAPER.peak_learning_rate, PAPER.batch_size) == ("lars", 0.2, 128)
    for config in (recommended(), PAPER):
        assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_options_change_either() -> None:
    given = "-padding zeros -temperature 0.2 -no_flip none -norm batch -m pgl -b 4 -target_decay 0.99"
    ours, paper = settings(given), settings(f"--paper {given}")
    assert (ours.padding, ours.temperature, ours.views.no_flip, ours.norm) == ("zeros", 0.2, None, "batch")
    assert {name for name, _, _ in ours.differences(paper)} == {"preset", "optimizer"}
    assert settings("--paper -padding replicate -no_flip lateral").views.no_flip == "lateral"


def test_mae_has_the_settings_published_for_it() -> None:
    """nnssl's: SGD of nnU-Net, 8 patches that are not scaled, need not overlap, and are flipped along all axes."""
    config = settings("-m mae")
    assert config == published_for_mae() == PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert (config.optimizer_name, config.peak_learning_rate, config.weight_decay) == ("nnunet", 1e-2, 3e-5)
    assert (config.batch_size, config.mask_ratio, config.warmup_epochs) == (4, 0.75, 0)
    assert (config.norm, config.padding, config.preset) == ("instance", "zeros", "published")
    views = config.views
    assert (views.scale, views.min_overlap, views.flip_probability, views.no_flip) == ((1.0, 1.0), 0.0, 0.5, None)
    assert (config.epochs, config.pairs_per_epoch, config.views.size) == (500, None, PAPER.views.size)
    assert settings("-m pgl_mae").mask_ratio == PAPER.mask_ratio


def test_mae_with_options_and_another_optimiser() -> None:
    changed = settings("-m mae -mask_ratio 0.6 -scale 1.1 1.4 -b 8 -lr 3e-2 -wd 1e-4 -warmup 5 -padding replicate")
    assert (changed.mask_ratio, changed.views.scale, changed.batch_size, changed.padding) == (
        *(0.6, (1.1, 1.4), 8),
        "replicate",
    )
    assert (changed.peak_learning_rate, changed.weight_decay, changed.warmup_epochs) == (3e-2, 1e-4, 5)
    assert settings("-m mae -optimizer nnunet") == published_for_mae()
    other = settings("-m mae -optimizer adamw -b 8")
    assert (other.peak_learning_rate, other.weight_decay, other.warmup_epochs) == (2e-3, 1.5e-6, 2)
    assert (other.mask_ratio, other.views, other.batch_size) == (0.75, published_for_mae().views, 8)
    assert settings("-m mae -a plain -patch 16 32 32").norm == "batch"  # of the plan


@pytest.mark.parametrize("name", ["plain", "resenc_m"])
def test_nnunets_encoders_have_their_own_norm(name: str) -> None:
    config = settings(f"-a {name} -patch 16 32 32")
    assert config.padding == "replicate"
    assert "norm" not in first_line(config)
    with pytest.raises(ValueError, match=rf"-norm: -a {name} has that of its plan"):
        settings(f"-a {name} -patch 16 32 32 -norm instance")


def first_line(config: PretrainConfig) -> str:
    return preset_lines(config)[0]


def preset_lines(config: PretrainConfig) -> list[str]:
    volumes: Any = [SimpleNamespace(spacing=(3.0, 1.0, 1.0))] * 4
    lines = opening_lines(config, Pool(volumes, []), "cpu", 1)
    start = lines.index("") + 1  # after what to cite
    return lines[start : next(i for i, line in enumerate(lines) if "scans to train on" in line)]


def test_the_log_says_which_settings_and_what_was_changed() -> None:
    assert preset_lines(replace(recommended(), datasets=("a",), seed=3)) == [
        "The recommended settings (the paper's: --paper)"
    ]
    assert preset_lines(replace(PAPER, datasets=("a",))) == ["The paper's settings (--paper)"]
    assert preset_lines(settings("-m mae -b 8")) == [
        "The settings published for mae (docs/method.md), changed: batch_size 8"
    ]
    changed = first_line(settings("-padding zeros -no_flip none -epochs 20"))
    assert changed.endswith(", changed: padding zeros, views.no_flip none, epochs 20")
    (line,) = preset_lines(settings("--paper -m byol -norm instance"))
    assert line == "The paper's settings (--paper), changed: method byol, norm instance"


def test_the_log_warns_of_what_the_method_does_not_use() -> None:
    (_, line) = preset_lines(settings("-m mae -b 8 -target_decay 0.99 -temperature 0.2 -noise_probability 0.5"))
    unused = "views.intensity.noise_probability 0.5, target_decay 0.99, temperature 0.2"
    assert line == f"WARNING: mae does not use {unused}"
    for options in (
        "-temperature 0.2 -noise_probability 0.5 -target_decay 0.99 -interpolated_only",
        "-m mae -mask_ratio 0.5",
        "-m byol -target_decay 0.99 -noise_probability 0.5",
        "-m pgl_mae -restoration_weight 2 -mask_ratio 0.5",
    ):
        assert len(preset_lines(settings(options))) == 1
    assert preset_lines(settings("-m pgl -temperature 0.2"))[1] == "WARNING: pgl does not use temperature 0.2"


def test_the_log_says_where_lars_gave_way() -> None:
    (_, line) = preset_lines(settings("--paper -b 8"))
    assert line.startswith("adamw instead of the paper's lars, which learns more slowly with 8 pairs per step")
    assert "-optimizer lars" in line
    for options in (
        "--paper",
        "--paper -b 32",
        "--paper -b 8 -optimizer adamw",
        "--paper -b 8 -optimizer lars",
        "-b 8",
    ):
        assert len(preset_lines(settings(options))) == 1


def test_settings_of_the_release_before_mean_what_they_meant() -> None:
    values = json.loads((GOLDEN / "nnUNet_results" / "PGL" / RUN / "config.json").read_text())
    assert not {"padding", "preset", "temperature"} & values.keys()
    assert "no_flip" not in values["views"]
    old = PretrainConfig.from_dict(values)
    assert (old.padding, old.preset, old.views.no_flip) == ("zeros", "paper", None)
    assert old.peak_learning_rate == values["learning_rate"]
    automatic = PretrainConfig.from_dict({**values, "learning_rate": None, "optimizer": None, "batch_size": 8})
    assert (automatic.optimizer_name, automatic.peak_learning_rate) == ("adamw", 5e-4)
    of_lars = PretrainConfig.from_dict({**values, "learning_rate": None, "optimizer": None, "batch_size": 128})
    assert (of_lars.optimizer_name, of_lars.peak_learning_rate) == ("lars", 0.2)
    of_today = PretrainConfig.from_dict(replace(PAPER, batch_size=8).to_dict())
    assert of_today.peak_learning_rate == 2e-3


def test_the_comparisons_own_starts_are_the_papers_and_ours() -> None:
    inits = initialisations(ComparisonSettings("Dataset007_Scans", ("scans",), inits=tuple(BUILT_IN)))
    made = {init.name: settings(shlex.join(init.options)) for init in inits}
    assert {config.norm for config in made.values()} == {recommended().norm}  # all start the same network
    assert made.pop("pgl_nce") == recommended()
    assert made.pop("mae") == published_for_mae()
    paper = replace(PAPER, norm="instance")
    assert made["pgl"] == paper
    of_the_paper = [name for name in made if "--paper" in getattr(METHODS.get(name), "comparison_options", "--paper")]
    assert {made[name].preset for name in of_the_paper} == {"paper"}
    assert {name: config.method for name, config in made.items() if "_no_" not in name and "only" not in name} == {
        name: name for name in ("pgl", "byol", "models_genesis", "pgl_mae")
    }
    assert made["pgl_no_flips"] == replace(paper, views=replace(PAPER.views, flip_probability=0.0))
    boxes = {"scale": (1.0, 1.0), "min_overlap": 1.0}
    assert made["pgl_no_crops"] == replace(paper, views=replace(PAPER.views, **boxes))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", ["-a plain -patch 16 32 32", "-norm batch"])
def test_the_comparisons_own_starts_take_nnunets_encoders_and_a_norm_that_is_asked_for(options: str) -> None:
    asked = ComparisonSettings("Dataset007_Scans", ("scans",), inits=tuple(BUILT_IN), pretrain_options=options)
    assert {(init.network or {})["norm"] for init in initialisations(asked)} == {"batch"}  # of the plan: its own


def test_random_weights_alone_have_the_network_of_the_scratch_trainer() -> None:
    assert random_network([]) == ModelNetwork().to_dict()


@pytest.mark.parametrize(
    ("options", "is_wrong"),
    [
        ("-m byol -patch 16 16 16 -strides 16 16 16", True),
        ("-m pgl -patch 16 16 16 -strides 16 16 16", True),
        ("-m pgl_mae -patch 16 16 16 -strides 16 16 16 -align_stages 2", True),
        ("-m pgl -patch 16 16 16 -strides 16 16 16 -align_stages 2", False),
        ("-m pgl -patch 16 16 32 -strides 16 16 16", False),
        ("--paper -m byol -patch 16 16 16 -strides 16 16 16", False),
    ],
)
def test_instance_norm_needs_two_cells(options: str, is_wrong: bool) -> None:
    if not is_wrong:
        settings(options)
        return
    with pytest.raises(ValueError, match=r"-patch 16 16 16: a stage .* single cell, and instance norm needs two"):
        settings(options)


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    scans = tmp_path / "scans"
    scans.mkdir()
    monkeypatch.chdir(tmp_path)


def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str) -> str:
    """What pgl_pretrain ends with: one line."""
    monkeypatch.setattr(sys, "argv", ["pgl_pretrain", *shlex.split(options), "-device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.pretrain_entry()
    assert stop.value.code not in (0, None)
    line = capsys.readouterr().err
    assert line.count("\n") <= 1
    assert line.startswith("pgl_pretrain: ")
    return line


@pytest.mark.usefixtures("nnunet")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-padding reflect", ("-padding", "'reflect'", "zeros", "replicate")),
        ("-temperature 0", ("-temperature 0: must be positive (default: 0.1)",)),
        ("-temperature -1", ("-temperature -1: must be positive",)),
        ("-temperature nan", ("-temperature nan: must be positive",)),
        ("-temperature inf", ("-temperature inf: must be positive",)),
        ("-patch 8 16 16 -strides 8 16 16", ("-patch 8 16 16: stage 3", "single cell", "-strides", "-align_stages")),
        ("-patch 4 8 8 -strides 8 16 16 -align_stages 1 2", ("-patch 4 8 8: stage 2", "stride 4 8 8")),
        ("--paper -m mae", ("--paper -m mae: PGL's paper has no mae; leave --paper out",)),
        ("-m mae -mask_ratio 0", ("-mask_ratio 0 -patch 16 96 96: of 72 blocks of 8 16 16 voxels none is masked",)),
        ("-m mae -patch 8 16 16 -strides 8 16 16 -norm batch", ("of 1 block of 8 16 16 voxels none",)),
        ("-m mae -align_stages 2", ("-align_stages 2: only pgl, pgl_nce and pgl_mae align",)),
        ("-align_stages 7", ("-align_stages 7: this encoder has the stages 0 to 3",)),
    ],
)
def test_impossible_settings_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, words: tuple[str, ...]
) -> None:
    line = ended(monkeypatch, capsys, f"-d scans -o x {options}")
    assert all(word in line for word in words), line


def test_two_cells_are_enough_and_pgl_needs_none() -> None:
    settings("-patch 9 16 16 -strides 8 16 16")
    settings("-m pgl -norm batch -patch 8 16 16 -strides 8 16 16")
    settings("-patch 8 16 16")  # whose strides follow from the views


@pytest.mark.usefixtures("nnunet")
def test_a_run_is_not_continued_with_other_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.from_name("ours").start(replace(recommended(), datasets=("a",)))
    line = ended(monkeypatch, capsys, "-o ours --c --paper")
    assert "preset: the run has recommended, you gave paper" in line
    RunFolder.from_name("paper").start(replace(PAPER, datasets=("a",)))
    assert "differ" not in ended(monkeypatch, capsys, "-o paper --c --paper")
    assert "padding: the run has zeros, you gave replicate" in ended(
        monkeypatch, capsys, "-o paper --c -padding replicate"
    )
