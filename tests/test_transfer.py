"""Encoders of nnU-Net's networks from checkpoints of other sizes; shares and features are computed here by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.networks import ResNet50Encoder
from nnunetv2_pgl.transfer import load_encoder
from tests.planned_networks import small_network


def encoder_of(*arguments: Any, in_channels: int = 1, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    encoder = small_network(*arguments, **changes).build(in_channels, 2).encoder
    for parameter in encoder.parameters():  # nnU-Net's norms and biases begin as ones and zeros
        torch.nn.init.normal_(parameter)
    return encoder


def elements(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_aliases(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in encoder.state_dict().items() if ".all_modules." not in key}


@pytest.mark.parametrize("kind", ["plain", "resenc"])
@pytest.mark.parametrize("names", ["both", "first", "aliases"])
def test_the_same_network_gives_the_same_features(kind: str, names: str) -> None:
    source, target = encoder_of(kind), encoder_of(kind, seed=1)
    weights = source.state_dict()
    if names == "first":
        weights = without_aliases(source)
    elif names == "aliases":
        weights = {key: value for key, value in weights.items() if ".all_modules." in key}
    report = load_encoder(target, weights, "file.pth")
    assert report.share == 1
    assert (report.adapted, report.missing, report.left_over) == ((), (), ())
    assert len(report.loaded) == len(list(source.parameters()))
    assert f"{len(report.loaded)} of {len(report.loaded)} encoder tensors loaded, 100 % of its parameters" in str(
        report
    )
    image = torch.randn(1, 1, 8, 8, 8)
    for before, after in zip(source(image), target(image), strict=True):
        assert torch.equal(before, after)


def test_deeper_stages_of_the_checkpoint_are_left_out() -> None:
    source, target = encoder_of("resenc", (4, 6, 8, 10)), encoder_of("resenc", (4, 6, 8), seed=1)
    report = load_encoder(target, source.state_dict(), "file.pth")
    assert report.share == 1
    assert report.left_over
    assert {report.reasons[key] for key in report.left_over} == {"the checkpoint has 4 stages, the network 3: left out"}
    assert set(report.left_over) == {key for key in without_aliases(source) if key.startswith("stages.3.")}
    image = torch.randn(1, 1, 16, 16, 16)
    for before, after in zip(source(image), target(image), strict=False):
        assert torch.equal(before, after)


def test_deeper_stages_of_the_plan_stay_random() -> None:
    source, target = encoder_of("plain", (4, 6, 8)), encoder_of("plain", (4, 6, 8, 2), seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    # By hand: 27 weights per pair of channels, a bias, and two numbers of the norm per channel.
    sizes = [27 * a * b + 3 * b for a, b in ((1, 4), (4, 6), (6, 8), (8, 2))]
    assert sum(sizes) == elements(target)
    share = sum(sizes[:3]) / sum(sizes)
    assert share < 0.9
    with pytest.raises(CheckpointError, match=rf"file\.pth: only {100 * share:.1f} % .* at least 90\.0 %") as stop:
        load_encoder(target, source.state_dict(), "file.pth")
    assert "the checkpoint has 3 stages, the network 4: stays random" in str(stop.value)
    assert "PGL_ALLOW_PARTIAL=1" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())

    report = load_encoder(target, source.state_dict(), "file.pth", allow_partial=True)
    assert report.share == pytest.approx(share)
    after = target.state_dict()
    changed = {canonical(key) for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == set(report.loaded) == without_aliases(source).keys()
    assert f"not loaded: {report.missing[0]}: the checkpoint has 3 stages" in report.lines()[0]


@pytest.mark.parametrize(("there", "here"), [(2, 1), (1, 2)])
def test_a_stage_with_other_blocks_is_not_loaded(there: int, here: int) -> None:
    source = encoder_of("resenc", n_blocks_per_stage=[1, there, 1])
    target = encoder_of("resenc", seed=1, n_blocks_per_stage=[1, here, 1])
    report = load_encoder(target, source.state_dict(), "file.pth", allow_partial=True)
    assert report.share == pytest.approx(1 - elements(target.stages[1]) / elements(target))
    reason = f"stage 1 has {there} blocks in the checkpoint, {here} in the network"
    assert {report.reasons[key] for key in (*report.missing, *report.left_over)} == {reason}
    assert set(report.missing) == {key for key in without_aliases(target) if key.startswith("stages.1.")}


def test_a_little_may_be_missing_and_is_named() -> None:
    """Another width of one stage: its weights, and those that read it, are of other sizes."""
    source, target = encoder_of("plain", (4, 6, 40, 80)), encoder_of("plain", (4, 5, 40, 80), seed=1)
    report = load_encoder(target, source.state_dict(), "file.pth")
    assert set(report.missing) == {
        *(f"stages.1.0.convs.0.{key}" for key in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")),
        "stages.2.0.convs.0.conv.weight",
    }
    lost = 4 * 5 * 27 + 3 * 5 + 5 * 40 * 27
    assert report.share == pytest.approx(1 - lost / elements(target))
    assert "not loaded: stages.1.0.convs.0.conv.weight: (6, 4, 3, 3, 3) in the checkpoint, (5, 4, 3, 3, 3)" in "".join(
        report.lines()
    )


def test_kernels_and_channels_are_adapted_and_named() -> None:
    """A plan for thick slices starts with flat kernels; on an image constant along z, all else is the same."""
    flat = {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
    source, target = encoder_of("resenc", **flat), encoder_of("resenc", in_channels=2, seed=1)
    report = load_encoder(target, source.state_dict(), "file.pth")
    assert report.share == 1
    assert report.adapted == (
        "stem.convs.0.conv.weight",
        "stages.0.blocks.0.conv1.conv.weight",
        "stages.0.blocks.0.conv2.conv.weight",
    )
    text = str(report)
    assert "adapted to the number of input channels: stem.convs.0.conv.weight;" in text
    assert "previous stage" not in text
    assert "adapted to the kernel size: stem.convs.0.conv.weight, stages.0.blocks.0.conv1.conv.weight, " in text
    assert report.reasons["stages.0.blocks.0.conv1.conv.weight"] == "kernel 1 x 3 x 3 to 3 x 3 x 3"
    image = torch.randn(1, 1, 8, 8, 8)
    for before, after in zip(source(image), target(image.expand(-1, 2, -1, -1, -1)), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_several_channels_become_one() -> None:
    for source, target in (
        (encoder_of("plain", in_channels=3), encoder_of("plain", seed=1)),
        (ResNet50Encoder(3), ResNet50Encoder()),
    ):
        report = load_encoder(target, source.state_dict(), "file.pth")
        assert len(report.adapted) == 1
        image = torch.randn(1, 1, 8, 32, 32)
        with torch.no_grad():
            before, after = source.eval()(image.expand(-1, 3, -1, -1, -1))[-1], target.eval()(image)[-1]
        torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("there", "images"), [(1, 1), (1, 2), (3, 3), (3, 1)])
def test_a_cascade_starts_as_if_there_were_no_previous_stage(there: int, images: int) -> None:
    """Also where the checkpoint has as many channels as image and previous stage together (3 and 1 + 2)."""
    resnets = ResNet50Encoder(there), ResNet50Encoder(images + 2)
    planned = encoder_of("resenc", in_channels=there), encoder_of("resenc", in_channels=images + 2, seed=1)
    for source, target in (resnets, planned):
        report = load_encoder(target, source.state_dict(), "file.pth", image_channels=images)
        assert (len(report.adapted), report.missing, report.left_over, report.share) == (1, (), (), 1)
        assert report.zero_channels == 2
        assert "input channels of the previous stage's segmentation (2) start at zero" in str(report)
        assert "zeros for 2 channels of the previous stage" in report.lines()[0]
        image, found = torch.randn(1, 1, 8, 32, 32), torch.rand(1, 2, 8, 32, 32).round()
        with torch.no_grad():
            before = source.eval()(image.expand(-1, there, -1, -1, -1))
            for previous in (torch.zeros_like(found), found):
                after = target.eval()(torch.cat((image.expand(-1, images, -1, -1, -1), previous), dim=1))
                for one, other in zip(before, after, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_first_convolution_that_is_not_loaded_stays_random() -> None:
    source, target = encoder_of("plain"), encoder_of("plain", in_channels=3, seed=1)
    first = "stages.0.0.convs.0.conv.weight"
    before = target.state_dict()[first].clone()
    weights = {key: value for key, value in without_aliases(source).items() if key != first}
    report = load_encoder(target, weights, "file.pth", allow_partial=True, image_channels=1)
    assert torch.equal(target.state_dict()[first], before)
    assert report.zero_channels == 0
    assert "previous stage" not in str(report)


def test_the_advice_names_the_image_channels() -> None:
    with pytest.raises(
        CheckpointError, match=r"^file\.pth: an encoder for 3 image channels, this dataset has 2 "
    ) as no:
        load_encoder(
            encoder_of("plain", in_channels=9), encoder_of("plain", in_channels=3).state_dict(), "file.pth", True, 2
        )
    assert "(and 7 of the previous stage's segmentation, which need none)" in str(no.value)
    assert "pre-train on scans of 2 channels, or one channel at a time" in str(no.value)
    for images in (0, 4):
        with pytest.raises(ValueError, match=f"{images} image channels of an encoder with 3 input channels"):
            load_encoder(encoder_of("plain", in_channels=3), {}, "file.pth", image_channels=images)


def test_what_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(CheckpointError, match=r"file\.pth: an encoder for 2 image channels, this dataset has 3: one"):
        load_encoder(
            encoder_of("plain", in_channels=3), encoder_of("plain", in_channels=2).state_dict(), "file.pth", True
        )
    with pytest.raises(CheckpointError, match=r"file\.pth: nothing in it fits this encoder"):
        load_encoder(encoder_of("plain"), {"conv.weight": torch.zeros(4, 1, 3, 3, 3)}, "file.pth", True)
    torn = {**encoder_of("plain").state_dict(), "stages.0.0.convs.0.all_modules.0.weight": torch.zeros(4, 1, 3, 3, 3)}
    with pytest.raises(CheckpointError, match=r"file\.pth: damaged: .* are one parameter"):
        load_encoder(encoder_of("plain"), torn, "file.pth", True)
    resnet = ResNet50Encoder()
    partly = {key: value for key, value in resnet.state_dict().items() if not key.startswith("stage4.2")}
    with pytest.raises(CheckpointError, match="keys are not loaded"):
        load_encoder(resnet, partly, "file.pth", True)


def test_a_share_is_not_rounded_up_to_all() -> None:
    source, target = encoder_of("plain", (4, 6, 80)), encoder_of("plain", (4, 6, 80), seed=1)
    weights = {key: value for key, value in without_aliases(source).items() if key != "stages.0.0.convs.0.conv.bias"}
    report = load_encoder(target, weights, "file.pth")
    assert report.share == pytest.approx(1 - 4 / elements(target))
    assert "99.9 % of its parameters" in str(report)
