"""Losses on aligned maps of features, and what shows whether training is healthy (section 3.4, docs/method.md)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def local_consistency_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over voxels of ``|| p/|p| - t/|t| ||^2 = 2 - 2 cos(p, t)``, norms over channels (eq. 8).

    Args:
        prediction: (B, C, ...).
        target: (B, C, ...), the same places in the same order.
        valid: (B, ...) bool, the voxels that count; by default all. With none the loss is zero.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _require_same_places(prediction, target, valid)
    distance = 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)
    if valid is None:
        return distance.mean()
    return (distance * valid).sum() / valid.sum().clamp(min=1)


def local_contrastive_loss(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy of finding each place among all places of the partner (InfoNCE, van den Oord et al. 2018).

    The logits of a place are the cosines of its prediction with the targets of all places of the same pair, divided by
    the temperature; the same place is the right one. Other pairs of the batch play no part.

    Args:
        prediction: (B, C, ...), any floating type; computed in float32.
        target: The same shape, the same places in the same order.
        valid: (B, ...) bool: places to count, as queries and as candidates; None: all.
        temperature: Positive; smaller ones weigh the most similar places more.

    Returns:
        Mean over the valid places, from 0 on; log(places) for features that are alike everywhere. 0 if none is valid.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _require_same_places(prediction, target, valid)
    queries, candidates = (F.normalize(x.float().flatten(2), dim=1) for x in (prediction, target))
    logits = queries.transpose(1, 2) @ candidates / temperature  # (B, queries, candidates)
    if valid is None:
        return -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean()
    counts = valid.flatten(1)
    logits = logits.masked_fill(~counts.unsqueeze(1), torch.finfo(torch.float32).min)
    losses = -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features over batch and places, mean over channels, times sqrt(channels).

    About 1 for features spread evenly over the sphere, 0 for collapsed ones.
    """
    normalised = F.normalize(features.float(), dim=1).transpose(0, 1).flatten(1)
    return normalised.std(dim=1).mean() * math.sqrt(features.shape[1])


def within_view_share(features: Tensor) -> Tensor:
    """Share of the variance of L2-normalised features that lies between the places of a view, not between views.

    The loss has a solution that `feature_spread` does not see: features that tell scans apart and are the same at every
    place of a scan. Then this is 0.
    """
    normalised = F.normalize(features.float(), dim=1).flatten(2)
    of_views = normalised - normalised.mean(dim=2, keepdim=True)
    of_all = normalised - normalised.mean(dim=(0, 2), keepdim=True)
    return of_views.square().sum() / of_all.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def _require_same_places(prediction: Tensor, target: Tensor, valid: Tensor | None) -> None:
    """Checks (B, C, ...), (B, C, ...) and (B, ...) or None.

    Raises:
        ValueError: The shapes do not fit.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    voxels = (len(prediction), *prediction.shape[2:])
    if valid is not None and valid.shape != voxels:
        raise ValueError(f"valid is {tuple(valid.shape)}, but the voxels are {voxels}")
