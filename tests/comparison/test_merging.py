"""Results of runs that were done elsewhere."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.stand_in_commands import NAME, TINY, CompareCommand

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")


def test_results_of_elsewhere_are_taken_in_and_not_made_again(compare: CompareCommand, tmp_path: Path) -> None:
    compare.call(*TINY)
    table = tmp_path / "elsewhere.csv"
    lines = (compare.folder / "results.csv").read_text().splitlines()
    table.write_text("\n".join(line for line in lines if "random,1.0," not in line) + "\n")
    shutil.rmtree(compare.folder)
    shutil.rmtree(compare.root / "nnUNet_results" / NAME)
    shutil.rmtree(compare.root / "nnUNet_results" / "PGL")
    ran, code = compare.call(*TINY, "--results", str(table))
    assert code == 0
    assert "Added 3 runs from" in compare.output
    # Only what the table lacks; the pre-training is not needed for it.
    assert [line.split()[0] for line in ran] == ["nnUNetv2_train", "nnUNetv2_predict"]
    assert "nnUNetPlans_random_100pct_seed0" in ran[0]
    assert sorted((compare.folder / "results.csv").read_text().splitlines()) == sorted(lines)
    assert compare.call(*TINY, "--results", str(table)) == ([], 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pgl,", "byol,", "byol_50pct_fold0_seed0 is not a run of this comparison"),
        ("organ", "liver", "has liver of case|lacks organ of case"),
        (",1.0,1.0,0.0", ",0.5,1.0,0.0", "has other values than the table given"),
        ("init,", "start,", "column init is missing"),
    ],
)
def test_results_of_another_comparison_are_refused(
    compare: CompareCommand, tmp_path: Path, old: str, new: str, message: str
) -> None:
    compare.call(*TINY)
    table = tmp_path / "elsewhere.csv"
    table.write_text((compare.folder / "results.csv").read_text().replace(old, new))
    before = {path: path.read_bytes() for path in (compare.folder / "metrics").iterdir()}
    assert re.search(message, compare.refused(*TINY, "--results", str(table)))
    assert {path: path.read_bytes() for path in (compare.folder / "metrics").iterdir()} == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("settings.json", '"tolerance": 1.0', '"tolerance": 2.0', "tolerance is 2.0 there, here it is 1.0"),
        ("settings.json", "nnUNetTrainerPGL", "nnUNetTrainerPGL_50epochs", "trainer is 'nnUNetTrainerPGL_50epochs'"),
        ("splits.json", "scan_1", "scan_99", "divided differently"),
    ],
)
def test_results_made_with_other_settings_are_refused(
    compare: CompareCommand, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    compare.call(*TINY)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("results.csv", "settings.json", "splits.json"):
        shutil.copy(compare.folder / name, elsewhere)
    assert compare.call(*TINY, "--results", str(elsewhere / "results.csv")) == ([], 0)
    path = elsewhere / file
    path.write_text(path.read_text().replace(old, new))
    assert message in compare.refused(*TINY, "--results", str(elsewhere / "results.csv"))
