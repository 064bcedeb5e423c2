"""Batch norm over the batches of all processes, on CPUs and GPUs.

torch's ``SyncBatchNorm`` is for GPUs alone, and there makes the host wait for the device in every layer, to leave out
processes whose batch is empty. Here all have batches of one size.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

Running: TypeAlias = tuple[Tensor | None, Tensor | None, Any]  # mean, variance, momentum

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name in older versions


class SynchronisedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm whose statistics while training are those of the batches of all processes, equal in size."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalise = NormaliseOnGPU if x.device.type == "cuda" else NormaliseOnCPU
        running = (self.running_mean, self.running_var, self.momentum)
        y: Tensor = normalise.apply(x, self.weight, self.bias, running, self.eps)
        return y


def synchronise_batch_norms(module: nn.Module) -> nn.Module:
    """Makes every ``BatchNorm3d`` inside a module a `SynchronisedBatchNorm3d`, in place; returns the module."""
    for child in module.modules():
        if type(child) is nn.BatchNorm3d:
            child.__class__ = SynchronisedBatchNorm3d
    return module


class NormaliseOnGPU(torch.autograd.Function):
    """Input, weight, bias, running statistics, eps -> output, by the kernels of ``SyncBatchNorm``.

    Gradients of weight and bias are those of this process's batch alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running: Running, eps: float) -> Tensor:
        own = torch.stack(torch.batch_norm_stats(x, eps))
        means, factors = _of_all_processes(own).unbind(dim=1)
        counts = own.new_full((len(means),), x.numel() // x.shape[1])
        mean, factor = torch.batch_norm_gather_stats_with_counts(x, means, factors, *running, eps, counts)
        ctx.save_for_backward(x, weight, mean, factor, counts)
        return torch.batch_norm_elemt(x, weight, bias, mean, factor, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, factor, counts = ctx.saved_tensors
        grad = gradients[0].contiguous(memory_format=_layout(x))
        *own, grad_weight, grad_bias = torch.batch_norm_backward_reduce(grad, x, mean, factor, weight, True, True, True)
        sums = torch.stack(own)
        dist.all_reduce(sums)
        grad_x = torch.batch_norm_backward_elemt(grad, x, mean, factor, weight, sums[0], sums[1], counts.int())
        return grad_x, grad_weight, grad_bias, None, None


class NormaliseOnCPU(torch.autograd.Function):
    """The same on a CPU, which lacks those kernels; other ones of torch do all but one pass over the voxels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running: Running, eps: float) -> Tensor:
        unused = x.new_zeros(2, x.shape[1], dtype=weight.dtype)  # running statistics; their type is that of the results
        own = torch.stack(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
        means, variances = _of_all_processes(own).unbind(dim=1)
        mean, var = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        running_mean, running_var, momentum = running
        if running_mean is not None and running_var is not None and momentum is not None:
            count = len(means) * x.numel() / x.shape[1]
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (count / (count - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        grad = gradients[0].contiguous(memory_format=_layout(x))
        # With constant statistics: grad_x = w r grad, grad_weight = sum of grad (x - mean) r, grad_bias = sum of grad.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True] * 3
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
        return grad_x, grad_weight, grad_bias, None, None


def _of_all_processes(own: Tensor) -> Tensor:
    """(2, C) -> (processes, 2, C)."""
    count = dist.get_world_size()
    gathered = own.new_empty(count * len(own), *own.shape[1:])  # gloo takes no other form
    _all_gather(gathered, own)
    return gathered.unflatten(0, (count, -1))


def _layout(x: Tensor) -> torch.memory_format:
    last = torch.channels_last_3d
    return last if x.ndim == 5 and x.is_contiguous(memory_format=last) else torch.contiguous_format
