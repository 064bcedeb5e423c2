"""The rules keep what a convolution computes; checked by computing it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nnunetv2_pgl.adaptation import adapt, blocks_per_stage, canonical, unaliased, with_axes
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork, ResNet50Encoder
from tests.planned_networks import small_network


def convolved(image: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """As nnU-Net pads: half of the kernel on each side."""
    return F.conv3d(image, weight, stride=stride, padding=[(size - 1) // 2 for size in weight.shape[2:]])


def test_one_channel_to_three_on_an_image_in_all_of_them() -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, 1, 3, 3, 3), torch.randn(1, 1, 5, 6, 7)
    adapted = adapt(weight, torch.Size((4, 3, 3, 3, 3)), is_first=True)
    assert adapted is not None
    assert adapted.how == "repeated over 3 channels and divided by 3"
    torch.testing.assert_close(convolved(image.expand(-1, 3, -1, -1, -1), adapted.weight), convolved(image, weight))


def test_three_channels_to_one_is_the_image_in_all_of_them() -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, 3, 3, 3, 3), torch.randn(1, 1, 5, 6, 7)
    adapted = adapt(weight, torch.Size((4, 1, 3, 3, 3)), is_first=True)
    assert adapted is not None
    torch.testing.assert_close(convolved(image, adapted.weight), convolved(image.expand(-1, 3, -1, -1, -1), weight))


@pytest.mark.parametrize(
    ("there", "images", "how"),
    [
        (1, 1, "unchanged for 1 image channel, zeros for 2 channels of the previous stage"),
        (3, 3, "unchanged for 3 image channels, zeros for 2 channels of the previous stage"),
        (1, 3, "repeated over 3 channels and divided by 3, zeros for 2 channels of the previous stage"),
        (3, 1, "summed over 3 channels, zeros for 2 channels of the previous stage"),
    ],
)
def test_a_cascade_starts_with_the_image_alone(there: int, images: int, how: str) -> None:
    """The same as without a previous stage, whatever that has found."""
    torch.manual_seed(0)
    weight = torch.randn(4, there, 3, 3, 3)
    image, previous = torch.randn(1, 1, 5, 6, 7), torch.randn(1, 2, 5, 6, 7)
    adapted = adapt(weight, torch.Size((4, images + 2, 3, 3, 3)), is_first=True, image_channels=images)
    assert adapted is not None
    assert (adapted.how, adapted.rules) == (how, ("number of input channels",))
    expected = convolved(image.expand(-1, there, -1, -1, -1), weight)
    found = convolved(torch.cat((image.expand(-1, images, -1, -1, -1), previous), dim=1), adapted.weight)
    torch.testing.assert_close(found, expected)


def test_only_image_channels_count() -> None:
    """Two are not three, though the network has as many inputs as the checkpoint; deeper layers see no image."""
    weight, shape = torch.ones(4, 3, 3, 3, 3), torch.Size((4, 3, 3, 3, 3))
    assert adapt(weight, shape, is_first=True, image_channels=2) is None
    deeper = adapt(weight, torch.Size((4, 3, 1, 3, 3)), is_first=False, image_channels=1)
    assert deeper is not None
    assert deeper.rules == ("kernel size",)
    torch.testing.assert_close(deeper.weight, torch.full((4, 3, 1, 3, 3), 3.0))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (1, 1, 3), (3, 1, 1)])
def test_a_larger_kernel_is_the_same_function(kernel: tuple[int, int, int], stride: int) -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, 2, *kernel), torch.randn(1, 2, 5, 6, 7)
    adapted = adapt(weight, torch.Size((4, 2, 3, 3, 3)), is_first=False)
    assert adapted is not None
    assert adapted.weight.shape[2:] == (3, 3, 3)
    torch.testing.assert_close(convolved(image, adapted.weight, stride), convolved(image, weight, stride))


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_smaller_kernel_is_the_same_on_images_constant_along_its_axis(axis: int) -> None:
    """Away from the border, where the larger kernel sees padding."""
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3, 3)
    size = [1, 2, 7, 7, 7]
    size[axis] = 1
    image = torch.randn(size).expand(1, 2, 7, 7, 7)
    shape = list(weight.shape)
    shape[axis] = 1
    adapted = adapt(weight, torch.Size(shape), is_first=False)
    assert adapted is not None
    assert adapted.rules == ("kernel size",)
    expected = convolved(image, weight).narrow(axis, 1, 5)
    torch.testing.assert_close(convolved(image, adapted.weight).narrow(axis, 1, 5), expected)


def test_both_at_once() -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, 1, 1, 3, 3), torch.randn(1, 1, 5, 6, 7)
    adapted = adapt(weight, torch.Size((4, 2, 3, 3, 3)), is_first=True)
    assert adapted is not None
    assert adapted.how == "repeated over 2 channels and divided by 2, kernel 1 x 3 x 3 to 3 x 3 x 3"
    torch.testing.assert_close(convolved(image.expand(-1, 2, -1, -1, -1), adapted.weight), convolved(image, weight))


@pytest.mark.parametrize(
    ("before", "after", "is_first"),
    [
        ((4, 2, 3, 3, 3), (4, 3, 3, 3, 3), True),  # channels without a rule
        ((4, 0, 3, 3, 3), (4, 1, 3, 3, 3), True),  # nothing to sum
        ((4, 1, 3, 3, 3), (4, 2, 3, 3, 3), False),  # not the image's channels
        ((4, 2, 5, 3, 3), (4, 2, 3, 3, 3), False),  # kernels without a rule
        ((4, 2, 3, 3, 3), (8, 2, 3, 3, 3), False),  # width
        ((4, 2, 3, 3), (4, 2, 3, 3, 3), True),  # 2D
        ((4,), (8,), False),
    ],
)
def test_no_rule(before: tuple[int, ...], after: tuple[int, ...], is_first: bool) -> None:
    assert adapt(torch.zeros(before), torch.Size(after), is_first) is None


@pytest.mark.parametrize("name", ["plain", "resenc_m"])
@pytest.mark.parametrize("dropout", [False, True])
def test_canonical_names_are_the_parameters(name: str, dropout: bool) -> None:
    """Keys have the same canonical name if, and only if, they are the same tensor."""
    network = PlannedNetwork.from_preset(name, (8, 16, 16), (3, 1, 1))  # type: ignore[arg-type]
    kwargs = {**network.kwargs, "features_per_stage": [4] * len(network.channels)}
    if dropout:
        kwargs |= {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.1}}
    encoder = PlannedNetwork(network.class_name, kwargs, network.requires_import).build(1, 2).encoder
    state = encoder.state_dict(keep_vars=True)
    by_tensor: dict[int, set[str]] = {}
    for key, value in state.items():
        by_tensor.setdefault(id(value), set()).add(canonical(key))
    assert all(len(names) == 1 for names in by_tensor.values())
    assert len(set().union(*by_tensor.values())) == len(by_tensor) < len(state)
    assert {key for key, _ in encoder.named_parameters()} == unaliased(state).keys()


def test_two_names_with_two_values_are_refused() -> None:
    weights = {"stem.convs.0.conv.weight": torch.zeros(2), "stem.convs.0.all_modules.0.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"stem\.convs\.0\.conv\.weight and .* are one parameter"):
        unaliased(weights)


def test_blocks_of_stages() -> None:
    for name, expected in (("resenc_m", {0: 1, 1: 3, 2: 4}), ("plain", {0: 2, 1: 2, 2: 2})):
        network = PlannedNetwork.from_preset(name, (16, 16, 16), (1, 1, 1))  # type: ignore[arg-type]
        with torch.device("meta"):
            assert blocks_per_stage(network.build(1, 2).encoder.state_dict()) == expected
    assert blocks_per_stage(["stage1.0.conv1.weight"]) == {}


def test_kernels_of_the_resnet_turn_with_the_image() -> None:
    """In the plane, where its layers stride alike."""
    size: dict[str, Any] = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
    encoder, turned = (ResNet50Encoder(1, s, "instance", **size).eval() for s in ((4, 8, 16), (4, 16, 8)))
    require_turned(encoder, turned, (0, 2, 1))


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 0, 1)])
def test_kernels_of_nnunet_s_encoders_turn_with_the_image(axes: tuple[int, int, int]) -> None:
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 1]], [[1, 3, 3], [3, 3, 3], [3, 3, 1]]
    encoder, turned = (
        PlannedEncoder(
            small_network(
                "resenc",
                strides=[[stage[axis] for axis in order] for stage in strides],
                kernel_sizes=[[stage[axis] for axis in order] for stage in kernels],
            )
        ).eval()
        for order in ((0, 1, 2), axes)
    )
    require_turned(encoder, turned, axes)


def require_turned(encoder: Any, turned: Any, axes: tuple[int, int, int]) -> None:
    """The same features of a turned image, but turned."""
    image = torch.randn(1, 1, 32, 48, 64, generator=torch.Generator().manual_seed(0))
    turned.load_state_dict(with_axes(encoder.state_dict(), axes))
    order = (0, 1, *(2 + axis for axis in axes))
    with torch.no_grad():
        for feature, other in zip(encoder(image), turned(image.permute(order)), strict=True):
            torch.testing.assert_close(other, feature.permute(order), rtol=1e-3, atol=1e-3)
