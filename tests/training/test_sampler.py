from __future__ import annotations

from collections import Counter

import pytest

from pretraining.training.sampler import PairSampler


def epoch(sampler: PairSampler, number: int) -> list[list[tuple[int, int]]]:
    sampler.epoch = number
    return list(sampler)


def test_every_scan_equally_often_whatever_the_batch() -> None:
    sampler = PairSampler(scans=7, steps=2, batch_size=3, accumulate=1, seed=0)
    drawn = [pair for number in range(7) for part in epoch(sampler, number) for pair in part]
    assert [draw for draw, _ in drawn] == list(range(42))
    assert set(Counter(scan for _, scan in drawn).values()) == {6}
    assert [scan for _, scan in drawn[:7]] != [scan for _, scan in drawn[7:14]]  # each pass in its own order


def test_processes_and_parts_together_are_one_process() -> None:
    whole = epoch(PairSampler(5, 3, 8, 1, seed=1), 4)
    shares = [epoch(PairSampler(5, 3, 8, 2, seed=1, rank=rank, processes=2), 4) for rank in (0, 1)]
    assert all(len(share) == 6 for share in shares)
    for step in range(3):
        joined = [pair for share in shares for part in share[2 * step : 2 * step + 2] for pair in part]
        assert joined == whole[step]


def test_uneven_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="divided evenly"):
        PairSampler(5, 3, 6, 2, seed=1, processes=2)
