from __future__ import annotations

import torch

from benchmarks.shuffled_encoder import shuffled


def test_values_stay_and_places_go() -> None:
    weights = {"a": torch.arange(60.0).reshape(3, 4, 5), "b": torch.arange(7.0), "count": torch.tensor(3)}
    weights["alias"] = weights["a"]
    result = shuffled(weights, seed=0)
    for key, value in weights.items():
        assert result[key].shape == value.shape
        assert torch.equal(result[key].flatten().sort().values, value.flatten().sort().values)
    assert not torch.equal(result["a"], weights["a"])
    assert result["alias"] is result["a"]


def test_the_seed_decides() -> None:
    weights = {"a": torch.arange(100.0)}
    assert torch.equal(shuffled(weights, 1)["a"], shuffled(weights, 1)["a"])
    assert not torch.equal(shuffled(weights, 1)["a"], shuffled(weights, 2)["a"])
