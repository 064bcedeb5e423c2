from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.networks.segmenter import upsample
from pretraining.objectives import PGL, PGLMAE, draw_block_mask
from pretraining.settings.config import PretrainConfig
from pretraining.training.networks import make_objective
from pretraining.views import GeometryBatch, ViewSettings, sample_view_pair
from tests.precision import note_types

VIEW = (8, 32, 32)
STRIDES = (4, 8, 8)


def geometries(pairs: int) -> GeometryBatch:
    rng = np.random.default_rng(0)
    drawn = [sample_view_pair((20, 60, 60), VIEW, rng, min_overlap=0.3) for _ in range(pairs)]
    return GeometryBatch.from_geometries([one for one, _ in drawn] + [two for _, two in drawn])


def objective(mask_ratio: float = 0.6, weight: float = 1.0, channels: int = 1, **options: Any) -> PGLMAE:
    torch.manual_seed(0)
    segmenter = PGLSegmenter(channels, channels, STRIDES, "instance", widths=(8, 16, 32, 64))
    return PGLMAE(segmenter, VIEW, mask_ratio, weight, hidden_channels=32, out_channels=16, **options)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, 0), (0.25, 8), (0.6, 19), (1.0, 31)])
def test_every_view_hides_the_same_number_of_whole_blocks(ratio: float, hidden: int) -> None:
    mask = draw_block_mask(5, VIEW, STRIDES, ratio, torch.Generator().manual_seed(0))
    assert mask.shape == (5, 1, *VIEW)
    share = F.avg_pool3d(mask.float(), STRIDES, STRIDES)  # of each block: all or nothing
    assert set(share.unique().tolist()) <= {0.0, 1.0}
    assert share.sum(dim=(1, 2, 3, 4)).tolist() == [hidden] * 5


def test_blocks_are_hidden_equally_often_and_by_the_generator_alone() -> None:
    draws = [draw_block_mask(2000, VIEW, STRIDES, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    often = draws[0].float().mean(dim=0)
    assert float((often - 0.5).abs().max()) < 5 * 0.5 / 2000**0.5  # five standard deviations


def test_views_that_are_no_multiple_of_the_blocks() -> None:
    mask = draw_block_mask(3, (5, 9, 33), (4, 8, 8), 0.5, torch.Generator().manual_seed(0))
    assert mask.shape == (3, 1, 5, 9, 33)
    assert mask[..., ::4, ::8, ::8].sum(dim=(1, 2, 3, 4)).tolist() == [10] * 3  # of 2 x 2 x 5 blocks


@pytest.mark.parametrize("interpolated_only", [False, True])
def test_nothing_hidden_and_no_restoration_is_pgl(interpolated_only: bool) -> None:
    mae = objective(mask_ratio=0.0, weight=0.0, interpolated_only=interpolated_only)
    pgl = PGL(mae.segmenter.encoder, VIEW, 32, 16, interpolated_only=interpolated_only)
    shared = {key: value for key, value in mae.state_dict().items() if not key.startswith("segmenter.")}
    pgl.load_state_dict(shared)
    views = torch.randn(4, 1, *VIEW)
    ours, plain = mae(views, geometries(2)), pgl(views, geometries(2))
    torch.testing.assert_close(ours.loss, plain.loss)
    assert ours.restoration.item() == 0.0


@pytest.mark.parametrize("channels", [1, 2])
def test_loss_is_pgl_of_the_hidden_views_plus_the_error_of_the_hidden_voxels(channels: int) -> None:
    """Written out again: the online path sees the views with holes, the target path without."""
    mae = objective(weight=0.5, channels=channels)
    views, places = torch.randn(4, channels, *VIEW), geometries(2)
    output = mae(views, places, torch.Generator().manual_seed(3))
    mask = draw_block_mask(4, VIEW, STRIDES, 0.6, torch.Generator().manual_seed(3))
    holes = torch.where(mask, 0.0, views)
    restored = upsample(mae.segmenter.decode(mae.encoder(holes)).float(), VIEW)
    hidden = mask.expand_as(views)
    error = F.mse_loss(restored[hidden], views[hidden])
    local = PGL.forward(mae, views, places, encode=lambda *_: mae.encoder(holes))
    torch.testing.assert_close(output.restoration, error)
    torch.testing.assert_close(output.loss, local.loss + 0.5 * error)


def test_every_parameter_of_the_online_path_learns_and_none_of_the_target() -> None:
    mae = objective()
    mae(torch.randn(4, 1, *VIEW), geometries(2), torch.Generator().manual_seed(0)).loss.backward()
    for name, parameter in mae.named_parameters():
        assert (parameter.grad is not None) != name.startswith("target_"), name


def test_networks_run_in_the_precision_asked_for() -> None:
    mae = objective(precision=torch.bfloat16)
    types = note_types(mae)
    mae(torch.randn(4, 1, *VIEW), geometries(2))
    assert types == {torch.bfloat16}


def test_it_is_made_with_the_settings_of_a_run() -> None:
    config = PretrainConfig((), method="pgl_mae", mask_ratio=0.3, restoration_weight=0.7, views=ViewSettings(VIEW))
    with torch.device("meta"):
        made = make_objective(replace(config, hidden_channels=24, out_channels=12, interpolated_only=True), None)
    assert isinstance(made, PGLMAE)
    assert (made.mask_ratio, made.restoration_weight, made.interpolated_only) == (0.3, 0.7, True)
    assert made.stages == [3]
    assert [tuple(layer.shape for layer in (head[0].weight, head[-1].bias)) for head in made.predictors] == [
        ((24, 12, 1, 1, 1), (12,))
    ]


def test_a_dry_pass_has_the_tensors_of_a_step() -> None:
    """It shows how much memory a step takes: the same gradients, of any value."""
    mae = objective()
    mae.dry_forward(torch.randn(4, 1, *VIEW)).backward()
    for name, parameter in mae.named_parameters():
        assert (parameter.grad is not None) != name.startswith("target_"), name


def test_a_few_steps_restore_better() -> None:
    mae = objective()
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], 1e-3)
    ramp = torch.linspace(-1, 1, VIEW[2]).expand(4, 1, *VIEW)
    errors = []
    for step in range(12):
        output = mae(ramp, geometries(2), torch.Generator().manual_seed(step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(output.restoration.item())
    assert np.mean(errors[-3:]) < 0.7 * np.mean(errors[:3])


def test_the_decoder_that_is_kept_fits_a_segmenter_of_any_classes() -> None:
    kept = objective().kept_decoder()
    segmenter = PGLSegmenter(1, 5, STRIDES, "instance", widths=(8, 16, 32, 64))
    missing, unexpected = segmenter.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(key.startswith(("encoder.", "head.")) for key in missing)
