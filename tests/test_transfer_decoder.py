"""Decoders of nnU-Net's networks: loaded into a network of the same kind, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.adaptation import with_axes
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import PGLSegmenter, PlannedSegmenter
from nnunetv2_pgl.transfer import load_decoder, load_encoder
from tests.planned_networks import small_architecture, small_network

ANISOTROPIC = {
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 1]],
}


def restoring_network(kind: str, seed: int = 0, **changes: Any) -> PlannedSegmenter:
    torch.manual_seed(seed)
    segmenter = PlannedSegmenter(small_network(kind, **changes), 1, 1)
    for parameter in segmenter.parameters():
        torch.nn.init.normal_(parameter)
    return segmenter.eval()


def checkpoint_of(segmenter: PlannedSegmenter, **changes: Any) -> EncoderCheckpoint:
    network = segmenter.encoder.network
    pgl = {"method": "mae", "architecture": small_architecture(network)}
    return EncoderCheckpoint(
        **{  # type: ignore[arg-type]
            "encoder_weights": dict(segmenter.encoder.state_dict()),
            "pgl": pgl,
            "nnssl_adaptation_plan": {},
            "decoder_weights": segmenter.decoder_weights(),
            **changes,
        }
    )


def trained_network(kind: str, classes: int, deep_supervision: bool = True, **changes: Any) -> Any:
    """nnU-Net's, as its trainers have it: of other random weights."""
    torch.manual_seed(1)
    return small_network(kind, **changes).build(1, classes, deep_supervision).eval()


@pytest.mark.parametrize("changes", [{}, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_encoder_and_decoder_are_the_network_that_was_pre_trained_but_for_its_heads(
    kind: str, changes: dict[str, Any]
) -> None:
    source, target = restoring_network(kind, **changes), trained_network(kind, 1, **changes)
    load_encoder(target.encoder, source.encoder.state_dict(), "file.pth")
    assert load_decoder(target, checkpoint_of(source), "file.pth") == 2 * (4 + 2)  # a block and what upsamples, twice
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert not torch.equal(target(image)[0], source(image))
        target.decoder.seg_layers[-1].load_state_dict(source.decoder.seg_layers[-1].state_dict())
        outputs = target(image)  # of deep supervision
        torch.testing.assert_close(outputs[0], source(image), rtol=1e-4, atol=1e-3)
    assert len(outputs) == 2


def test_heads_of_whatever_number_of_classes_stay_as_they_are() -> None:
    source, target = restoring_network("plain"), trained_network("plain", 5)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    load_decoder(target, checkpoint_of(source), "file.pth")
    changed = {key for key, value in target.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == source.decoder_weights().keys()
    assert {key.split(".")[1] for key in changed} == {"stages", "transpconvs"}


@pytest.mark.parametrize("names", ["first", "aliases"])
def test_a_decoder_with_one_name_for_each_parameter(names: str) -> None:
    source, target = restoring_network("resenc"), trained_network("resenc", 2)
    given = {
        key: value
        for key, value in source.decoder_weights().items()
        if (".all_modules." in key) == (names == "aliases") or "transpconvs" in key
    }
    assert load_decoder(target, checkpoint_of(source, decoder_weights=given), "file.pth") == len(given) == 12
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.decoder_weights().items())


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_a_turned_image_gives_the_turned_output(kind: str, axes: tuple[int, int, int]) -> None:
    """Transposed convolutions among all others: their strides differ between the axes."""
    source = restoring_network(kind, **ANISOTROPIC)
    turned = {key: [[stage[axis] for axis in axes] for stage in values] for key, values in ANISOTROPIC.items()}
    target = trained_network(kind, 1, deep_supervision=False, **turned)
    load_encoder(target.encoder, with_axes(source.encoder.state_dict(), axes), "file.pth")
    decoder = with_axes(source.decoder_weights(), axes)
    load_decoder(target, checkpoint_of(source, decoder_weights=decoder), "file.pth")
    target.decoder.seg_layers[-1].load_state_dict(source.decoder.seg_layers[-1].state_dict())
    image = torch.randn(1, 1, 8, 16, 24)
    order = (0, 1, *(2 + axis for axis in axes))
    with torch.no_grad():
        torch.testing.assert_close(target(image.permute(order)), source(image).permute(order), rtol=1e-3, atol=1e-3)
    with pytest.raises(CheckpointError, match=r"does not fit this network \(decoder\..*transpconvs"):
        load_decoder(target, checkpoint_of(source), "file.pth")


def test_a_decoder_that_does_not_fit_stops_in_one_line_and_changes_nothing() -> None:
    source, target = restoring_network("plain"), trained_network("plain", 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    whole = source.decoder_weights()
    first, last = "decoder.stages.0.convs.0.conv.weight", "decoder.transpconvs.1.bias"
    more = {**whole, "decoder.stages.2.convs.0.conv.weight": whole[first]}
    without = {key: value for key, value in whole.items() if key != last}
    torn = {**whole, first: whole[first] + 1}
    deeper = restoring_network("plain", features=(4, 6, 8, 8)).decoder_weights()
    paper = PGLSegmenter(1, 1, (8, 8, 8)).decoder_weights()
    for weights, words in (
        (more, "does not fit this network (decoder.stages.2.convs.0.conv.weight); pre-train by the plan (-plans_from)"),
        (without, f"does not fit this network ({last})"),
        (deeper, "does not fit this network (decoder.stages"),
        (paper, "does not fit this network (aspp."),
        (
            {},
            "holds no decoder: its method, mae, trains none, or what wrote it kept none; start from its encoder alone",
        ),
        (torn, "are one parameter in nnU-Net's networks, but differ"),
    ):
        with pytest.raises(CheckpointError) as refused:
            load_decoder(target, checkpoint_of(source, decoder_weights=weights), "file.pth")
        assert words in str(refused.value)
        assert str(refused.value).startswith("file.pth: ")
        assert "\n" not in str(refused.value)
        assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    with pytest.raises(CheckpointError, match="decoder does not fit this network"):
        load_decoder(PGLSegmenter(1, 1, (8, 8, 8)), checkpoint_of(source), "file.pth")


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_a_checkpoint_keeps_it(kind: str, tmp_path: Path) -> None:
    source = restoring_network(kind)
    save_checkpoint(checkpoint_of(source), tmp_path / "checkpoint_final.pth")
    loaded = load_checkpoint(tmp_path / "checkpoint_final.pth")
    assert loaded.encoder_weights.keys() == source.encoder.state_dict().keys()
    assert loaded.decoder_weights.keys() == source.decoder_weights().keys()
    assert "decoder       12 tensors" in describe(loaded)
    once = sum(p.numel() for p in [*source.encoder.parameters(), *source.decoder.parameters()])
    assert (tmp_path / "checkpoint_final.pth").stat().st_size < 4 * once + 100_000
