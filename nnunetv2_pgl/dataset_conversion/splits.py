"""Test sets and folds, chosen at random by a seed.

``numpy.random.RandomState`` is used on purpose: numpy guarantees that its numbers never change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEFAULT_SEED = 12345
NUM_FOLDS = 5  # so each holds 20 % of the training scans for validation, as in the paper (section 5.1)

# An entry of nnU-Net's splits_final.json: "train" and "val" with the names of the cases.
Fold = dict[str, list[str]]


def hold_out(cases: Sequence[str], number: int, seed: int) -> frozenset[str]:
    """Choose the test set.

    Args:
        cases: All cases of the data set as published, not only those at hand, so that a case's part does not depend
            on which others were downloaded.
        number: Size of the test set.
        seed: Decides which; the order of ``cases`` has no influence.

    Returns:
        The names of the test cases.
    """
    names = sorted(cases)
    chosen = np.random.RandomState(seed).permutation(len(names))[:number]
    return frozenset(names[index] for index in chosen)


def make_folds(cases: Sequence[str], seed: int) -> tuple[Fold, ...]:
    """Divide the training cases into five folds; each case is in the validation part of one.

    Args:
        cases: The training cases at hand.
        seed: Decides which case is in which fold.

    Returns:
        Five folds, or fewer if there are fewer cases; none for a single case, which cannot be divided. Fold 0
        validates on ``len(cases) // 5`` cases.
    """
    names = sorted(cases)
    if len(names) < 2:
        return ()
    order = np.random.RandomState(seed).permutation(len(names))
    # array_split makes the first parts the larger ones; from the end, fold 0 is one of the smaller.
    parts = np.array_split(order, min(NUM_FOLDS, len(names)))[::-1]
    validation = [{names[index] for index in part} for part in parts]
    return tuple({"train": [name for name in names if name not in val], "val": sorted(val)} for val in validation)
