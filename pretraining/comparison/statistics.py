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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import wilcoxon

from pretraining.comparison.results import fractions_of, select

LEVEL = 0.05
MIN_RUNS = 3  # with two, both on one side is as likely as not
_MAX_RUNS_OF_ONE_SIGN = 5  # up to so many, all runs must have the same sign
_MIN_SHARE_OF_ONE_SIGN = 0.75  # of more runs
_MAX_RUNS_NEEDED = 100  # that `RunTest.runs_needed` looks for


def case_scores(results: pd.DataFrame, measure: str, class_name: str | None = None) -> pd.DataFrame:
    """One measure of one initialisation at one fraction, by run and case.

    Args:
        results: Rows of one initialisation and fraction.
        measure: A column of ``results``.
        class_name: Class to take; None: the mean over the classes that are not nan, for each run and case.

    Returns:
        (runs, cases), indexed by (fold, seed) and case; nan where the run lacks the case or the value is not defined.
        Two such tables can be subtracted: pandas pairs runs and cases.
    """
    if class_name is not None:
        results = results[results["class_name"] == class_name]
    return results.groupby(["fold", "seed", "case"])[measure].mean().unstack("case")


def run_means(scores: pd.DataFrame) -> pd.Series:
    """Mean over the known values of each run; runs without any are left out."""
    return scores.mean(axis="columns").dropna()


class Interval(NamedTuple):
    """A mean over runs and its 95 % confidence interval; the limits are nan where there are less than two runs."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False without limits."""
        return self.low > 0 or self.high < 0


def interval(values: pd.Series) -> Interval:
    """Mean and Student's interval: exact where the values are draws from one normal distribution."""
    mean, half = float(values.mean()), math.nan
    if len(values) > 1:
        half = _half_width(float(values.std()), len(values))
    return Interval(mean, mean - half, mean + half)


def _half_width(deviation: float, runs: int, level: float = LEVEL) -> float:
    return float(student.ppf(1 - level / 2, runs - 1)) * deviation / math.sqrt(runs)


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
    runs: tuple[tuple[int, int], ...]
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
    def share_of_one_sign(self) -> float:
        """Share of the runs on the side where most of them are; 0 without runs."""
        below = sum(value < 0 for value in self.differences)
        return max(self.above, below) / max(1, len(self.differences))

    @property
    def agree(self) -> bool:
        """Whether the runs have one sign: all of them, or of more than five three in four.

        If all had to, more runs would make a verdict less likely.
        """
        return _agree(self.share_of_one_sign, len(self.differences))

    @property
    def decided(self) -> bool:
        """Whether there is a verdict: enough runs that agree, the interval without 0, also after correction."""
        enough = len(self.differences) >= MIN_RUNS
        return enough and self.agree and self.interval.excludes_zero and self.holm_p < LEVEL

    @property
    def runs_needed(self) -> int | None:
        """With how many runs of this mean, spread and share of signs there would be a verdict.

        None: more than 100, or unknown with one run.
        """
        if len(self.differences) < 2 or self.interval.mean == 0:
            return None
        deviation = float(np.std(self.differences, ddof=1))
        for runs in range(MIN_RUNS, _MAX_RUNS_NEEDED + 1):
            excludes_zero = _half_width(deviation, runs, self.level) < abs(self.interval.mean)
            if excludes_zero and _agree(self.share_of_one_sign, runs):
                return runs
        return None


def _agree(share_of_one_sign: float, runs: int) -> bool:
    return share_of_one_sign == 1 or (runs > _MAX_RUNS_OF_ONE_SIGN and share_of_one_sign >= _MIN_SHARE_OF_ONE_SIGN)


def run_tests(results: pd.DataFrame, inits: Sequence[str], reference: str) -> list[RunTest]:
    """Tests the reference against each other initialisation at each fraction where both have runs.

    The family that Holm's correction is for is all tests returned.
    """
    tests = []
    for fraction in fractions_of(results):
        ours = select(results, reference, fraction)
        for init in inits:
            theirs = select(results, init, fraction)
            if init != reference and not ours.empty and not theirs.empty:
                differences = case_scores(ours, "dice") - case_scores(theirs, "dice")
                tests.append(run_test(init, fraction, differences))
    p_values = [test.p for test in tests]
    corrected, levels = holm(p_values), holm_levels(p_values)
    return [replace(test, holm_p=p, level=level) for test, p, level in zip(tests, corrected, levels, strict=True)]


def run_test(init: str, fraction: float, differences: pd.DataFrame) -> RunTest:
    """One test of differences by run and case (see `case_scores`), alone in its family."""
    of_runs, of_cases = run_means(differences), differences.mean().dropna()
    changed = of_cases[of_cases != 0]  # as Wilcoxon's test leaves differences of 0 out
    case_p = math.nan if of_cases.empty else 1.0 if changed.empty else float(wilcoxon(changed).pvalue)
    p, values = _paired_t(of_runs), tuple(map(float, of_runs))
    return RunTest(init, fraction, tuple(of_runs.index), values, interval(of_runs), p, p, LEVEL, len(of_cases), case_p)


def _paired_t(differences: pd.Series) -> float:
    """Two-sided p; 1 where all differences are 0, 0 where they are all alike but not 0."""
    if len(differences) < 2:
        return math.nan
    error = float(differences.std()) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if differences.iloc[0] == 0 else 0.0
    return float(2 * student.sf(abs(differences.mean()) / error, len(differences) - 1))


def holm(p_values: Iterable[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6).

    The i-th smallest of m values is multiplied by m - i + 1; none may be below the one before, or above 1. A nan is no
    test: it stays, and is not counted.
    """
    p = pd.Series(list(p_values), dtype=float)
    multiplied = (p * _holm_factors(p)).clip(upper=1)
    return multiplied[p.sort_values(kind="stable").index].cummax().reindex(p.index).tolist()


def holm_levels(p_values: Iterable[float]) -> list[float]:
    """What each p value has to be below, given the order they are in; nan for what is no test."""
    return (LEVEL / _holm_factors(pd.Series(list(p_values), dtype=float))).tolist()


def _holm_factors(p: pd.Series) -> pd.Series:
    return p.count() + 1 - p.rank(method="first")
