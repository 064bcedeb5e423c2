from __future__ import annotations

import logging

import pytest

from pretraining.data import DataError, Scan, Skipped, with_joint_channels
from pretraining.data.scan import in_few_lines


def scan(name: str, *channels: str) -> Scan:
    return Scan(name, name, f"of_{channels[0]}", "store", (), channels, (False,) * len(channels))


def test_the_most_common_number_is_kept_and_the_others_are_told() -> None:
    pool = [scan("a", "T1", "T2"), scan("b", "CT"), scan("c", "T1", "T2"), scan("d", "1", "2", "3")]
    kept, skipped = with_joint_channels(pool)
    assert [item.name for item in kept] == ["a", "c"]
    assert list(map(str, skipped)) == [
        "of_CT: b skipped: has 1 channel; -channels joint takes scans with 2 channels, the number that most scans have",
        "of_1: d skipped: has 3 channels; -channels joint takes scans with 2 channels, the number that most scans have",
    ]
    assert [item.name for item in with_joint_channels(pool[:2])[0]] == ["a"]  # equally common: the larger


def test_the_plans_number_goes_first() -> None:
    pool = [scan("a", "T1", "T2"), scan("b", "CT"), scan("c", "T1", "T2")]
    kept, skipped = with_joint_channels(pool, planned=1)
    assert [item.name for item in kept] == ["b"]
    assert {item.reason for item in skipped} == {
        "has 2 channels; -channels joint takes scans with 1 channel, the number of the plan"
    }
    with pytest.raises(DataError, match=r"plan is for 4 channels and no scan has as many \(found: 1, 2\)"):
        with_joint_channels(pool, planned=4)


def test_channels_of_other_names_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with_joint_channels([scan("a", "T1", "T2"), scan("b", "t1", "t2")])
        assert caplog.text == ""
        with_joint_channels([scan("a", "T1", "T2"), scan("b", "CT", "PET")])
    assert "of_T1: T1, T2; of_CT: CT, PET" in caplog.text or "of_CT: CT, PET; of_T1: T1, T2" in caplog.text


def test_many_scans_of_one_reason_are_one_line() -> None:
    skipped = [Skipped(str(n), "A", "bad") for n in range(4)] + [Skipped("x", "B", "bad")]
    assert in_few_lines(skipped) == ["A: 0 and 3 more skipped: bad", "B: x skipped: bad"]
