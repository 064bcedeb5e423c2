"""Neighbours and probe against numpy: a loop over the cells, and ridge regression solved in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.frozen_features import neighbour_estimates, probe_estimates, r_squared

SCANS, CELLS = 7, 40


@pytest.fixture(scope="module")
def cells() -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels that follow from them but for noise, and scans, in no order."""
    rng = np.random.default_rng(0)
    features = rng.normal(2, 1, (SCANS * CELLS, 6)) * [1, 5, 0.1, 1, 1, 1]
    labels = features[:, :3] @ rng.normal(0, 0.3, (3, 4)) + rng.normal(0, 0.2, (SCANS * CELLS, 4))
    scans = rng.permutation(np.repeat(np.arange(SCANS) * 3 + 1, CELLS))
    return torch.from_numpy(features).float(), torch.from_numpy(labels).float(), torch.from_numpy(scans)


def centred_cosines(features: NDArray[Any]) -> NDArray[Any]:
    less_mean = features - features.mean(axis=0)
    directions = less_mean / np.linalg.norm(less_mean, axis=1, keepdims=True)
    cosines: NDArray[Any] = directions @ directions.T
    return cosines


@pytest.mark.parametrize("neighbours", [1, 5, 20])
@pytest.mark.parametrize("chunk", [2048, 33])
def test_neighbours_one_by_one(
    cells: tuple[Tensor, Tensor, Tensor], neighbours: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.frozen_features._CHUNK", chunk)
    features, labels, scans = (tensor.numpy() for tensor in cells)
    cosines = centred_cosines(features.astype(np.float64))
    expected = []
    for cell, scan in enumerate(scans):
        others = np.flatnonzero(scans != scan)
        best = others[np.argsort(-cosines[cell, others])[:neighbours]]
        expected.append(labels[best].mean(axis=0))
    np.testing.assert_allclose(neighbour_estimates(*cells, neighbours), np.stack(expected), atol=1e-5)


def ridge(known: NDArray[Any], labels: NDArray[Any], asked: NDArray[Any], penalty: float) -> NDArray[Any]:
    """Least squares with rows added that pull the weights to zero."""
    mean, spread = known.mean(axis=0), known.std(axis=0, ddof=1)
    rows = np.concatenate([(known - mean) / spread, np.sqrt(penalty * len(known)) * np.eye(known.shape[1])])
    targets = np.concatenate([labels - labels.mean(axis=0), np.zeros((known.shape[1], labels.shape[1]))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    estimates: NDArray[Any] = (asked - mean) / spread @ weights + labels.mean(axis=0)
    return estimates


def test_probe_in_one_piece(cells: tuple[Tensor, Tensor, Tensor]) -> None:
    features, labels, scans = (tensor.numpy().astype(np.float64) for tensor in cells)
    names = np.unique(scans)
    expected = np.zeros_like(labels)
    for fold in range(5):
        tested = np.isin(scans, [name for n, name in enumerate(names) if n % 5 == fold])
        rest = [name for n, name in enumerate(names) if n % 5 != fold]
        tuning = np.isin(scans, [name for n, name in enumerate(rest) if n % 5 == 0])
        fitting = ~tested & ~tuning
        errors = {}
        for penalty in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
            tried = ridge(features[fitting], labels[fitting], features[tuning], penalty)
            errors[penalty] = ((tried - labels[tuning]) ** 2).sum()
        best = min(errors, key=lambda penalty: errors[penalty])
        expected[tested] = ridge(features[~tested], labels[~tested], features[tested], best)
    np.testing.assert_allclose(probe_estimates(*cells), expected, atol=1e-4)


def test_the_penalty_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """More features than cells: without a penalty that is large enough the probe learns the noise."""
    rng = np.random.default_rng(1)
    features, labels = torch.from_numpy(rng.normal(size=(60, 100))).float(), torch.from_numpy(rng.normal(size=(60, 1)))
    scans = torch.arange(60) // 6
    chosen = float((probe_estimates(features, labels.float(), scans) - labels).square().mean())
    monkeypatch.setattr("benchmarks.frozen_features._PENALTIES", (1e-3,))
    smallest = float((probe_estimates(features, labels.float(), scans) - labels).square().mean())
    assert chosen < 0.7 * smallest


def test_what_tells_the_scan_alone_does_not_help() -> None:
    """Labels and features are each scan's own: within a scan they are the same, which no cell of another scan knows."""
    rng = np.random.default_rng(0)
    scans = torch.arange(10).repeat_interleave(30)
    features = torch.from_numpy(rng.normal(size=(10, 8))).float()[scans] + 0.01 * torch.randn(300, 8)
    labels = torch.from_numpy(rng.uniform(size=(10, 2))).float()[scans]
    for estimates in (neighbour_estimates(features, labels, scans, 5), probe_estimates(features, labels, scans)):
        assert all(share is not None and share < 0.1 for share in r_squared(estimates, labels))


def test_one_feature_that_is_the_same_everywhere() -> None:
    """A channel that a ReLU has switched off."""
    scans = torch.arange(4).repeat_interleave(10)
    features = torch.stack((torch.linspace(0, 1, 10).repeat(4), torch.full((40,), 3.3)), dim=1)
    (share,) = r_squared(probe_estimates(features, features[:, :1], scans), features[:, :1])
    assert share == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scans", [3, 4, 5])
def test_few_scans_are_enough(scans: int) -> None:
    of = torch.arange(scans).repeat_interleave(20)
    features = torch.rand(20 * scans, 2, generator=torch.Generator().manual_seed(0))
    (share, _) = r_squared(probe_estimates(features, features, of), features)
    assert share == pytest.approx(1, abs=1e-3)


def test_too_few_scans() -> None:
    """Never cells of the same scan instead."""
    features, labels, scans = torch.rand(20, 3), torch.rand(20, 2), torch.tensor([0] * 17 + [1] * 3)
    with pytest.raises(ValueError, match="too few cells of other scans"):
        neighbour_estimates(features, labels, scans, 5)
    with pytest.raises(ValueError, match="at least 3 scans, got 2"):
        probe_estimates(features, labels, scans)


def test_r_squared_by_hand() -> None:
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    estimates = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert r_squared(estimates, labels) == [0.5, None, None]
    assert r_squared(labels[:, :1].mean().expand(3, 1), labels[:, :1]) == [0]
    assert r_squared(2 - labels[:, :1], labels[:, :1]) == [-3]
