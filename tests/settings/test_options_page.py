"""docs/options.md is what the table of settings says, and every option is in it once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.option_fields import given_values, option_of, require_ranges
from pretraining.settings.options import OPTION_CLASSES, OptionParser, add_pretraining_options
from pretraining.settings.options_page import page
from pretraining.settings.table import RunOptions

PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def test_the_page_is_of_today() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m pretraining.settings.options_page > docs/options.md"


def test_every_option_of_the_command_is_on_the_page_once() -> None:
    parser = OptionParser()
    add_pretraining_options(parser)
    rows = [
        line.split("`")[1].split()[0].lstrip("-") for line in PAGE.read_text().splitlines() if line.startswith("| `")
    ]
    known = [action.option_strings[0].lstrip("-") for action in parser._actions]
    assert sorted(rows) == sorted(set(known) - {"h", "paper"})
    assert len(rows) == sum(option_of(of) is not None for owner in OPTION_CLASSES for of in fields(owner)) > 40


def test_defaults_of_both_presets_and_of_mae_are_named() -> None:
    text = page()
    for row in (
        "| `-b N` | 8 / 128; mae: 4 |",
        "| `-norm batch\\|instance` | instance / batch |",
        "| `-epochs N` | 500 |",
    ):
        assert row in text
    assert "| `-wd X` | 1.5e-6; mae: 3e-5 |" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-np", "0"], "-np 0: must be at least 1 (default: 8)"),
        (["-num_gpus", "-1"], "-num_gpus -1: must be at least 1 (default: 1)"),
        (["-save_every", "0"], "-save_every 0: must be at least 1"),
    ],
)
def test_ranges_of_run_options(given: list[str], message: str) -> None:
    parser = OptionParser()
    add_pretraining_options(parser)
    with pytest.raises(PGLError) as error:
        require_ranges(RunOptions(**given_values(parser.parse_args(given), RunOptions)))
    assert str(error.value) == message
