from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from benchmarks.gains import RESULTS, SOURCES, gains, print_recommended


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.table)
def test_gains_are_those_of_pandas(source: object) -> None:
    table = RESULTS / source.table  # type: ignore[attr-defined]
    if not table.is_file():
        pytest.skip("its runs are not done")
    data = pd.read_csv(table)
    if "mean" in data:
        data = data[data["segmenter_padding"] == "zeros"]
        data["dice"], data["fraction"] = data["mean"] / 100, 0.2
        runs = data.set_index(["fraction", "init", "seed"])["dice"]
    else:
        cases = data.groupby(["fraction", "init", "seed", "case"])["dice"].mean()
        runs = cases.groupby(["fraction", "init", "seed"]).mean()
    found = list(gains(source))  # type: ignore[arg-type]
    assert found
    for gain in found:
        of_fraction = runs[gain.test.fraction]
        differences = (of_fraction[gain.test.init] - of_fraction["random"]).dropna()
        assert gain.test.interval.mean == pytest.approx(differences.mean())
        low, high = np.nan, np.nan
        if len(differences) > 1:  # a comparison under way has starts with one run, of which there is no interval
            low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (gain.test.interval.low, gain.test.interval.high) == pytest.approx((low, high), nan_ok=True)


def test_p_of_a_page_counts_the_tests_of_all_its_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    sources = [source for source in SOURCES if source.page == "hippocampus.md"]
    print_recommended(sources)
    printed = [line.split(" | ")[-2:] for line in capsys.readouterr().out.splitlines() if "% of the labels" in line]
    tables = []
    for source in sources:
        data = pd.read_csv(RESULTS / source.table)
        runs = data.groupby(["seed", "init", "case"])["dice"].mean().groupby(["seed", "init"]).mean().unstack()
        others = runs.drop(columns="pgl_nce")
        tables.append(others.apply(lambda values, runs=runs: ttest_1samp(runs["pgl_nce"] - values, 0).pvalue))
    page = pd.concat(tables, ignore_index=True)
    assert len(printed) == len(tables) == 2
    for (alone, of_page), table in zip(printed, tables, strict=True):
        assert float(alone) == pytest.approx(holm_by_steps(table, table["random"]), abs=5e-4)
        assert float(of_page.strip(" |")) == pytest.approx(holm_by_steps(page, table["random"]), abs=5e-4)


def holm_by_steps(p: pd.Series, which: float) -> float:
    """Largest of the smaller p times the number not yet rejected, up to the one asked for."""
    steps = [value * (len(p) - place) for place, value in enumerate(sorted(p)) if value <= which]
    return min(1.0, max(steps))
