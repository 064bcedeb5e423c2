"""Masked autoencoding: what reaches the network, what counts in the loss, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PGLSegmenter, PlannedSegmenter
from pretraining.objectives import MAE, MAEOutput
from pretraining.objectives.mae import error_of_the_mean, masked_error
from pretraining.settings.config import PretrainConfig, published_for_mae
from pretraining.training.networks import make_objective
from pretraining.views import GeometryBatch, ViewGeometry, ViewSettings
from tests.planned_networks import small_network
from tests.precision import needs_bfloat16, note_types

VIEW = (8, 32, 32)
BLOCK = (4, 8, 8)
CELLS = (2, 4, 4)
NOWHERE = GeometryBatch.from_geometries([ViewGeometry((0.0,) * 3, (1.0,) * 3, (False,) * 3)] * 4)


def make_mae(ratio: float = 0.75, channels: int = 1, precision: torch.dtype | None = None) -> MAE:
    torch.manual_seed(0)
    segmenter = PGLSegmenter(channels, channels, BLOCK, "instance", widths=(8, 16, 32, 64))
    return MAE(segmenter, BLOCK, ratio, precision)


def smooth_views(channels: int = 1) -> Tensor:
    """Large structures, which follow from what is visible."""
    coarse = torch.randn(4, channels, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, VIEW, mode="trilinear", align_corners=True)


def run(mae: MAE, views: Tensor, seed: int = 0) -> MAEOutput:
    output: MAEOutput = mae(views, NOWHERE, torch.Generator().manual_seed(seed))
    return output


def seen_by(mae: MAE, views: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What the network is given and what it returns."""
    seen: list[Tensor] = []
    handle = mae.segmenter.register_forward_hook(lambda _, given, made: seen.extend((given[0], made)))
    run(mae, views, seed)
    handle.remove()
    return seen[0].detach(), seen[1]


def block_shares(hidden: Tensor) -> Tensor:
    """Of each block of each view, which share is hidden: (B, 1, *CELLS)."""
    return F.avg_pool3d(hidden.float(), BLOCK, BLOCK)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 24), (0.5, 16), (0.05, 2), (1.0, 31)])
def test_the_share_of_hidden_blocks_is_exact_in_every_view(ratio: float, hidden: int) -> None:
    """Views without zeros, so that zeros are what was hidden; blocks are hidden as a whole."""
    mae = make_mae(ratio).eval()
    given, _ = seen_by(mae, torch.rand(4, 1, *VIEW) + 1)
    shares = block_shares(given == 0)
    assert shares.shape[2:] == CELLS
    assert set(shares.unique().tolist()) <= {0.0, 1.0}
    assert shares.sum(dim=(1, 2, 3, 4)).tolist() == [hidden] * 4
    assert len({tuple(view.flatten().tolist()) for view in shares}) == 4 or hidden == 31, "each view has its own"


def test_other_steps_hide_other_blocks_and_visible_voxels_stay() -> None:
    mae, views = make_mae().eval(), torch.rand(4, 1, *VIEW) + 1
    first, again, other = (seen_by(mae, views, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first == 0, other == 0)
    assert torch.equal(first[first != 0], views[first != 0])


@pytest.mark.parametrize("channels", [1, 2])
def test_hidden_voxels_do_not_reach_the_network_and_all_channels_are_hidden(channels: int) -> None:
    mae, views = make_mae(channels=channels).eval(), torch.rand(4, channels, *VIEW) + 1
    given, restored = seen_by(mae, views)
    hidden = given == 0
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    changed = torch.where(hidden, views + torch.randn_like(views), views)
    given_then, restored_then = seen_by(mae, changed)
    assert torch.equal(given_then, given)
    assert torch.equal(restored_then, restored)
    assert not torch.equal(run(mae, changed).loss, run(mae, views).loss), "but they are what is to be restored"


@pytest.mark.parametrize("channels", [1, 2])
def test_the_loss_is_the_error_of_hidden_voxels(channels: int) -> None:
    """By boolean indexing; and no visible voxel of the restored view has a gradient."""
    mae, views = make_mae(channels=channels).eval(), torch.rand(4, channels, *VIEW) + 1
    given, restored = seen_by(mae, views)
    hidden = given == 0
    output = run(mae, views)
    torch.testing.assert_close(output.loss, F.mse_loss(restored[hidden], views[hidden]))
    leaf = restored.detach().requires_grad_()
    masked_error(leaf, views, hidden[:, :1]).backward()
    assert leaf.grad is not None
    assert (leaf.grad[~hidden] == 0).all()
    assert (leaf.grad[hidden] != 0).all()


def test_what_was_visible_does_not_count_in_what_is_to_be_restored() -> None:
    """Targets that differ in visible voxels only, with the network's output held."""
    restored, views = torch.randn(2, 1, *VIEW), torch.randn(2, 1, *VIEW)
    mask = torch.zeros(2, 1, *VIEW, dtype=torch.bool)
    mask[:, :, :4] = True
    other = torch.where(mask, views, torch.randn_like(views))
    assert torch.equal(masked_error(restored, views, mask), masked_error(restored, other, mask))
    assert torch.equal(error_of_the_mean(views, mask), error_of_the_mean(other, mask))


def test_nothing_hidden_costs_nothing() -> None:
    mask = torch.zeros(1, 1, *VIEW, dtype=torch.bool)
    views = torch.randn(1, 1, *VIEW)
    assert masked_error(views + 1, views, mask) == error_of_the_mean(views, mask) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_reference_is_the_variance_of_the_hidden_voxels_of_each_view(channels: int) -> None:
    """Views and channels of other means, which one mean for all would not fit."""
    mae, means = make_mae(channels=channels).eval(), torch.arange(1.0, 1.0 + 4 * channels).view(4, channels, 1, 1, 1)
    views = torch.rand(4, channels, *VIEW) + means
    given, _ = seen_by(mae, views)
    variances = [
        views[view, channel][given[view, channel] == 0].var(unbiased=False)
        for view in range(4)
        for channel in range(channels)
    ]
    output = run(mae, views)
    torch.testing.assert_close(output.mean_error, torch.stack(variances).mean())
    assert not output.mean_error.requires_grad


def test_places_do_not_matter() -> None:
    mae, views = make_mae().eval(), smooth_views()
    elsewhere = GeometryBatch.from_geometries([ViewGeometry((3.0,) * 3, (2.0,) * 3, (True,) * 3)] * 4)
    assert torch.equal(mae(views, elsewhere, torch.Generator().manual_seed(0)).loss, run(mae, views).loss)


def test_training_restores_better_than_the_mean() -> None:
    """With blocks that change from step to step, on views whose structures reach over several blocks."""
    mae, views = make_mae(), smooth_views()
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        output = run(mae, views, seed=step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    unseen = run(mae, views, seed=1000)
    assert losses[0] > unseen.mean_error
    assert unseen.loss < 0.8 * unseen.mean_error


def test_every_parameter_learns_and_a_dry_pass_runs_all_of_them() -> None:
    for part in (lambda mae: run(mae, smooth_views()).loss, lambda mae: mae.dry_forward(smooth_views())):
        mae = make_mae()
        part(mae).backward()
        assert all(p.grad is not None for p in mae.parameters())


def test_there_is_no_target_and_no_change_of_intensity() -> None:
    mae = make_mae()
    before = {name: value.clone() for name, value in mae.state_dict().items()}
    mae.update_target(0.5)
    assert all(torch.equal(value, before[name]) for name, value in mae.state_dict().items())
    assert not {"target_decay", "views.intensity"} & {*METHODS["mae"].used_settings}


def test_encoder_is_the_segmenters_stored_once_and_the_decoder_is_kept_without_its_head() -> None:
    mae = make_mae()
    assert mae.encoder is mae.segmenter.encoder
    assert list(mae.state_dict()) == [f"segmenter.{name}" for name in mae.segmenter.state_dict()]
    kept = mae.kept_decoder()
    assert {name.split(".")[0] for name in kept} == {"aspp", "decoder"}
    assert all(torch.equal(mae.segmenter.state_dict()[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({}, (8, 16, 16)),
        ({"strides": (4, 8, 8)}, (4, 8, 8)),
        ({"architecture": "resenc_l", "views": ViewSettings(size=(160, 160, 160)), "norm": "batch"}, (16, 16, 16)),
        ({"architecture": "plain", "views": ViewSettings(size=(16, 160, 160)), "norm": "batch"}, (4, 16, 16)),
        ({"architecture": "plain", "network": small_network(features=(4, 8)).to_dict()}, None),
    ],
)
def test_blocks_are_cells_of_the_deepest_map_but_16_voxels_at_most(
    changes: dict[str, Any], block: tuple[int, int, int] | None
) -> None:
    """nnssl hides 16 voxels per axis under a ResEnc-L, whose deepest cells have 32."""
    config = PretrainConfig(datasets=(), method="mae", **changes)
    with torch.device("meta"):
        made = make_objective(config, None)
    assert isinstance(made, MAE)
    expected = block or made.encoder.strides
    assert config.mask_block == made.block == expected
    assert all(b <= 16 and (b == s or b == 16) for b, s in zip(expected, made.encoder.strides, strict=True))


def test_it_is_made_with_the_ratio_of_the_settings() -> None:
    with torch.device("meta"):
        made = make_objective(published_for_mae(), None)
    assert isinstance(made, MAE)
    assert made.mask_ratio == 0.75
    assert (made.encoder.norm_name, made.encoder.padding) == ("instance", "zeros")


def test_nnunets_networks_are_restored_too() -> None:
    network = small_network(features=(4, 8))
    mae = MAE(PlannedSegmenter(network, 1, 1), network.strides[-1], 0.75)
    views = torch.rand(4, 1, 8, 8, 8) + 1
    given, restored = seen_by(mae, views)
    assert restored.shape == views.shape
    assert (given == 0).float().mean() == 0.75
    run(mae, views).loss.backward()
    assert all(p.grad is not None for p in mae.parameters() if p.requires_grad)


def test_the_network_runs_in_the_precision_asked_for() -> None:
    mae = make_mae(precision=torch.bfloat16)
    types = note_types(mae.encoder)
    with torch.no_grad():
        run(mae, smooth_views())
    assert types == {torch.bfloat16}


@needs_bfloat16
def test_bfloat16_tracks_float32() -> None:
    with torch.no_grad():
        exact, fast = (run(make_mae(precision=precision), smooth_views()) for precision in (None, torch.bfloat16))
    assert torch.equal(exact.mean_error, fast.mean_error)
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.05)
