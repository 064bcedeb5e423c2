"""Sizes of the paper's splits; the same cases everywhere, whatever was downloaded."""

from __future__ import annotations

import random

import pytest

from nnunetv2_pgl.dataset_conversion.downloaded import DEFAULT_SEED, hold_out, make_folds


@pytest.mark.parametrize(
    ("training", "test", "validation"),
    [(66, 65, 13), (20, 21, 4), (105, 105, 21), (15, 15, 3)],
    ids=["Liver", "Spleen", "KiTS19", "BCV"],
)
def test_the_papers_sizes(training: int, test: int, validation: int) -> None:
    cases = [f"case_{n}" for n in range(training + test)]
    held_out = hold_out(cases, test, DEFAULT_SEED)
    assert len(held_out) == test
    rest = [case for case in cases if case not in held_out]
    folds = make_folds(rest, DEFAULT_SEED)
    assert len(folds) == 5
    assert len(folds[0]["val"]) == validation
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(rest)
        assert not set(fold["train"]) & set(fold["val"])
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(rest)


def test_the_choice_depends_on_the_seed_alone() -> None:
    cases = [f"img{n:04d}" for n in range(30)]
    shuffled = random.Random(1).sample(cases, len(cases))
    assert hold_out(shuffled, 15, 7) == hold_out(cases, 15, 7) != hold_out(cases, 15, 8)
    assert make_folds(shuffled, 7) == make_folds(cases, 7) != make_folds(cases, 8)


def test_the_choice_stays_what_was_published() -> None:
    assert sorted(hold_out("abcdefghij", 4, DEFAULT_SEED)) == ["a", "d", "h", "j"]


@pytest.mark.parametrize(("number", "folds"), [(1, 0), (2, 2), (4, 4), (7, 5)])
def test_few_cases_make_fewer_folds_and_none_without_training_cases(number: int, folds: int) -> None:
    made = make_folds([f"case_{n}" for n in range(number)], 0)
    assert len(made) == folds
    assert all(fold["train"] and fold["val"] for fold in made)
