"""Batch norm over the batches of all processes on a CPU, where torch has none (its ``SyncBatchNorm`` is CUDA's)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SynchronisedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm whose statistics while training are those of the batches of all processes, equal in size."""

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm3d) -> SynchronisedBatchNorm3d:
        """The same norm, sharing parameters and running statistics."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        y, mean, var = _Normalise.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, var, dist.get_world_size() * x.numel() / x.shape[1])
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: float) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)


def synchronise_batch_norms(module: nn.Module) -> nn.Module:
    """Replaces every ``BatchNorm3d`` inside a module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm3d:
            setattr(module, name, SynchronisedBatchNorm3d.from_batch_norm(child))
        else:
            synchronise_batch_norms(child)
    return module


class _Normalise(torch.autograd.Function):
    """Joined mean and variance, and the output; torch's own kernels do all that goes over the voxels but one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _joined_statistics(x, weight.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        y = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        # With constant statistics: grad_x = w r grad, grad_weight = sum of grad (x - mean) r, grad_bias = sum of grad.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(memory_format=_layout(x)), x, weight, mean, var, None, None, False, ctx.eps, [True] * 3
        )
        # They are not: grad_x lacks -w r (mean of grad + (x - mean) r * mean of grad (x - mean) r), means over all.
        sums = torch.stack((grad_weight, grad_bias))
        dist.all_reduce(sums)
        with_x, alone = sums * (x.shape[1] / (x.numel() * dist.get_world_size()))
        r = (var + ctx.eps).rsqrt()
        slope = weight * r.square() * with_x
        offset = weight * r * alone - slope * mean
        # slope * x + offset by the same fast kernel; x * slope mixes types and takes ten times as long in bfloat16.
        zeros, ones = torch.zeros_like(mean), torch.ones_like(var)
        grad_x -= torch.native_batch_norm(x, slope, offset, zeros, ones, False, 0.0, 0.0)[0]
        return grad_x, grad_weight, grad_bias, None


def _joined_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of all processes' batches."""
    unused = x.new_zeros(2, x.shape[1], dtype=dtype)  # running statistics; their type is that of the results
    own = torch.stack(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    means, variances = torch.stack(gathered, dim=1)
    return means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)


def _layout(x: Tensor) -> torch.memory_format:
    last = torch.channels_last_3d
    return last if x.ndim == 5 and x.is_contiguous(memory_format=last) else torch.contiguous_format
