"""The tables of a report and the verdicts in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pretraining.comparison.report import write_report
from pretraining.comparison.statistics import Interval, RunTest
from pretraining.comparison.tables import verdict
from tests.example_comparison import INITS, Compared, head_of, markdown_tables


def test_means_are_those_of_pandas(report: list[Path], compared: Compared) -> None:
    table = compared[0]
    tables = markdown_tables(report[0].read_text(encoding="utf-8"))
    averages = [t for t in tables if t[0][0] == "init" and "runs" in t[0]]
    of_classes = [t for t in tables if t[0][0] == "init" and "runs" not in t[0]]
    for number, fraction in enumerate((0.2, 1.0)):
        for init, row, class_row in zip(INITS, averages[number][1:], of_classes[number][1:], strict=True):
            part = table[(table["init"] == init) & (table["fraction"] == fraction)]
            of_cases = part.groupby(["seed", "case"])[["dice", "hd", "surface_dice"]].mean()
            found = dict(zip(averages[number][0], (cell.strip("*").split(" [")[0] for cell in row), strict=True))
            assert found["init"] == init
            assert found["Dice, %"] == f"{100 * of_cases['dice'].mean():.2f}"
            assert found["HD, mm"] == f"{of_cases['hd'].mean():.2f}"
            assert found["surface Dice at 1.5 mm, %"] == f"{100 * of_cases['surface_dice'].mean():.2f}"
            found = dict(zip(of_classes[number][0], (cell.strip("*") for cell in class_row), strict=True))
            assert found["IoU head"] == f"{100 * part[part['class_name'] == 'head']['iou'].mean():.2f}"


def test_the_best_is_bold_and_the_missed_are_counted(report: list[Path]) -> None:
    text = report[0].read_text(encoding="utf-8")
    first = next(t for t in markdown_tables(text) if "runs" in t[0] and t[0][0] == "init")
    dice, missed = first[0].index("Dice, %"), first[0].index("missed")
    for column in (dice, first[0].index("HD, mm")):
        assert [row[column].startswith("**") for row in first[1:]] == [False, False, True]
    assert [row[missed] for row in first[1:]] == ["2 of 42", "0 of 42", "0 of 42"]
    counts = next(t for t in markdown_tables(text) if "spurious" in t[0])
    assert counts[1] == ["20 %", "random", "2 of 42", "2 of 44", "2 of 2"]


def test_two_runs_are_too_few_for_a_verdict(report: list[Path]) -> None:
    text = report[0].read_text(encoding="utf-8")
    tests = next(t for t in markdown_tables(text) if "pgl is" in t[0])
    assert [row[:2] for row in tests[1:]] == [[f, i] for f in ("20 % (8 scans)", "100 % (40 scans)") for i in INITS[:2]]
    found = [dict(zip(tests[0], row, strict=True)) for row in tests[1:]]
    assert {row["pgl is"] for row in found} == {"no verdict: 2 runs, it takes at least 3"}
    assert all(row["difference, Dice points"].startswith("+") and row["runs it takes"] for row in found)
    over_cases = next(t for t in markdown_tables(text) if "p over cases" in t[0])
    assert all(row[3] == "11" and float(row[4].strip("< ")) < 0.05 for row in over_cases[1:])
    assert "better" not in text.split("## Tests")[0]


def test_more_runs_have_one_and_their_differences_are_listed(compared: Compared, tmp_path: Path) -> None:
    results, study = compared
    # Four runs of each: random at 20, 21, 22, 23 %, pgl 10 points higher, give and take one; byol now above, now below.
    values = {"random": (20, 21, 22, 23), "pgl": (30, 32, 31, 33), "byol": (20, 50, 10, 60)}
    row = head_of(results)
    rows = [
        {**row, "init": init, "fraction": 0.2, "seed": seed, "dice": dice / 100}
        for init, of_seeds in values.items()
        for seed, dice in enumerate(of_seeds)
    ]
    text = write_report(pd.DataFrame(rows), replace(study, runs=()), tmp_path)[0].read_text(encoding="utf-8")
    tables = markdown_tables(text)
    tests = next(t for t in tables if "pgl is" in t[0])
    found = {row[1]: dict(zip(tests[0], row, strict=True)) for row in tests[1:]}
    assert found["random"]["by run"] == "+10.00, +11.00, +9.00, +10.00"
    assert found["random"]["difference, Dice points"] == "+10.00 [+8.70, +11.30]"  # 3.182 x 0.8165 / 2
    assert found["random"]["pgl is"] == "better"
    assert found["random"]["runs it takes"] == "\N{EN DASH}"
    assert found["byol"]["pgl is"] == "undecided, above in 2 of 4 runs"
    assert found["byol"]["runs it takes"] == "more than 100"
    assert "for all p values (2)" in text
    runs = next(t for t in tables if t[0][0] == "run")
    assert runs[2] == ["fold 0, seed 1", "21.00", "50.00 (+29.00)", "32.00 (+11.00)"]
    assert "against random +10.00 [+8.70, +11.30], better" in text


@pytest.mark.parametrize(
    ("fraction", "runs", "same_cases", "folds"),
    [
        (1.0, [(0, 0), (0, 1), (0, 2)], True, False),
        (0.2, [(0, 0), (0, 1), (0, 2)], False, False),
        (1.0, [(0, 0), (1, 0), (2, 0)], False, False),
        (1.0, [(0, 0), (0, 1), (1, 0), (1, 1)], True, True),
    ],
)
def test_what_the_runs_do_not_cover_is_said(
    fraction: float,
    runs: list[tuple[int, int]],
    same_cases: bool,
    folds: bool,
    compared: Compared,
    tmp_path: Path,
) -> None:
    row = head_of(compared[0])
    results = pd.DataFrame([{**row, "fraction": fraction, "fold": fold, "seed": seed} for fold, seed in runs])
    text = write_report(results, replace(compared[1], runs=()), tmp_path)[0].read_text(encoding="utf-8")
    assert ("seeds of a fold all train on the same cases" in text) == same_cases
    assert ("take all runs for independent" in text) == folds


@pytest.mark.parametrize(
    ("differences", "holm_p", "words"),
    [
        ((0.1, 0.2, 0.15), 0.049, "better"),
        ((-0.1, -0.2, -0.15), 0.001, "worse"),
        ((0.1, 0.2, 0.15), 0.05, "undecided after Holm's correction, above in all 3 runs"),
        ((-0.1, -0.2, -0.15), 0.2, "undecided after Holm's correction, above in none of 3 runs"),
        ((0.1, 0.2, -0.15), 0.001, "undecided, above in 2 of 3 runs"),
        ((0.1,), 0.001, "no verdict: 1 run, it takes at least 3"),
        ((), 0.001, "not compared: no run and case in common"),
    ],
)
def test_verdicts(differences: tuple[float, ...], holm_p: float, words: str) -> None:
    runs = tuple((0, seed) for seed in range(len(differences)))
    mean = float(np.mean(differences)) if differences else 0.0
    beside = Interval(mean, mean - abs(mean) / 2, mean + abs(mean) / 2)
    assert verdict(RunTest("byol", 0.2, runs, differences, beside, holm_p / 2, holm_p, 0.025, 9, 0.001)) == words


def test_many_classes_have_a_table_per_measure(compared: Compared, tmp_path: Path) -> None:
    results, study = compared
    names = [f"organ_{i}" for i in range(5)]
    head = results.query("class_name == 'head' and fraction == 1")
    rows = pd.concat([head.assign(class_name=name) for name in names])
    few = replace(study, runs=(), classes={name: 1 for name in names})
    tables = markdown_tables(write_report(rows, few, tmp_path)[0].read_text(encoding="utf-8"))
    of_classes = [t for t in tables if t[0][0] == "init" and "runs" not in t[0]]
    assert [t[0][1] for t in of_classes] == ["Dice organ_0", "IoU organ_0", "HD organ_0", "HD95 average"]
    assert [len(t[0]) for t in of_classes] == [7, 7, 7, 4]
