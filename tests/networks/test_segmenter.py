from __future__ import annotations

import pytest
import torch

from nnunetv2_pgl.networks import PGLSegmenter


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


def test_bfloat16_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    network = PGLSegmenter(1, 2).eval()
    image = torch.randn(1, 1, 16, 48, 48)
    with torch.no_grad():
        exact = network(image)
        network.cpu_bfloat16 = True
        fast = network(image)
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().max() < 0.1 * exact.abs().max()
