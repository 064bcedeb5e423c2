import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.comparison.results import COLUMNS, fractions_of, read_results, select, write_results

VALUES = ("pgl", 0.2, 28, 0, 1, "case, with comma", "left \u00fc", 0.1, 0.2, 3.0, 2.5, 0.4, False, 10, 12)
ROW: dict[str, Any] = dict(zip(COLUMNS, VALUES, strict=True))
UNDEFINED = {**ROW, "case": "b", "truth_voxels": 0, **dict.fromkeys(("dice", "iou", "hd", "hd95"), math.nan)}


def file_with(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    path = tmp_path / "results.csv"
    write_results(pd.DataFrame([ROW, {**ROW, "case": "b"}]), path)
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_come_back(tmp_path: Path) -> None:
    rows = pd.DataFrame([ROW, UNDEFINED, {**ROW, "fraction": 1 / 3, "missed": True, "dice": 0.1 + 0.2}])
    write_results(rows, tmp_path / "results.csv")
    assert repr(read_results(tmp_path / "results.csv").to_dict("records")) == repr(rows.to_dict("records"))
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_stored_files_are_written_alike(tmp_path: Path) -> None:
    """As earlier versions wrote them, to the last byte."""
    stored = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/results.csv"))
    assert stored
    for file in stored:
        write_results(read_results(file), tmp_path / "results.csv")
        assert (tmp_path / "results.csv").read_bytes() == file.read_bytes()


@settings(deadline=None)  # a busy machine
@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1e6))
def test_floats_keep_all_digits(tmp_path_factory: pytest.TempPathFactory, fraction: float, hd: float) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.csv"
    write_results(pd.DataFrame([{**ROW, "fraction": fraction, "hd": hd}]), path)
    assert (read_results(path)["fraction"][0], read_results(path)["hd"][0]) == (fraction, hd)


def test_others_read_it_too(tmp_path: Path) -> None:
    write_results(pd.DataFrame([ROW, UNDEFINED]), tmp_path / "results.csv")
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["case"].tolist() == [ROW["case"], "b"]
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
        ((",2.5,", ","), r"line 2, column surface_dice: 'False' is not"),
        (("10,12\n", "10\n"), r"line 2, column predicted_voxels: '' is not"),
        (("10,12\n", "10,12,13\n"), r"results\.csv: cannot be read \(.*Expected 15 fields in line 2, saw 16"),
        (("init,fraction", "init,init,fraction"), r"column init is there twice"),
        ((",b,", f',"{ROW["case"]}",'), r"lines 2 and 3 are of the same run, case and class"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, edit: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_results(file_with(tmp_path, edit))


def test_an_empty_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv: cannot be read \(No columns"):
        read_results(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read"):
        read_results(tmp_path / "none.csv")


def test_rows_of_an_init_at_a_fraction() -> None:
    rows = pd.DataFrame([ROW, {**ROW, "fraction": 0.05}, {**ROW, "fraction": 0.05, "fold": 1}])
    assert fractions_of(rows) == [0.05, 0.2]
    assert select(rows, "pgl", 0.05).index.tolist() == [1, 2]
    assert select(rows, "byol", 0.05).empty
