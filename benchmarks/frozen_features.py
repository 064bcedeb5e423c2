"""How well frozen features predict labels, from scan to scan: nearest neighbours and a linear probe, by R2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MIN_SCANS = 3
_FOLDS = 5
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of standardised features
_CHUNK = 2048


def neighbour_estimates(features: Tensor, labels: Tensor, scans: Tensor, neighbours: int) -> Tensor:
    """Label fractions of each cell by those of the cells of other scans that are most alike.

    Args:
        features: (N, C), compared by the cosine less their mean.
        labels: (N, K).
        scans: (N,), the scan that each cell is from.
        neighbours: How many are averaged.

    Returns:
        (N, K).

    Raises:
        ValueError: A cell has fewer than so many of other scans.
    """
    _, counts = scans.unique(return_counts=True)
    if len(scans) - int(counts.max()) < neighbours:
        raise ValueError(f"{neighbours} neighbours, but too few cells of other scans: measure on more scans")
    directions = F.normalize(features - features.mean(dim=0), dim=1)
    estimates = []
    for part, own in zip(directions.split(_CHUNK), scans.split(_CHUNK), strict=True):
        alike = part @ directions.T
        alike.masked_fill_(own[:, None] == scans[None], -2.0)
        estimates.append(labels[alike.topk(neighbours, dim=1).indices].mean(dim=1))
    return torch.cat(estimates)


def probe_estimates(features: Tensor, labels: Tensor, scans: Tensor) -> Tensor:
    """Label fractions of each cell by ridge regression on the cells of other scans (five folds of the scans).

    The penalty is chosen inside each fold's training scans, by a fifth of these.

    Args:
        features: (N, C).
        labels: (N, K).
        scans: (N,).

    Returns:
        (N, K).

    Raises:
        ValueError: There are fewer than three scans: one to estimate, one to fit, one to choose the penalty.
    """
    names = scans.unique()
    if len(names) < MIN_SCANS:
        raise ValueError(f"a probe needs cells of at least {MIN_SCANS} scans, got {len(names)}")
    estimates = torch.zeros_like(labels)
    for fold in range(min(_FOLDS, len(names))):
        tested = torch.isin(scans, names[fold::_FOLDS])
        others = [name for number, name in enumerate(names.tolist()) if number % _FOLDS != fold]
        tuning = torch.isin(scans, torch.tensor(others[::_FOLDS])) & ~tested
        fitting = ~tested & ~tuning
        tried = _ridge(features[fitting], labels[fitting], features[tuning], _PENALTIES)
        best = min(range(len(_PENALTIES)), key=lambda i: float((tried[i] - labels[tuning]).square().sum()))
        (estimates[tested],) = _ridge(features[~tested], labels[~tested], features[tested], _PENALTIES[best : best + 1])
    return estimates


def _ridge(features: Tensor, labels: Tensor, others: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """Estimates of ``others`` for each penalty, from standardised features."""
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    known, asked = (features - mean) / spread, (others - mean) / spread
    centre = labels.mean(dim=0)
    covariance = (known.T @ known / len(known)).double()
    with_labels = (known.T @ (labels - centre) / len(known)).double()
    estimates = []
    for penalty in penalties:  # solving for each is a fraction of the time of one eigendecomposition
        factor = torch.linalg.cholesky(covariance + penalty * torch.eye(len(covariance), dtype=covariance.dtype))
        weights = torch.cholesky_solve(with_labels, factor).to(asked.dtype)
        estimates.append(asked @ weights + centre)
    return estimates


def r_squared(estimates: Tensor, labels: Tensor) -> list[float | None]:
    """Explained share of the variance of each label, (N, K) -> K; None for a label that no cell or every cell has."""
    errors = (estimates - labels).square().sum(dim=0)
    spread = (labels - labels.mean(dim=0)).square().sum(dim=0)
    return [1 - float(e / s) if float(s) > 0 else None for e, s in zip(errors, spread, strict=True)]
