"""Linear sampling along one axis as a small matrix: what rendering and alignment are both made of."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_sampling_matrix(positions: Tensor, cells: int) -> Tensor:
    """Weights that interpolate linearly between cells, with clamping beyond the outermost centres.

    Args:
        positions: Where to sample, in cell indices (0 is the centre of the first cell), (..., n).
        cells: Number of cells m along the axis.

    Returns:
        (..., n, m); each row has at most two non-zero weights and sums to one.
    """
    clamped = positions.clamp(0, cells - 1)
    index = torch.arange(cells, dtype=positions.dtype, device=positions.device)
    return (1 - (clamped.unsqueeze(-1) - index).abs()).clamp(min=0)


def bin_centres(start: Tensor, size: Tensor, bins: int) -> Tensor:
    """Centres of ``bins`` equal bins of the interval [start, start + size) (edges at integers), (..., bins)."""
    steps = (torch.arange(bins, dtype=start.dtype, device=start.device) + 0.5) / bins
    return start.unsqueeze(-1) + size.unsqueeze(-1) * steps


def apply_per_axis(volumes: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Applies one sampling matrix per axis to each sample of a batch.

    Args:
        volumes: (B, C, D, H, W).
        matrices: For z, y and x, (B, n, D), (B, m, H) and (B, k, W).

    Returns:
        (B, C, n, m, k) in the dtype of ``volumes``.
    """
    in_z, in_y, in_x = (matrix.to(volumes.dtype).unsqueeze(1) for matrix in matrices)
    b, c, d, h, w = volumes.shape
    out = volumes.reshape(b, c, d * h, w) @ in_x.transpose(-1, -2)
    out = in_y.unsqueeze(2) @ out.reshape(b, c, d, h, -1)
    out = in_z @ out.reshape(b, c, d, -1)
    return out.reshape(b, c, in_z.shape[-2], in_y.shape[-2], in_x.shape[-2])
