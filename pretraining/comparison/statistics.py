"""Means, intervals and tests whose units are the runs.

A run is a fold and a seed: one training, whose luck (weights, batches, which cases are labelled) all its test cases
share. So cases are no independent units for a question about initialisations: between two trainings from one start that
differ in the seed alone, a test over cases finds a difference nearly always. Each run counts with one number, the mean
over its test cases; two initialisations are compared by the differences of the runs that share fold and seed, with
Student's t.

The test over cases (Wilcoxon's signed-rank test) answers another question, whether these very trained networks would
differ on further cases, and is reported as that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import wilcoxon

from pretraining.comparison.results import CaseResult, ResultSet, Run

LEVEL = 0.05
LEAST_RUNS = 3  # with two, both on one side is as likely as not
_ALL_ONE_SIGN = 5  # up to so many runs
_MOST_OF_MANY = 0.75  # of more
_MOST_RUNS = 100  # that `RunTest.runs_needed` looks for

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Values of one initialisation at one fraction.

    Attributes:
        runs: Fold and seed of the rows.
        cases: Names of the columns.
        values: (runs, cases); nan where the run lacks the case or the value is not defined.
    """

    runs: tuple[Run, ...]
    cases: tuple[str, ...]
    values: Values

    @property
    def run_means(self) -> Values:
        """(runs,) mean over the cases of each run; nan for a run without a known value."""
        means: Values = mean_of_known(self.values, axis=1)
        return means


@dataclass(frozen=True)
class Interval:
    """A mean over runs and its 95 % confidence interval; the limits are nan where there is one run."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False without limits."""
        return self.low > 0 or self.high < 0


def value_grid(rows: Sequence[CaseResult], metric: str, class_name: str | None = None) -> Grid:
    """Collects one measure.

    Args:
        rows: Of one initialisation and fraction.
        metric: Name of a field of `CaseResult`.
        class_name: Class to take; None: the mean over the classes that are not nan, for each run and case.
    """
    runs = tuple(sorted({row.run for row in rows}))
    cases = tuple(sorted({row.case for row in rows}))
    classes = sorted({row.class_name for row in rows}) if class_name is None else [class_name]
    values = np.full((len(runs), len(cases), len(classes)), np.nan)
    places = [{name: i for i, name in enumerate(names)} for names in (runs, cases, classes)]
    for row in rows:
        if row.class_name in places[2]:
            values[places[0][row.run], places[1][row.case], places[2][row.class_name]] = getattr(row, metric)
    return Grid(runs, cases, mean_of_known(values, axis=2))


def mean_of_known(values: NDArray[Any], axis: int | None = None) -> Any:
    """Mean of the values that are not nan; nan where there is none."""
    known = ~np.isnan(values)
    number = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)[()]


def interval(grid: Grid) -> Interval:
    """Mean of the runs, each of them the mean over its cases, with Student's interval over the runs."""
    return _interval(_known(grid.run_means))


def _known(values: Values) -> Values:
    known: Values = values[~np.isnan(values)]
    return known


def _interval(values: Values) -> Interval:
    """Student's: exact where the values are draws from one normal distribution."""
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else math.nan, math.nan, math.nan)
    half = _half_width(float(values.std(ddof=1)), len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def _half_width(deviation: float, runs: int, level: float = LEVEL) -> float:
    return float(student.ppf(1 - level / 2, runs - 1)) * deviation / math.sqrt(runs)


def difference(first: Grid, second: Grid) -> Grid:
    """First minus second, on the runs and cases that both have."""
    runs = tuple(sorted(set(first.runs) & set(second.runs)))
    cases = tuple(sorted(set(first.cases) & set(second.cases)))
    a, b = (_part(grid, runs, cases) for grid in (first, second))
    return Grid(runs, cases, a - b)


def _part(grid: Grid, runs: Sequence[Run], cases: Sequence[str]) -> Values:
    return grid.values[np.ix_([grid.runs.index(run) for run in runs], [grid.cases.index(case) for case in cases])]


@dataclass(frozen=True)
class RunTest:
    """The reference against another initialisation at one fraction, by average Dice.

    Attributes:
        init: The other initialisation.
        fraction: Share of the training cases.
        runs: Folds and seeds that both have.
        differences: For each of them, reference minus other, mean over the cases that both have, Dice from 0 to 1.
        interval: Their mean and its interval.
        p: Of the paired t test over runs, two-sided; nan below two runs.
        holm_p: The same, corrected for all tests of the family.
        level: What p has to be below in Holm's order.
        cases: Number of cases that are paired.
        case_p: Of Wilcoxon's signed-rank test over cases, each case's difference averaged over the runs: whether these
            trained networks differ on further cases. It says nothing of other runs.
    """

    init: str
    fraction: float
    runs: tuple[Run, ...]
    differences: tuple[float, ...]
    interval: Interval
    p: float
    holm_p: float
    level: float
    cases: int
    case_p: float

    @property
    def above(self) -> int:
        """Number of runs in which the reference is above the other."""
        return sum(value > 0 for value in self.differences)

    @property
    def agree(self) -> bool:
        """Whether the runs have one sign: all of them, or of more than five three in four.

        If all had to, more runs would make a verdict less likely.
        """
        return _agree(self._of_one_side, len(self.differences))

    @property
    def _of_one_side(self) -> int:
        return max(self.above, sum(value < 0 for value in self.differences))

    @property
    def decided(self) -> bool:
        """Whether there is a verdict: enough runs that agree, the interval without 0, also after correction."""
        enough = len(self.differences) >= LEAST_RUNS
        return enough and self.agree and self.interval.excludes_zero and self.holm_p < LEVEL

    @property
    def runs_needed(self) -> int | None:
        """With how many runs of this mean, spread and share of signs there would be a verdict.

        None: more than 100, or unknown with one run.
        """
        runs = len(self.differences)
        if runs < 2 or self.interval.mean == 0:
            return None
        deviation, share = float(np.std(self.differences, ddof=1)), self._of_one_side / runs
        for number in range(LEAST_RUNS, _MOST_RUNS + 1):
            beside = _half_width(deviation, number, self.level) < abs(self.interval.mean)
            if beside and _agree(share * number, number):
                return number
        return None


def _agree(of_one_side: float, runs: int) -> bool:
    return 0 < runs == of_one_side or (runs > _ALL_ONE_SIGN and of_one_side >= _MOST_OF_MANY * runs)


def run_tests(results: ResultSet, inits: Sequence[str], reference: str) -> list[RunTest]:
    """Tests the reference against each other initialisation at each fraction where both have runs.

    The family that Holm's correction is for is all tests returned.
    """
    tests = []
    for fraction in results.fractions:
        ours = results.rows(reference, fraction)
        for init in inits:
            theirs = results.rows(init, fraction)
            if init != reference and ours and theirs:
                grid = difference(value_grid(ours, "dice"), value_grid(theirs, "dice"))
                tests.append(run_test(init, fraction, grid))
    p_values = [test.p for test in tests]
    corrected, levels = holm(p_values), holm_levels(p_values)
    return [replace(test, holm_p=p, level=level) for test, p, level in zip(tests, corrected, levels, strict=True)]


def run_test(init: str, fraction: float, differences: Grid) -> RunTest:
    """One test of differences, alone in its family."""
    means = differences.run_means
    there = ~np.isnan(means)
    runs = tuple(run for run, known in zip(differences.runs, there, strict=True) if known)
    values = means[there]
    of_cases = _known(mean_of_known(differences.values, axis=0))
    p = _paired_t(values)
    found = tuple(float(value) for value in values)
    return RunTest(init, fraction, runs, found, _interval(values), p, p, LEVEL, len(of_cases), _wilcoxon(of_cases))


def _paired_t(differences: Values) -> float:
    """Two-sided p; 1 where all differences are 0, 0 where they are all alike but not 0."""
    if len(differences) < 2:
        return math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(2 * student.sf(abs(differences.mean()) / error, len(differences) - 1))


def _wilcoxon(differences: Values) -> float:
    """Two-sided p; differences of 0 are left out."""
    changed = differences[differences != 0]
    if not len(differences):
        return math.nan
    return float(wilcoxon(changed).pvalue) if len(changed) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6).

    The i-th smallest of m values is multiplied by m - i + 1; none may be below the one before, or above 1. A nan is no
    test: it stays, and does not count.
    """
    corrected, largest = [math.nan] * len(p_values), 0.0
    for index, factor in _factors(p_values):
        largest = max(largest, min(1.0, p_values[index] * factor))
        corrected[index] = largest
    return corrected


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """What each p value has to be below, given the order they are in; nan for what is no test."""
    levels = [math.nan] * len(p_values)
    for index, factor in _factors(p_values):
        levels[index] = LEVEL / factor
    return levels


def _factors(p_values: Sequence[float]) -> list[tuple[int, int]]:
    """Places of the p values that are numbers, the smallest first, and what each is multiplied by."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    return [(index, len(order) - rank) for rank, index in enumerate(order)]
