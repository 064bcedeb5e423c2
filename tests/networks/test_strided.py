from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from nnunetv2_pgl.networks.strided import StridedConv, StridedMaxPool, fold_stride


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size"),
    [
        (1, 7, (1, 2, 2), ((3, 3), (3, 3), (3, 3)), (16, 32, 32)),
        (1, 7, (2, 2, 2), ((2, 4), (3, 3), (2, 4)), (17, 33, 30)),
        (2, 7, (1, 2, 2), ((3, 3), (2, 4), (2, 4)), (9, 31, 20)),
        (3, 3, (1, 1, 2), ((1, 1), (1, 1), (0, 2)), (4, 5, 7)),
        (1, 5, (4, 2, 1), ((2, 2), (2, 2), (2, 2)), (9, 6, 3)),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_folded_is_the_plain_convolution(channels, kernel, stride, padding, size, memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weight = torch.randn(5, channels, kernel, kernel, kernel, dtype=torch.float64)
    weight = weight.to(memory_format=memory_format).requires_grad_()
    pads = [side for sides in reversed(padding) for side in sides]
    plain = F.conv3d(F.pad(x, pads), weight, stride=stride)
    image, its_kernel = fold_stride(x, weight, stride, padding)
    assert image.is_contiguous(memory_format=memory_format)
    assert its_kernel.is_contiguous(memory_format=memory_format)
    folded = F.conv3d(image, its_kernel)
    torch.testing.assert_close(folded, plain)
    direction = torch.randn_like(plain)
    (of_plain,) = torch.autograd.grad(plain, weight, direction)
    (of_folded,) = torch.autograd.grad(folded, weight, direction)
    torch.testing.assert_close(of_folded, of_plain)


@pytest.mark.parametrize("shifted", [(False, False, False), (False, True, True)])
def test_half_precision_folds_and_stays_within_its_rounding(shifted: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    conv = StridedConv(1, 8, 7, (1, 2, 2), shifted)
    x = torch.randn(2, 1, 8, 21, 24)
    exact = conv.double()(x.double())
    conv.float()
    with torch.autocast("cpu", torch.bfloat16):
        folded = conv(x)
        plain = nn.Conv3d.forward(conv, x) if not any(shifted) else None
    assert conv.folds
    assert folded.dtype == torch.bfloat16
    torch.testing.assert_close(folded.double(), exact, atol=0.02, rtol=0.01)
    if plain is not None:
        torch.testing.assert_close(folded.float(), plain.float(), atol=0.01, rtol=0.01)


def test_only_convolutions_of_few_channels_fold() -> None:
    none = (False, False, False)
    assert StridedConv(1, 64, 7, (1, 2, 2), none).folds
    assert StridedConv(2, 64, 7, (1, 2, 2), none).folds
    assert not StridedConv(1, 64, 7, (1, 1, 1), none).folds
    assert not StridedConv(64, 64, 3, (2, 2, 2), none).folds


@pytest.mark.parametrize("shifted", [(False, False, False), (True, False, True)])
def test_pooling_keeps_half_precision_and_takes_maxima(shifted: tuple[bool, bool, bool]) -> None:
    x = torch.randn(2, 3, 5, 8, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = StridedMaxPool((2, 2, 1), shifted)(x)
    before = [1 - int(shift) for shift in shifted]
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in pooled.shape[2:])).tolist():
        starts = [i * s - p for i, s, p in zip(cell, (2, 2, 1), before, strict=True)]
        z, y, x_range = (slice(max(start, 0), start + 3) for start in starts)
        largest = x[:, :, z, y, x_range].amax(dim=(2, 3, 4))
        torch.testing.assert_close(pooled[:, :, cell[0], cell[1], cell[2]], largest, rtol=0, atol=0)
