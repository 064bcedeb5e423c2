from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from benchmarks.gains import RESULTS, SOURCES, gains


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
