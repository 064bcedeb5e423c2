"""Whole encoders as a GPU would see them: their maps keep the layout of the images."""

from __future__ import annotations

from typing import Any, get_args
from unittest import mock

import pytest
import torch

from benchmarks.fake_gpu import GPU, HALF, batch_on_gpu, fake_gpu
from nnunetv2_pgl.networks import Encoder, PaddingName, PlannedEncoder, PlannedNetwork, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.settings.config import recommended
from pretraining.training import correspondence

VIEW = (16, 96, 96)


def make(kind: Any, norm: Any, padding: PaddingName) -> Encoder:
    """With the widths and depths that runs have; nnU-Net plans instance norm only."""
    with torch.device("meta"):
        if kind == "resnet50":
            encoder: Encoder = ResNet50Encoder(norm=norm, padding=padding)
        else:
            encoder = PlannedEncoder(PlannedNetwork.from_preset(kind, VIEW, (3.0, 1.0, 1.0)), padding=padding)
    return encoder.to(memory_format=encoder.memory_format)


@pytest.mark.parametrize("padding", get_args(PaddingName))
@pytest.mark.parametrize(
    ("kind", "norm"), [("resnet50", "batch"), ("resnet50", "instance"), ("plain", "instance"), ("resenc_l", "instance")]
)
def test_no_map_changes_its_layout(kind: str, norm: str, padding: PaddingName) -> None:
    with fake_gpu() as watch:
        encoder = make(kind, norm, padding).to(GPU)
        views = lay_out(torch.empty(4, 1, *VIEW, device=GPU), encoder.memory_format)
        watch.forget()
        with torch.autocast("cuda", dtype=HALF):
            maps = encoder(views)
        assert watch.layout_copies == []
        assert watch.waits == []
        for features in maps:
            assert features.is_contiguous(memory_format=encoder.memory_format)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_nor_when_the_correspondence_is_measured(norm: str) -> None:
    with fake_gpu() as watch, mock.patch.object(correspondence, "compare_maps") as compare:
        encoder = make("resnet50", norm, "replicate").to(GPU)
        batch = batch_on_gpu(recommended(), 2)
        watch.forget()
        correspondence.measure_correspondence(encoder, [batch], VIEW, GPU, HALF)
        assert compare.called
        assert watch.layout_copies == []
