"""The command: what it says, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_pgl.dataset_conversion.convert import convert_entry

Make = Callable[..., Path]


@pytest.fixture
def convert(raw: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["pgl_convert", *map(str, arguments)])
        convert_entry()

    return run


def test_ribfrac_names_missing_scans_and_licence(
    convert: Callable[..., None], raw: Path, ribfrac: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("ribfrac", "-i", ribfrac([1, 2, 421]), "--link")
    output = capsys.readouterr()
    assert "Dataset015_RibFrac: 3 of 660 scans, 3 for training and 0 for testing, without labels" in output.out
    assert "CC BY-NC 4.0" in output.out
    assert "non-commercial" in output.out
    assert "Next: pgl_pretrain -d 15" in output.out
    assert "Warning: 657 of 660 scans are left out:" in output.err
    assert "  RibFrac3: image missing\n" in output.err
    assert "and 637 more, all listed in conversion.json" in output.err
    assert (raw / "Dataset015_RibFrac" / "imagesTr" / "RibFrac421_0000.nii.gz").is_symlink()


def test_spleen_names_split_and_licence(
    convert: Callable[..., None], raw: Path, decathlon: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("msd", "-i", decathlon("Task09_Spleen", 41, 20), "-id", 709, "-seed", 3)
    output = capsys.readouterr()
    assert "Dataset709_Spleen: 41 of 41 scans, 20 for training and 21 for testing, with labels" in output.out
    assert "Fold 0: 16 to train on, 4 for validation" in output.out
    assert "CC BY-SA 4.0" in output.out
    assert "Warning" not in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bcv", "-i", "no such folder"], "pgl_convert: no such folder is not a folder"),
        (["msd", "-i", "."], "named as a task"),
    ],
)
def test_bad_input_ends_in_one_line(convert: Callable[..., None], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        convert(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["amos", "-i", "."],
        ["bcv"],
        ["bcv", "-i", ".", "-split", "fair"],
        ["bcv", "-i", ".", "-id", "1000"],
        ["bcv", "-i", ".", "-seed", "-1"],
        ["kits19", "-i", ".", "--link"],
        ["msd", "-i", ".", "--with_labels"],
        ["ribfrac", "-i", ".", "-np", "0"],
    ],
)
def test_unknown_and_unfit_options_are_refused(convert: Callable[..., None], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        convert(*arguments)
    assert error.value.code == 2
