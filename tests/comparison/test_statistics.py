import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from pretraining.comparison.results import CaseResult, ResultSet
from pretraining.comparison.statistics import (
    DRAWS,
    Grid,
    bootstrap_means,
    difference,
    holm,
    interval,
    mean_of_known,
    paired_tests,
    value_grid,
)


def row(init: str, case: str, dice: float, class_name: str = "a", fraction: float = 0.2, seed: int = 0) -> CaseResult:
    return CaseResult(init, fraction, 10, 0, seed, case, class_name, dice, dice, 1.0, 1.0, dice, False, 5, 5)


def rows_of(init: str, dice: Callable[[int, int], float], cases: range = range(12), **more: float) -> list[CaseResult]:
    return [row(init, f"c{case:02d}", dice(case, seed), seed=seed, **more) for seed in range(3) for case in cases]


def test_the_average_skips_undefined_classes() -> None:
    rows = [
        row("pgl", "x", 0.4, "a"),
        row("pgl", "x", 0.8, "b"),
        row("pgl", "y", 0.5, "a"),
        row("pgl", "y", math.nan, "b"),
    ]
    grid = value_grid(rows, "dice")
    assert grid.cases == ("x", "y")
    assert grid.values.tolist() == [pytest.approx([0.6, 0.5])]
    assert np.isnan(value_grid(rows, "dice", "b").values[0, 1])
    assert interval(value_grid(rows, "dice")).mean == pytest.approx(0.55)
    assert interval(value_grid(rows, "dice", "b")).mean == pytest.approx(0.8)


def test_mean_of_known_is_numpys_nanmean() -> None:
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]])
    assert mean_of_known(values) == np.nanmean(values)
    assert mean_of_known(values, axis=1).tolist() == np.nanmean(values, axis=1).tolist()
    assert np.isnan(mean_of_known(values, axis=0)[1])


def test_bootstrap_has_the_variance_of_two_crossed_factors() -> None:
    # For value = run + case, the bootstrap mean is a mean of drawn runs plus one of drawn cases, independent.
    rng = np.random.default_rng(3)
    of_runs, of_cases = rng.normal(size=6), 2 * rng.normal(size=40)
    means = bootstrap_means(of_runs[:, None] + of_cases)
    assert len(means) == DRAWS
    assert np.var(means) == pytest.approx(of_runs.var() / 6 + of_cases.var() / 40, rel=0.1)
    assert np.mean(means) == pytest.approx(of_runs.mean() + of_cases.mean(), abs=0.05)


def test_bootstrap_agrees_with_drawing_indices_one_by_one() -> None:
    rng = np.random.default_rng(5)
    values = rng.gamma(1.0, size=(3, 15))
    values[0, 4:9] = np.nan
    plain = [np.nanmean(values[rng.integers(3, size=3)][:, rng.integers(15, size=15)]) for _ in range(6000)]
    assert np.percentile(bootstrap_means(values), [2.5, 50, 97.5]) == pytest.approx(
        np.percentile(plain, [2.5, 50, 97.5]), rel=0.06
    )


def test_interval_holds_the_mean_and_is_the_same_again() -> None:
    grid = Grid(((0, 0), (0, 1)), tuple("abcdef"), np.random.default_rng(0).random((2, 6)))
    found = interval(grid)
    assert found.low < found.mean < found.high
    assert found == interval(grid)


def test_one_value_has_no_interval() -> None:
    found = interval(Grid(((0, 0),), ("a",), np.array([[0.5]])))
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(interval(value_grid([], "dice")).mean)


def test_difference_takes_what_both_have() -> None:
    first = Grid(((0, 0), (0, 1)), ("a", "b"), np.array([[1.0, 2.0], [3.0, 4.0]]))
    second = Grid(((0, 1), (0, 2)), ("b", "c"), np.array([[0.5, 9.0], [9.0, 9.0]]))
    common = difference(first, second)
    assert (common.runs, common.cases, common.values.tolist()) == (((0, 1),), ("b",), [[3.5]])
    assert difference(first, Grid(((7, 7),), ("z",), np.ones((1, 1)))).values.size == 0


def test_a_paired_test_is_wilcoxons_on_means_over_runs() -> None:
    noise = np.random.default_rng(1).normal(size=(12, 3))
    ours = rows_of("pgl", lambda case, seed: 0.5 + 0.01 * case + 0.02 * noise[case, seed])
    theirs = rows_of("byol", lambda case, seed: 0.49 + 0.01 * case)
    [test] = paired_tests(ResultSet.of(ours + theirs), ("byol", "pgl"), "pgl")
    mean_ours = 0.5 + 0.01 * np.arange(12) + 0.02 * noise.mean(axis=1)
    mean_theirs = 0.49 + 0.01 * np.arange(12)
    assert test.p == test.holm_p == pytest.approx(wilcoxon(mean_ours, mean_theirs).pvalue)
    assert test.difference == pytest.approx((mean_ours - mean_theirs).mean())
    assert (test.init, test.cases, test.runs) == ("byol", 12, 3)


def test_direction_and_significance() -> None:
    rows = rows_of("pgl", lambda case, seed: 0.8 + 0.001 * case)
    rows += rows_of("random", lambda case, seed: 0.7) + rows_of("byol", lambda case, seed: 0.9 + 0.002 * case)
    worse, better = paired_tests(ResultSet.of(rows), ("byol", "random", "pgl"), "pgl")
    # All 12 cases on one side: 2 of the 2 ** 12 ways to choose signs are as extreme.
    assert worse.p == better.p == pytest.approx(2 / 2**12)
    assert worse.holm_p == better.holm_p == pytest.approx(4 / 2**12)
    assert worse.ranks < 0 < better.ranks
    assert worse.significant
    assert better.significant


def test_only_common_runs_and_cases_are_paired() -> None:
    ours = rows_of("pgl", lambda case, seed: 0.6, range(10))
    theirs = [r for r in rows_of("random", lambda case, seed: 0.5 + 0.01 * case, range(4, 12)) if r.seed != 1]
    theirs += [row("random", "c04", 0.9, fraction=0.5)]  # the reference has no run there
    [test] = paired_tests(ResultSet.of(ours + theirs), ("random", "pgl"), "pgl")
    assert (test.cases, test.runs) == (6, 2)
    assert test.difference == pytest.approx(0.1 - 0.01 * np.arange(4, 10).mean())


def test_equal_predictions_and_nothing_in_common() -> None:
    same = paired_tests(
        ResultSet.of(rows_of("pgl", lambda c, s: 0.5) + rows_of("random", lambda c, s: 0.5)), ("random",), "pgl"
    )
    assert (same[0].p, same[0].difference, same[0].cases) == (1.0, 0.0, 12)
    [none] = paired_tests(ResultSet.of([row("pgl", "x", 0.5), row("random", "y", 0.5)]), ("random",), "pgl")
    assert math.isnan(none.p)
    assert (none.cases, none.runs, none.significant) == (0, 0, False)


def test_ties_and_few_cases_do_not_warn() -> None:
    rows = rows_of("pgl", lambda c, s: 0.5, range(4)) + rows_of("random", lambda c, s: 0.25 if c else 0.5, range(4))
    [test] = paired_tests(ResultSet.of(rows), ("random",), "pgl")
    assert 0 < test.p <= 1


def test_holm_by_hand() -> None:
    # 4 tests: 0.01 * 4, 0.013 * 3, 0.04 * 2, 0.2 * 1; the second may not be below the first.
    assert holm([0.04, 0.01, 0.2, 0.013]) == pytest.approx([0.08, 0.04, 0.2, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


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
