"""Heads and target path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretraining.objectives import ConvHead, make_target, target_decay, update_target


@pytest.mark.parametrize(("step", "expected"), [(0, 0.996), (50, 0.998), (100, 1.0), (130, 1.0)])
def test_target_decay(step: int, expected: float) -> None:
    assert target_decay(step, 100) == pytest.approx(expected, abs=1e-9)


def test_target_decay_of_runs_of_one_step_and_of_none() -> None:
    assert target_decay(0, 1, 0.9) == pytest.approx(0.9)
    assert target_decay(1, 1, 0.9) == target_decay(7, 1, 0.9) == 1
    assert target_decay(0, 0, 0.9) == pytest.approx(0.9)


def test_target_follows_the_online_weights() -> None:
    online = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    target = make_target(online)
    assert not any(p.requires_grad for p in target.parameters())
    before = [p.clone() for p in target.parameters()]
    for p in online.parameters():
        p.data.add_(1.0)
    online[1].running_mean.fill_(3.0)
    update_target(target, online, 0.9)
    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    assert not target[1].running_mean.any(), "they are never used"


@pytest.mark.parametrize(("channels", "parameters"), [(2048, 2048 * 4096 + 2 * 4096 + 4096 * 256 + 256)])
def test_projector_is_conv_bn_relu_conv(channels: int, parameters: int) -> None:
    head = ConvHead(channels)
    assert [type(m) for m in head] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.Conv3d]
    assert sum(p.numel() for p in head.parameters()) == parameters
