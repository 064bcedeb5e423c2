import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.comparison.results import CaseResult, ResultSet, read_results, write_results

ROW = CaseResult("pgl", 0.2, 28, 0, 1, "case, with comma", "left \u00fc", 0.1, 0.2, 3.0, 2.5, 0.4, False, 10, 12)
UNDEFINED = replace(ROW, case="b", dice=math.nan, iou=math.nan, hd=math.nan, hd95=math.nan, truth_voxels=0)


def file_with(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    path = tmp_path / "results.csv"
    write_results([ROW, replace(ROW, case="b")], path)
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [ROW, UNDEFINED, replace(ROW, fraction=1 / 3, missed=True, dice=0.1 + 0.2)]
    write_results(rows, tmp_path / "results.csv")
    assert repr(read_results(tmp_path / "results.csv")) == repr(rows)  # repr, as nan is not nan
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@settings(deadline=None)  # a busy machine
@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1e6))
def test_floats_keep_all_digits(tmp_path_factory: pytest.TempPathFactory, fraction: float, hd: float) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.csv"
    write_results([replace(ROW, fraction=fraction, hd=hd)], path)
    assert (read_results(path)[0].fraction, read_results(path)[0].hd) == (fraction, hd)


def test_others_read_it_too(tmp_path: Path) -> None:
    write_results([ROW, UNDEFINED], tmp_path / "results.csv")
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["case"].tolist() == [ROW.case, "b"]
    assert table["missed"].dtype == bool
    assert table["dice"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("iou", "jaccard"), r"results\.csv: column iou is missing"),
        (("predicted_voxels", "predicted_voxels,more"), r"column more is unknown"),
        ((",28,", ",many,"), r"line 2, column training_cases: 'many' is not"),
        ((",False,", ",no,"), r"line 2, column missed: 'no'"),
        ((",2.5,", ",inf,"), r"line 2, column hd95: 'inf'"),
        ((",2.5,", ","), r"line 2: 14 values, the header has 15"),
        ((",b,", f',"{ROW.case}",'), r"lines 2 and 3 are of the same run, case and class"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, edit: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_results(file_with(tmp_path, edit))


def test_an_empty_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv: column init is missing"):
        read_results(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read"):
        read_results(tmp_path / "none.csv")


def test_a_result_set_sorts_by_init_and_fraction() -> None:
    rows = [ROW, replace(ROW, fraction=0.05, training_cases=7), replace(ROW, fraction=0.05, fold=1, training_cases=8)]
    found = ResultSet.of(rows)
    assert found.fractions == (0.05, 0.2)
    assert found.rows("pgl", 0.05) == (rows[1], rows[2])
    assert found.rows("byol", 0.05) == ()
    assert found.training_cases(0.05) == (7, 8)


def test_empty_and_spurious_truth() -> None:
    assert UNDEFINED.empty
    assert UNDEFINED.spurious
    assert not replace(UNDEFINED, predicted_voxels=0).spurious
    assert not ROW.empty
