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


def linear_neighbours(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two cells between whose centres each position lies, and their weights: the non-zeros of the matrix above.

    Args:
        positions: In cell indices, within 0 .. cells - 1, (..., n). At a whole number both neighbours are that cell.
        dtype: Of the weights.

    Returns:
        Cells, int64, and weights that sum to one, (..., n, 2) each.
    """
    lower = positions.floor()
    beyond = (positions - lower).to(dtype)
    cells = torch.stack((lower, positions.ceil()), dim=-1).to(torch.int64)
    return cells, torch.stack((1 - beyond, beyond), dim=-1)


def row_neighbours(in_z: Tensor, in_y: Tensor, heights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The four rows (along x) of a volume between which each row of a view lies, and their weights.

    Args:
        in_z: Where to sample each volume along z, in its cell indices, (B, n).
        in_y: Along y, (B, m).
        heights: Cells of each volume along y, (B,).
        dtype: Of the weights.

    Returns:
        Indices into the D * H rows of each volume, and weights that sum to one, (B, n * m, 4) each.
    """
    z, weights_z = linear_neighbours(in_z, dtype)
    y, weights_y = linear_neighbours(in_y, dtype)
    first = z * heights.to(torch.int64).view(-1, 1, 1)
    rows = first.to(torch.int32)[:, :, None, :, None] + y.to(torch.int32)[:, None, :, None, :]
    weights = weights_z[:, :, None, :, None] * weights_y[:, None, :, None, :]
    return rows.flatten(3).flatten(1, 2), weights.flatten(3).flatten(1, 2)


def apply_per_axis(volumes: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Applies one sampling matrix per axis to each sample of a batch.

    Args:
        volumes: (B, C, D, H, W).
        matrices: For z, y and x, (B, n, D), (B, m, H) and (B, k, W).

    Returns:
        (B, C, n, m, k) in the dtype of ``volumes``; of several channels, these are last in memory.
    """
    batch, channels = volumes.shape[:2]
    out = volumes.reshape(batch, -1)
    for matrix in reversed(matrices):  # the last axis of ``out`` becomes its first: one product per sample, no copies
        out = torch.bmm(matrix.to(out.dtype), out.view(batch, -1, matrix.shape[2]).transpose(1, 2)).flatten(1)
    out = out.view(batch, *(matrix.shape[1] for matrix in matrices), channels)
    return out.movedim(4, 1) if channels > 1 else out.view(batch, 1, *out.shape[1:4])
