"""Every registered method is known wherever methods are: commands, objectives, checkpoints, reports, documentation."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.export.model_card import Licence, model_card
from nnunetv2_pgl.methods import MEASURES, METHODS
from pretraining.objectives import Objective
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import OptionParser, add_pretraining_options
from pretraining.training.networks import make_objective
from pretraining.training.progress import epoch_lines
from tests.planned_networks import small_network

ROOT = Path(__file__).parent.parent
SMALL = PretrainConfig((), architecture="plain", network=small_network().to_dict(), hidden_channels=8, out_channels=8)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    parser = OptionParser()
    add_pretraining_options(parser)
    return parser


def test_they_are_the_same_everywhere() -> None:
    assert METHODS.keys() == OBJECTIVES.keys()
    assert all(name == method.name for name, method in METHODS.items())


def test_each_has_a_title_a_phrase_and_a_colour() -> None:
    for attribute in ("title", "help", "colour"):
        values = [getattr(method, attribute) for method in METHODS.values()]
        assert all(values)
        assert len(set(values)) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_what_to_cite_is_in_nnssls_form_and_pgl_is_part_of_it(name: str) -> None:
    for citation in METHODS[name].citations:
        assert citation.keys() == {"type", "name", "apa_citations"}
        assert citation["apa_citations"]
    assert METHODS["pgl"].citations[0] in METHODS[name].citations


@pytest.mark.parametrize("name", METHODS)
def test_commands_and_documentation_name_it(name: str, parser: argparse.ArgumentParser) -> None:
    (option,) = (action for action in parser._actions if "-m" in action.option_strings)
    assert option.choices is not None
    assert name in option.choices
    assert name in str(option.help)
    assert parser.parse_args(shlex.split(METHODS[name].comparison_options)).method == name
    assert f"`-m {name}`" in (ROOT / "docs" / "method.md").read_text()
    architecture = {"name": "resnet50", "norm": "batch", "strides": [8, 16, 16], "in_channels": 1}
    checkpoint = EncoderCheckpoint({}, {"method": name, "architecture": architecture, "view_size": [16, 96, 96]}, {})
    assert METHODS[name].title in model_card(checkpoint, Licence("mit", "MIT"), {"checkpoint_final.pth": "0" * 64})


@pytest.mark.parametrize("name", METHODS)
def test_its_entry_is_what_its_objective_is(name: str) -> None:
    method = METHODS[name]
    with torch.device("meta"):
        objective = make_objective(replace(SMALL, method=name), None)
    measured = set(objective.output._fields) - {"loss"}
    assert method.aligns == hasattr(objective, "stages")
    assert method.has_decoder == bool(objective.kept_decoder())
    assert method.has_target == (type(objective).update_target is not Objective.update_target)
    known = {field.name for field in fields(PretrainConfig)}
    assert all(setting.split(".")[0] in known for setting in method.used_settings)
    record = {"epoch": 1, "learning_rate": 1.0, "loss": 1.0, **dict.fromkeys(measured, 0.5)}
    lines = epoch_lines(record | dict.fromkeys(("seconds", "scans_per_second", "views_per_second", "waiting"), 0.0), 0)
    assert all(MEASURES[key].format(0.5) in "\n".join(lines) for key in measured)


def test_they_are_listed_without_loading_torch_or_nnunet() -> None:
    code = "import sys, nnunetv2_pgl.methods; assert not {'torch', 'nnunetv2', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
