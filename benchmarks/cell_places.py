"""Where the cells of an encoder's maps sit, measured, against where `feature_grid` says that they do.

python -m benchmarks.cell_places                             # nnU-Net's encoders and the ResNet-50, untrained
python -m benchmarks.cell_places CHECKPOINT [CHECKPOINT ...]     # trained ones

A cell looks where the gradient of its features is: its place is the centroid of the squared gradient, over smooth
random views and random directions in feature space. Statistics of norms are held constant, else every cell would look
a little at the whole view, and so towards its middle.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_pgl.checkpoint import load_encoder_network
from nnunetv2_pgl.networks import Encoder, PlannedEncoder, PlannedNetwork, ResNet50Encoder

_VIEW = (48, 48, 48)
_UNTRAINED: tuple[str, ...] = ("plain", "resenc_m")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measures where the cells of encoders sit.")
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="of pgl_pretrain (default: untrained)")
    parser.add_argument("--repeats", type=int, default=8, metavar="N", help="pairs of views (default: 8)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    encoders = {path: _trained(path) for path in arguments.checkpoints} or _untrained()
    print("Place of cell 0 along z, y, x in voxels, edges at integers\n")
    print(f"{'map':>4} {'stride':>12} {'assumed':>22} {'measured':>22} {'off, in cells':>22}")
    for name, encoder in encoders.items():
        print(name, flush=True)
        for stage, measured in enumerate(measure_offsets(encoder, arguments.repeats)):
            print(_line(encoder, stage, measured), flush=True)


def _line(encoder: Encoder, stage: int, measured: Tensor) -> str:
    grid = encoder.feature_grid(_VIEW, stage)
    off = [(float(m) - a) / s for m, a, s in zip(measured, grid.offset, grid.stride, strict=True)]
    columns = (_numbers(grid.offset, 2), _numbers(measured, 2), _numbers(off, 3))
    return f"{stage:>4} {_numbers(grid.stride, 0):>12} " + " ".join(f"{column:>22}" for column in columns)


def measure_offsets(encoder: Encoder, repeats: int) -> list[Tensor]:
    """Place of cell 0 of every map along each axis in voxels, by the two cells nearest to the middle of the map.

    The border cuts what a cell sees, more on the side that is nearer. The two cells lose alike, each on its side.
    """
    sums = [torch.zeros(3) for _ in encoder.stage_strides]
    for repeat in range(2 * repeats):
        view = _smooth_noise().requires_grad_()
        features = encoder(view)
        for stage, map_ in enumerate(features):
            cell = [(n - repeat % 2) // 2 for n in map_.shape[2:]]
            value = map_[0, :, cell[0], cell[1], cell[2]]
            (gradient,) = torch.autograd.grad((value * torch.randn_like(value)).sum(), view, retain_graph=True)
            first = torch.tensor(cell) * torch.tensor(encoder.feature_grid(_VIEW, stage).stride)
            sums[stage] += centroid(gradient[0, 0] ** 2) - first
    return [total / (2 * repeats) for total in sums]


def centroid(weights: Tensor) -> Tensor:
    """Centre of mass of (z, y, x) weights in voxels, edges at integers."""
    found = []
    for axis in range(3):
        profile = weights.sum(dim=[a for a in range(3) if a != axis])
        found.append((profile * (torch.arange(len(profile)) + 0.5)).sum() / profile.sum())
    return torch.stack(found)


def _smooth_noise() -> Tensor:
    noise = functional.avg_pool3d(torch.randn(1, 1, *_VIEW), 5, stride=1, padding=2, count_include_pad=False)
    return (noise - noise.mean()) / noise.std()


def _untrained() -> dict[str, Encoder]:
    planned = {
        f"{name}, untrained": _measurable(PlannedEncoder(PlannedNetwork.from_preset(name, _VIEW, (1, 1, 1))))
        for name in _UNTRAINED
    }
    return {**planned, "resnet50, untrained": _measurable(ResNet50Encoder(strides=(8, 16, 16), norm="instance"))}


def _trained(path: str) -> Encoder:
    encoder, _ = load_encoder_network(path)
    return _measurable(encoder)


class _ConstantStatistics(nn.Module):
    """An instance norm whose mean and variance are no functions of its input."""

    def __init__(self, norm: nn.InstanceNorm3d):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        axes = (2, 3, 4)
        mean, variance = x.mean(axes, keepdim=True).detach(), x.var(axes, keepdim=True, correction=0).detach()
        normalised = (x - mean) * (variance + self.norm.eps).rsqrt()
        if not self.norm.affine:
            return normalised
        shape = (1, -1, 1, 1, 1)
        return normalised * self.norm.weight.view(shape) + self.norm.bias.view(shape)


def _measurable(encoder: Encoder) -> Encoder:
    """In evaluation mode, instance norms with constant statistics."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, _ConstantStatistics(child))
    return encoder.eval()


def _numbers(values: Any, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    main()
