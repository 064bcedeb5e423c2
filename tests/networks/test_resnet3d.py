from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from nnunetv2_pgl.networks import ResNet50Encoder


@pytest.fixture(scope="module")
def encoder() -> ResNet50Encoder:
    return ResNet50Encoder()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_by_hand(encoder: ResNet50Encoder) -> None:
    """The paper's 46.16 M, added up from the definition of a bottleneck ResNet."""
    total = 7**3 * 64 + 2 * 64
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            total += channels * width + 27 * width * width + width * 4 * width + 2 * (width + width + 4 * width)
            if block == 0:
                total += channels * 4 * width + 2 * 4 * width
            channels = 4 * width
    assert count(encoder) == total == 46_155_072


def test_layers_match_torchvision_with_kernels_made_3d(encoder: ResNet50Encoder) -> None:
    """torchvision's 2D ResNet-50, layer by layer: same channels, kernels one axis longer."""
    reference = torchvision.models.resnet50()
    ours = [m for m in encoder.modules() if isinstance(m, nn.Conv3d)]
    theirs = [m for m in reference.modules() if isinstance(m, nn.Conv2d)]
    # torchvision registers a block's projection last, and so do we.
    assert len(ours) == len(theirs) == 53
    for own, other in zip(ours, theirs, strict=True):
        assert (own.in_channels, own.out_channels) == (
            1 if other.in_channels == 3 else other.in_channels,
            other.out_channels,
        )
        assert own.kernel_size == (*other.kernel_size, other.kernel_size[0])
    norms = [m.num_features for m in encoder.modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms == [m.num_features for m in reference.modules() if isinstance(m, nn.BatchNorm2d)]


def test_plain_padding_computes_what_torchvision_computes() -> None:
    """With 2D weights in the middle slice and stride 1 in z, each slice is torchvision's ResNet-50 of stride 16."""
    torch.manual_seed(0)
    reference = torchvision.models.resnet50().eval()
    reference.layer4[0].conv2.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    ours = ResNet50Encoder(3, strides=(1, 16, 16), centred=False).eval()
    weights = {}
    state = reference.state_dict()
    for own, other in zip(ours.state_dict(), (k for k in state if not k.startswith("fc")), strict=True):
        value = state[other]
        if value.ndim == 4:
            lifted = torch.zeros(*value.shape[:2], value.shape[-1], *value.shape[2:])
            lifted[:, :, value.shape[-1] // 2] = value
            value = lifted
        weights[own] = value
    ours.load_state_dict(weights)
    ours.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))  # torchvision pools in plane only
    image = torch.rand(1, 3, 2, 64, 48)
    with torch.no_grad():
        deepest = ours(image)[-1]
        for z in range(2):
            x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(image[:, :, z]))))
            expected = reference.layer4(reference.layer3(reference.layer2(reference.layer1(x))))
            torch.testing.assert_close(deepest[:, :, z], expected, rtol=1e-3, atol=1e-4)


def test_shapes_of_the_paper(encoder: ResNet50Encoder) -> None:
    with torch.no_grad():
        shapes = [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 16, 96, 96))]
    assert shapes == [(64, 16, 48, 48), (256, 8, 24, 24), (512, 4, 12, 12), (2048, 2, 6, 6)]
    assert encoder.strides == (8, 16, 16)
    assert encoder.stage_strides == ((1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16))


@pytest.mark.parametrize("strides", [(8, 8, 8), (1, 4, 16), (16, 2, 1)])
@pytest.mark.parametrize("centred", [True, False])
def test_any_stride_with_the_same_weights(
    encoder: ResNet50Encoder, strides: tuple[int, int, int], centred: bool
) -> None:
    other = ResNet50Encoder(strides=strides, centred=centred)
    other.load_state_dict(encoder.state_dict())
    size = (17, 19, 32)
    with torch.no_grad():
        deepest = other(torch.zeros(1, 1, *size))[-1]
    assert tuple(deepest.shape[2:]) == tuple(-(-n // s) for n, s in zip(size, strides, strict=True))


def test_instance_norm_has_as_many_parameters(encoder: ResNet50Encoder) -> None:
    other = ResNet50Encoder(norm="instance")
    assert count(other) == count(encoder)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in other.modules())


@pytest.mark.parametrize(("norm", "strides"), [("layer", (8, 16, 16)), ("batch", (8, 16)), ("batch", (3, 16, 16))])
def test_refuses(norm: str, strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ResNet50Encoder(strides=strides, norm=norm)  # type: ignore[arg-type]


def receptive_field_centre(encoder: ResNet50Encoder, axis: int, cell: int, length: int) -> float:
    """Centroid, in voxels with edges at integers, of what one cell of the deepest map sees along an axis."""
    size = [8, 8, 8]
    size[axis] = length
    image = torch.ones(1, 1, *size, requires_grad=True)
    deepest = encoder(image)[-1]
    index = [0, 0, 0]
    index[axis] = cell
    deepest[0, :, index[0], index[1], index[2]].sum().backward()
    assert image.grad is not None
    profile = image.grad[0, 0].double().sum(dim=[a for a in range(3) if a != axis])
    return float((profile * (torch.arange(length) + 0.5)).sum() / profile.sum())


@pytest.mark.parametrize("strides", [(8, 16, 16), (4, 8, 2)])
@pytest.mark.parametrize("centred", [True, False])
def test_feature_grid_is_where_the_cells_look(strides: tuple[int, int, int], centred: bool) -> None:
    """Measured by receptive-field centroid, with average for max pooling and weights that weigh all inputs alike."""
    encoder = ResNet50Encoder(strides=strides, centred=centred).eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    encoder.pool.forward = lambda x: average_pool(encoder.pool, x)  # type: ignore[method-assign]
    grid = encoder.feature_grid((512, 512, 512))
    assert grid.stride == strides
    for axis in range(3):
        cell = 256 // strides[axis]
        expected = grid.offset[axis] + grid.stride[axis] * cell
        assert receptive_field_centre(encoder, axis, cell, 512) == pytest.approx(expected, abs=0.02)
        if centred and strides[axis] > 1:
            assert grid.offset[axis] == strides[axis] / 2 + 0.5
        else:
            assert grid.offset[axis] == 0.5


def average_pool(pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
    from nnunetv2_pgl.networks.strided import pad_before_stride

    return nn.functional.avg_pool3d(pad_before_stride(x, 1, pool.shifted), 3, pool.stride, pool.padding)
