from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.networks.aspp import DepthwiseConv
from nnunetv2_pgl.networks.segmenter import upsample
from tests.precision import needs_bfloat16, note_types

CHANNELS_LAST = torch.channels_last_3d


def test_parameters_of_the_paper() -> None:
    network = PGLSegmenter(1, 2)
    total = sum(p.numel() for p in network.parameters())
    encoder = sum(p.numel() for p in network.encoder.parameters())
    assert encoder == 46_155_072
    assert total - encoder == pytest.approx(2.38e6, rel=0.01)
    assert total == pytest.approx(48.54e6, abs=0.005e6)


def test_aspp_has_the_branches_of_the_paper() -> None:
    aspp = PGLSegmenter(1, 2).aspp
    convolutions = [m for m in aspp.modules() if isinstance(m, torch.nn.Conv3d)]
    dilations = [m.dilation[0] for m in convolutions if m.groups == 2048]
    assert dilations == [2, 4, 8]
    assert sum(m.groups == 1 for m in convolutions) - len(dilations) == 3  # without the pointwise parts of SepConv


@pytest.mark.parametrize("size", [(16, 96, 96), (40, 56, 40), (17, 33, 29), (1, 5, 7)])
@pytest.mark.parametrize("strides", [(8, 16, 16), (8, 8, 8), (1, 4, 8)])
def test_output_has_the_size_of_the_input(size: tuple[int, int, int], strides: tuple[int, int, int]) -> None:
    network = PGLSegmenter(2, 3, strides=strides).eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    assert logits.dtype == torch.float32


def test_batch_of_one_trains_and_every_parameter_gets_a_gradient() -> None:
    """DDP in nnU-Net does not look for unused parameters."""
    network = PGLSegmenter(1, 3)
    network(torch.randn(1, 1, 16, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_bfloat16_is_of_the_convolutions_and_not_of_the_logits() -> None:
    network = PGLSegmenter(1, 2, cpu_bfloat16=True).eval()
    types = note_types(network)
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 16, 32, 32))
    assert types == {torch.bfloat16}
    assert logits.dtype == torch.float32


@needs_bfloat16
def test_bfloat16_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    network = PGLSegmenter(1, 2).eval()
    image = torch.randn(1, 1, 16, 48, 48)
    with torch.no_grad():
        exact = network(image)
        network.cpu_bfloat16 = True
        fast = network(image)
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().max() < 0.1 * exact.abs().max()


def with_gradients(y: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A result and the gradients that the same errors give its inputs."""
    errors = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return (y.detach(), *torch.autograd.grad(y, inputs, errors))


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(6, 6, 6), (3, 6, 6), (8, 12, 10), (9, 7, 17), (1, 2, 5), (2, 1, 9), (1, 1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_depthwise_is_the_plain_convolution(
    dilation: int, size: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    """Against PyTorch's dilated, padded convolution: float32 goes through oneDNN's kernels, float64 does not."""
    torch.manual_seed(0)
    conv = DepthwiseConv(32, dilation).to(dtype)
    x = torch.randn(3, 32, *size, dtype=dtype).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    ours = with_gradients(conv(x), x, conv.weight)
    plain = with_gradients(F.conv3d(x, conv.weight, None, 1, dilation, dilation, 32), x, conv.weight)
    for own, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * float(other.abs().max() + 1))


@needs_bfloat16
@pytest.mark.parametrize(("size", "dilation"), [((6, 6, 6), 2), ((3, 7, 5), 4), ((5, 12, 10), 1), ((4, 6, 6), 8)])
def test_depthwise_in_bfloat16_is_as_exact_as_bfloat16(size: tuple[int, int, int], dilation: int) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(32, dilation)
    x = torch.randn(2, 32, *size).bfloat16().float().contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x.bfloat16())
    assert y.dtype == torch.bfloat16
    fast = with_gradients(y.float(), x, conv.weight)
    plain = with_gradients(F.conv3d(x, conv.weight, None, 1, dilation, dilation, 32), x, conv.weight)
    for own, other in zip(fast, plain, strict=True):
        assert (own - other).norm() < 2**-7 * other.norm()


def test_segmenter_is_the_same_with_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and all gradients, float64, on a size that no stride divides."""
    torch.manual_seed(0)
    network = PGLSegmenter(1, 2).double()
    image = torch.randn(2, 1, 17, 40, 35, dtype=torch.float64)
    names, parameters = zip(*network.named_parameters(), strict=True)
    ours = with_gradients(network(image), *parameters)
    monkeypatch.setattr(DepthwiseConv, "forward", torch.nn.Conv3d.forward)
    plain = with_gradients(network(image), *parameters)
    for name, own, other in zip(("logits", *names), ours, plain, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize("size", [(5, 14, 10), (5, 13, 9), (10, 14, 10), (9, 7, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_upsampling_is_trilinear(size: tuple[int, int, int], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, 5, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    ours = upsample(logits, size)
    assert ours.is_contiguous()
    plain = F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
    for own, other in zip(with_gradients(ours, logits), with_gradients(plain, logits), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
