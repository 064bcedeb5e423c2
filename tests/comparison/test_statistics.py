import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp, wilcoxon

from pretraining.comparison.results import COLUMNS, read_results
from pretraining.comparison.statistics import (
    MIN_RUNS,
    RunTest,
    case_scores,
    holm,
    holm_levels,
    interval,
    run_means,
    run_test,
    run_tests,
)

PAGES = Path(__file__).parents[2] / "docs" / "results"


Row = dict[str, Any]


def row(init: str, case: str, dice: float, class_name: str = "a", fraction: float = 0.2, seed: int = 0) -> Row:
    values = (init, fraction, 10, 0, seed, case, class_name, dice, dice, 1.0, 1.0, dice, False, 5, 5)
    return dict(zip(COLUMNS, values, strict=True))


def rows_of(init: str, dice: Callable[[int, int], float], cases: range = range(12), **more: float) -> list[Row]:
    return [row(init, f"c{case:02d}", dice(case, seed), seed=seed, **more) for seed in range(3) for case in cases]


def scores(values: Any, runs: Sequence[tuple[int, int]] | None = None, cases: Sequence[str] | None = None) -> Any:
    """(runs, cases), or the one value of each run."""
    values = np.array(values, float)
    values = values[:, None] if values.ndim == 1 else values
    index = pd.MultiIndex.from_tuples(runs or [(0, seed) for seed in range(len(values))], names=["fold", "seed"])
    return pd.DataFrame(values, index=index, columns=cases or [str(case) for case in range(values.shape[1])])


def test_the_average_skips_undefined_classes() -> None:
    rows = pd.DataFrame(
        [
            row("pgl", "x", 0.4, "a"),
            row("pgl", "x", 0.8, "b"),
            row("pgl", "y", 0.5, "a"),
            row("pgl", "y", math.nan, "b"),
        ]
    )
    found = case_scores(rows, "dice")
    assert found.columns.tolist() == ["x", "y"]
    assert found.to_numpy().tolist() == [pytest.approx([0.6, 0.5])]
    assert np.isnan(case_scores(rows, "dice", "b")["y"].iloc[0])
    assert interval(run_means(case_scores(rows, "dice"))).mean == pytest.approx(0.55)
    assert interval(run_means(case_scores(rows, "dice", "b"))).mean == pytest.approx(0.8)


def test_the_interval_is_students_over_the_means_of_runs() -> None:
    values = np.random.default_rng(0).random((4, 6))
    values[1, 2:5] = np.nan
    found = interval(run_means(scores(values, [(0, 0), (0, 1), (0, 2), (1, 0)])))
    expected = ttest_1samp(np.nanmean(values, axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.nanmean(values, axis=1).mean())


def test_one_value_has_no_interval() -> None:
    found = interval(run_means(scores([0.5])))
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(interval(run_means(case_scores(pd.DataFrame(columns=list(COLUMNS)), "dice"))).mean)


def test_a_difference_takes_what_both_have() -> None:
    first = scores([[1.0, 2.0], [3.0, 4.0]], [(0, 0), (0, 1)], ["a", "b"])
    second = scores([[0.5, 9.0], [9.0, 9.0]], [(0, 1), (0, 2)], ["b", "c"])
    found = run_test("random", 0.2, first - second)
    assert (found.runs, found.cases, found.differences) == (((0, 1),), 1, (3.5,))
    assert run_test("random", 0.2, first - scores([1.0], [(7, 7)], ["z"])).differences == ()


def test_a_test_is_students_on_runs_and_wilcoxons_on_cases() -> None:
    noise = np.random.default_rng(1).normal(size=(12, 3))
    ours = rows_of("pgl", lambda case, seed: 0.5 + 0.01 * case + 0.02 * noise[case, seed])
    theirs = rows_of("byol", lambda case, seed: 0.49 + 0.01 * case)
    [test] = run_tests(pd.DataFrame(ours + theirs), ("byol", "pgl"), "pgl")
    differences = 0.01 + 0.02 * noise
    assert test.differences == pytest.approx(differences.mean(axis=0))
    assert test.p == test.holm_p == pytest.approx(ttest_1samp(differences.mean(axis=0), 0).pvalue)
    assert test.case_p == pytest.approx(wilcoxon(differences.mean(axis=1)).pvalue)
    assert (test.init, test.cases, test.runs) == ("byol", 12, ((0, 0), (0, 1), (0, 2)))


def test_a_verdict_takes_runs_that_agree_and_an_interval_beside_zero() -> None:
    def decided(*differences: float) -> tuple[bool, bool]:
        test = run_test("random", 0.2, scores(differences))
        return test.decided, test.interval.excludes_zero

    assert decided(0.04, 0.05, 0.06, 0.05, 0.04) == (True, True)
    assert decided(-0.04, -0.05, -0.06, -0.05, -0.04) == (True, True)
    assert decided(0.04, 0.05, 0.06, 0.05, 0.14) == (True, True)
    assert decided(0.001, 0.05, 0.06, 0.2, 0.01) == (False, False)  # one sign, but a wide interval
    assert decided(0.05, 0.05, 0.04, 0.04, -0.001) == (False, True)  # a narrow interval, but one run below
    assert decided(0.05, 0.0500001) == (False, True)  # two runs are too few
    assert decided(0.05) == decided() == (False, False)


def test_correction_can_take_a_verdict_away() -> None:
    alone = run_test("random", 0.2, scores([0.04, 0.05, 0.08, 0.03]))
    assert alone.decided
    assert not replace(alone, holm_p=12 * alone.p).decided


def test_the_runs_it_takes_are_those_whose_interval_excludes_zero() -> None:
    differences = np.array([0.11, 0.025, 0.016])
    of_three = run_test("random", 0.05, scores(differences))
    needed = of_three.runs_needed
    assert needed is not None
    for number, excluded in ((needed - 1, False), (needed, True)):
        # So many runs with the same mean and standard deviation.
        draws = np.random.default_rng(0).normal(size=number)
        draws = (draws - draws.mean()) / draws.std(ddof=1) * differences.std(ddof=1) + differences.mean()
        assert (ttest_1samp(draws, 0).pvalue < 0.05) == excluded
    assert run_test("random", 0.05, scores([0.1])).runs_needed is None
    among_ten = replace(of_three, level=0.005).runs_needed
    assert among_ten is not None
    assert among_ten > needed
    assert replace(run_test("random", 0.05, scores([0.5, 0.001, 0.001])), level=1e-12).runs_needed is None


def test_one_run_of_five_on_the_other_side_leaves_it_open_of_many_it_need_not() -> None:
    def tested(above: int, below: int) -> RunTest:
        values = np.array([0.04, 0.06] * 50)[:above].tolist() + [-0.01] * below
        return run_test("random", 0.05, scores(values))

    assert tested(5, 0).decided
    for above, below in ((4, 1), (2, 1), (7, 3), (70, 30)):
        assert tested(above, below).interval.mean > 0
        assert not tested(above, below).agree
        assert not tested(above, below).decided
    for above, below in ((5, 1), (8, 2), (15, 5), (90, 10)):
        assert tested(above, below).decided
    assert tested(4, 1).runs_needed == 6  # 5 of 6 would do
    assert tested(70, 30).runs_needed is None


def test_more_runs_find_a_true_difference_more_often() -> None:
    found = {}
    for runs in (5, 10, 20):
        values = np.random.default_rng(3).normal(0.01, 0.01, (400, runs, 1))  # as large as the runs vary
        tests = [run_test("random", 0.2, scores(differences)) for differences in values]
        found[runs] = np.mean([test.decided for test in tests])
    assert 0.3 < found[5] < 0.45
    assert found[5] + 0.2 < found[10] < found[20]
    assert found[20] > 0.85


@cache
def pages_deviations() -> tuple[tuple[float, float], ...]:
    """Standard deviations of Dice on our pages, for each page, init and fraction: of runs, and of a run's cases."""
    found = []
    for name in ("openkbp", "openkbp_resenc", "hippocampus", "hippocampus_0.1.0", "torso", "resenc_hippocampus"):
        for _, rows in read_results(PAGES / name / "results.csv").groupby(["init", "fraction"], sort=False):
            values = case_scores(rows, "dice").to_numpy()
            rest = values - values.mean(axis=1)[:, None] - values.mean(axis=0) + values.mean()
            found.append((values.mean(axis=1).std(ddof=1), rest.std(ddof=1)))
    return tuple(found)


def null_tests(number: int, runs: int, seed: int, cases: int = 20) -> list[RunTest]:
    """Tests of an init against itself with other seeds, which vary as the runs on our pages do."""
    rng = np.random.default_rng(seed)
    tests = []
    for i in range(number):
        of_runs, of_cases = pages_deviations()[i % len(pages_deviations())]
        first, second = rng.normal(0, of_runs, (2, runs, 1)) + rng.normal(0, of_cases, (2, runs, cases))
        tests.append(run_test("itself", 0.2, scores(first - second)))
    return tests


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_an_init_against_itself_is_rarely_better_or_worse(runs: int) -> None:
    tests = null_tests(1500, runs, seed=runs)
    decided = sum(test.decided for test in tests)
    if runs == 3:  # an interval of three beside 0 has them on one side: 5 % exactly, and chance decides above or below
        assert binomtest(decided, len(tests), 0.05, alternative="greater").pvalue > 0.01
    else:
        assert decided / len(tests) <= 0.05
    assert np.mean([test.case_p < 0.05 for test in tests]) > 0.3  # why cases are no units
    covered = [test.interval.low <= 0 <= test.interval.high for test in tests]
    assert np.mean(covered) >= 0.9


def test_a_report_of_many_tests_on_nothing_seldom_has_a_verdict() -> None:
    """Twelve tests at once, as four inits at three fractions make them: at most 5 % of the reports have any."""
    tests = null_tests(12 * 100, 5, seed=1)
    with_verdict = 0
    for start in range(0, len(tests), 12):
        report = tests[start : start + 12]
        corrected = holm([test.p for test in report])
        with_verdict += any(replace(test, holm_p=p).decided for test, p in zip(report, corrected, strict=True))
    assert with_verdict <= 5


def test_a_true_difference_is_found() -> None:
    shift = 0.08
    tests = [
        run_test("random", 0.2, scores(shift + values))
        for values in np.random.default_rng(2).normal(0, 0.02, (200, 5, 4))
    ]
    assert np.mean([test.decided for test in tests]) > 0.95


def test_only_common_runs_and_cases_are_paired() -> None:
    ours = rows_of("pgl", lambda case, seed: 0.6, range(10))
    theirs = [r for r in rows_of("random", lambda case, seed: 0.5 + 0.01 * case, range(4, 12)) if r["seed"] != 1]
    theirs += [row("random", "c04", 0.9, fraction=0.5)]  # the reference has no run there
    [test] = run_tests(pd.DataFrame(ours + theirs), ("random", "pgl"), "pgl")
    assert (test.cases, test.runs) == (6, ((0, 0), (0, 2)))
    assert test.interval.mean == pytest.approx(0.1 - 0.01 * np.arange(4, 10).mean())


def test_equal_predictions_and_nothing_in_common() -> None:
    same = run_tests(
        pd.DataFrame(rows_of("pgl", lambda c, s: 0.5) + rows_of("random", lambda c, s: 0.5)), ("random",), "pgl"
    )
    assert (same[0].p, same[0].case_p, same[0].interval.mean, same[0].cases) == (1.0, 1.0, 0.0, 12)
    assert not same[0].decided
    [none] = run_tests(pd.DataFrame([row("pgl", "x", 0.5), row("random", "y", 0.5)]), ("random",), "pgl")
    assert math.isnan(none.p)
    assert math.isnan(none.case_p)
    assert (none.cases, none.runs, none.decided) == (0, (), False)


def test_ties_and_few_cases_do_not_warn() -> None:
    rows = rows_of("pgl", lambda c, s: 0.5, range(4)) + rows_of("random", lambda c, s: 0.25 if c else 0.5, range(4))
    [test] = run_tests(pd.DataFrame(rows), ("random",), "pgl")
    assert 0 < test.case_p <= 1
    assert test.p == 0  # three runs, all with the same difference
    assert len(test.differences) == MIN_RUNS


def test_holm_by_hand() -> None:
    # 4 tests: 0.01 * 4, 0.013 * 3, 0.04 * 2, 0.2 * 1; the second may not be below the first.
    assert holm([0.04, 0.01, 0.2, 0.013]) == pytest.approx([0.08, 0.04, 0.2, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_p_value_at_its_level_of_holm_is_five_percent_corrected() -> None:
    p_values = [0.3, 0.001, math.nan, 0.02, 0.4]
    for place, level in enumerate(holm_levels(p_values)):
        if not math.isnan(p_values[place]):
            at_level = [level if i == place else p for i, p in enumerate(p_values)]
            alone = [p if i == place else (p < p_values[place]) * 1e-9 or p for i, p in enumerate(at_level)]
            assert holm(alone)[place] == pytest.approx(0.05)
    assert math.isnan(holm_levels(p_values)[2])


def test_holm_leaves_out_what_is_no_test() -> None:
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


@settings(deadline=None)  # a busy machine
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    # Closure principle: a hypothesis counts as much as the least significant intersection that holds it.
    m = len(p_values)
    expected = [0.0] * m
    for members in range(1, 2**m):
        chosen = [i for i in range(m) if members >> i & 1]
        bonferroni = min(1.0, len(chosen) * min(p_values[i] for i in chosen))
        for i in chosen:
            expected[i] = max(expected[i], bonferroni)
    assert holm(p_values) == pytest.approx(expected)
