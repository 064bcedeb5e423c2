from __future__ import annotations

import math
from collections import Counter

import pytest

from pretraining.data import DataError
from pretraining.training.sampler import PairSampler, WeightedOrder, draws_per_pass


def from_step(sampler: PairSampler, first: int) -> list[list[tuple[int, int]]]:
    sampler.first_step = first
    units = list(sampler)
    assert len(units) == len(sampler)
    return units


def test_every_scan_equally_often_whatever_the_batch() -> None:
    drawn = [pair for part in PairSampler(scans=7, steps=14, batch_size=3, accumulate=1, seed=0) for pair in part]
    assert [draw for draw, _ in drawn] == list(range(42))
    assert set(Counter(scan for _, scan in drawn).values()) == {6}
    assert [scan for _, scan in drawn[:7]] != [scan for _, scan in drawn[7:14]]  # each pass in its own order


def test_processes_and_parts_together_are_one_process() -> None:
    whole = from_step(PairSampler(5, 15, 8, 1, seed=1), 12)
    shares = [from_step(PairSampler(5, 15, 8, 2, seed=1, rank=rank, world_size=2), 12) for rank in (0, 1)]
    assert all(len(share) == 6 for share in shares)
    for step in range(3):
        joined = [pair for share in shares for part in share[2 * step : 2 * step + 2] for pair in part]
        assert joined == whole[step]


def test_large_parts_are_loaded_in_units_in_the_same_order() -> None:
    """Of at most 16 pairs, all of about the same size."""
    units = list(PairSampler(50, 3, 80, 2, seed=1))
    assert [len(unit) for unit in units] == 6 * [13, 13, 14]
    assert [draw for unit in units for draw, _ in unit] == list(range(240))


def test_uneven_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="divided evenly"):
        PairSampler(5, 3, 6, 2, seed=1, world_size=2)


def of_sources(scans: list[int], sources: list[int]) -> list[float]:
    drawn = Counter(sources[scan] for scan in scans)
    return [drawn[source] / len(scans) for source in sorted(set(sources))]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1.0, 1.0, 2.0), (0.25, 0.25, 0.5)), ((0.3, 0.6, 0.1), (0.3, 0.6, 0.1)), ((5.0, 0.0, 5.0), (0.5, 0.0, 0.5))],
)
def test_sources_get_exactly_their_shares_and_their_scans_equally_many(
    weights: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    sources = [2] * 7 + [0] * 2 + [1] * 11
    order = WeightedOrder(sources, weights, seed=5)
    scans = [order.scan(draw) for draw in range(order.length)]
    assert len(sources) <= order.length < 2 * len(sources)
    assert of_sources([*scans, 0, 7, 9], sources) != pytest.approx(shares, abs=1e-12)  # the comparison can fail
    drawn = Counter(sources[scan] for scan in scans)
    assert [drawn[source] / len(scans) for source in range(3)] == pytest.approx(list(shares), abs=1e-12)
    whole = [order.scan(draw) for draw in range(order.length * 7 * 2 * 11)]
    for source in range(3):
        counts = Counter(scan for scan in whole if sources[scan] == source)
        assert len(set(counts.values())) <= 1
    assert scans != [order.scan(draw) for draw in range(order.length, 2 * order.length)]


def test_each_pass_over_the_scans_of_a_source_has_another_order() -> None:
    order = WeightedOrder([0] * 7, (1.0,), seed=5)
    passes = {tuple(order.scan(7 * number + place) for place in range(7)) for number in range(5)}
    assert len(passes) == 5
    assert all(sorted(one) == list(range(7)) for one in passes)


def test_weights_of_many_digits_are_met_and_none_is_forgotten() -> None:
    weights = (math.pi, math.e, 1e-9)
    counts = draws_per_pass(weights, scans=10)
    assert counts[2] == 1
    assert [count / sum(counts) for count in counts] == pytest.approx([w / sum(weights) for w in weights], abs=2e-5)


def test_weighted_draws_do_not_depend_on_processes_or_on_where_a_run_resumes() -> None:
    sources = [0, 0, 0, 1, 1]

    def sampler(**options: int) -> PairSampler:
        shares = WeightedOrder(sources, (1.0, 3.0), seed=1)
        return PairSampler(5, 15, 8, options.pop("accumulate", 1), seed=1, weighted=shares, **options)

    straight = from_step(sampler(), 0)
    assert from_step(sampler(), 12) == straight[12:]
    shares = [from_step(sampler(rank=rank, world_size=2, accumulate=2), 12) for rank in (0, 1)]
    for step in range(3):
        joined = [pair for share in shares for part in share[2 * step : 2 * step + 2] for pair in part]
        assert joined == straight[12 + step]


def test_without_weights_the_order_is_the_one_it_always_was() -> None:
    """Written down from the first version; a run that goes on must go on with these."""
    drawn = [scan for part in from_step(PairSampler(6, 6, 4, 1, seed=12345), 3) for _, scan in part]
    assert drawn == [1, 3, 2, 4, 5, 0, 2, 1, 0, 4, 3, 5]


def test_a_source_with_a_weight_and_no_scan_is_named() -> None:
    with pytest.raises(DataError, match="source 2 of -d has a weight of 3 and no scan"):
        WeightedOrder([0, 0], (1.0, 3.0), seed=0)
