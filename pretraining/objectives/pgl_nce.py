"""PGL with negatives: the same place of the partner shall be nearer than its other places (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from pretraining.objectives.pgl import PGL, require_same_places


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
    require_same_places(prediction, target, valid)
    queries, candidates = (F.normalize(x.float().flatten(2), dim=1) for x in (prediction, target))
    logits = queries.transpose(1, 2) @ candidates / temperature  # (B, queries, candidates)
    if valid is None:
        return -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean()
    counts = valid.flatten(1)
    logits = logits.masked_fill(~counts.unsqueeze(1), torch.finfo(torch.float32).min)
    losses = -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


class PGLNCE(PGL):
    """PGL's networks and aligner with `local_contrastive_loss` in the place of the local consistency loss.

    What is alike at every place of a view, or tells only where a place lies in the view, does not lower it.

    Args:
        encoder, view_size, hidden_channels, out_channels, levels, interpolated_only, precision: See `PGL`.
        temperature: See `local_contrastive_loss`.
    """

    def __init__(
        self,
        encoder: Encoder,
        view_size: Sequence[int],
        hidden_channels: int = 4096,
        out_channels: int = 256,
        levels: Sequence[int] = (-1,),
        interpolated_only: bool = False,
        precision: torch.dtype | None = None,
        temperature: float = 0.1,
    ):
        super().__init__(encoder, view_size, hidden_channels, out_channels, levels, interpolated_only, precision)
        self.temperature = temperature

    def compare(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Loss of one direction: (B, C, d, h, w), the same, and (B, d, h, w) bool -> a scalar."""
        return local_contrastive_loss(prediction, target, valid, self.temperature)
