from __future__ import annotations

import pytest
import torch

from pretraining.training.correspondence import look_up


def test_look_up_by_hand() -> None:
    """Cell i of the first map holds the unit vector e_i; in the second, cells 0 and 3 have changed places."""
    first = torch.eye(8).reshape(1, 8, 2, 2, 2)
    order = [3, 1, 2, 0, 4, 5, 6, 7]
    second = torch.eye(8)[:, order].reshape(1, 8, 2, 2, 2)
    hit, miss = look_up(first, second, torch.tensor([[10.0, 3.0, 4.0]]))
    assert hit.tolist() == [False, True, True, False, True, True, True, True]
    # Cells 0 = (0, 0, 0) and 3 = (0, 1, 1) lie one step apart in y and x.
    assert miss[0] == pytest.approx(5.0)
    assert miss[1] == 0


def test_scale_of_the_features_does_not_matter() -> None:
    first = torch.randn(2, 16, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    hit, miss = look_up(first, 7 * first, torch.ones(2, 3))
    assert hit.all()
    assert not miss.any()


def test_unrelated_features_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 32, 2, 3, 3, generator=generator) for _ in range(2))
    hit, miss = look_up(first, second, torch.ones(200, 3))
    assert float(hit.float().mean()) == pytest.approx(1 / 18, abs=0.02)
    assert float(miss.mean()) > 1
