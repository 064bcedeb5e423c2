"""Means, confidence intervals and paired tests over runs and cases.

Values form a grid: runs (fold and seed) by test cases. An interval comes from a crossed bootstrap: runs and cases are
drawn with replacement, independently of each other, and the mean of the drawn grid is taken (Owen 2007, "The pigeonhole
bootstrap", Annals of Applied Statistics 1). Its limits are the 2.5th and 97.5th percentiles of these means.

The cases are the independent units of a test: differences are first averaged over runs, then tested by Wilcoxon's
signed-rank test over cases. So p speaks of further cases of the same kind, with the runs as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from pretraining.comparison.results import CaseResult, ResultSet, Run

DRAWS = 2000
LEVEL = 0.05
_SEED = 20201128

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


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval; the limits are nan where one value is all there is."""

    mean: float
    low: float
    high: float


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
    """Mean over all runs and cases, with its interval from the crossed bootstrap."""
    mean = float(mean_of_known(grid.values))
    if np.count_nonzero(~np.isnan(grid.values)) < 2:
        return Interval(mean, math.nan, math.nan)
    low, high = np.nanpercentile(bootstrap_means(grid.values), [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def bootstrap_means(values: Values) -> Values:
    """Means of grids whose runs and cases are drawn with replacement, from a fixed seed.

    Args:
        values: (runs, cases), nan where unknown.

    Returns:
        (DRAWS,) means; nan for a draw that holds no known value.
    """
    rng = np.random.default_rng(_SEED)
    # How often each run and case is drawn; the mean is then a weighted one.
    of_runs, of_cases = (rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float) for n in values.shape)
    known = ~np.isnan(values)
    totals = np.einsum("dr,rc,dc->d", of_runs, np.where(known, values, 0.0), of_cases, optimize=True)
    numbers = np.einsum("dr,rc,dc->d", of_runs, known.astype(float), of_cases, optimize=True)
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan)


def difference(first: Grid, second: Grid) -> Grid:
    """First minus second, on the runs and cases that both have."""
    runs = tuple(sorted(set(first.runs) & set(second.runs)))
    cases = tuple(sorted(set(first.cases) & set(second.cases)))
    a, b = (_part(grid, runs, cases) for grid in (first, second))
    return Grid(runs, cases, a - b)


def _part(grid: Grid, runs: Sequence[Run], cases: Sequence[str]) -> Values:
    return grid.values[np.ix_([grid.runs.index(run) for run in runs], [grid.cases.index(case) for case in cases])]


@dataclass(frozen=True)
class PairedTest:
    """The reference against another initialisation at one fraction, by average Dice.

    Attributes:
        init: The other initialisation.
        fraction: Share of the training cases.
        difference: Mean over cases, reference minus other, Dice from 0 to 1.
        ranks: Sum of the signed ranks; its sign is the direction that the test sees.
        p: Two-sided; nan if no case is paired.
        holm_p: The same, corrected for all tests of the family.
        cases: Number of cases that are paired.
        runs: Number of runs, that is pairs of fold and seed, that both have.
    """

    init: str
    fraction: float
    difference: float
    ranks: float
    p: float
    holm_p: float
    cases: int
    runs: int

    @property
    def significant(self) -> bool:
        """Below the level after correction."""
        return self.holm_p < LEVEL


def paired_tests(results: ResultSet, inits: Sequence[str], reference: str) -> list[PairedTest]:
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
                tests.append(_test(init, fraction, grid))
    corrected = holm([test.p for test in tests])
    return [replace(test, holm_p=p) for test, p in zip(tests, corrected, strict=True)]


def _test(init: str, fraction: float, grid: Grid) -> PairedTest:
    of_cases = mean_of_known(grid.values, axis=0)
    of_cases = of_cases[~np.isnan(of_cases)]
    runs = int(np.count_nonzero(~np.isnan(grid.values).all(axis=1)))
    if not len(of_cases):
        return PairedTest(init, fraction, math.nan, math.nan, math.nan, math.nan, 0, 0)
    changed = of_cases[of_cases != 0]
    ranks = float(np.sum(np.sign(changed) * rankdata(np.abs(changed))))
    p = float(wilcoxon(changed).pvalue) if len(changed) else 1.0
    return PairedTest(init, fraction, float(of_cases.mean()), ranks, p, math.nan, len(of_cases), runs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6).

    The i-th smallest of m values is multiplied by m - i + 1; none may be below the one before, or above 1. A nan is no
    test: it stays, and does not count.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(order) - rank)))
        corrected[index] = largest
    return corrected
