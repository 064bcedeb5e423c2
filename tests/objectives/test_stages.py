"""PGL on other maps than the deepest, and on other encoders than the paper's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import PlannedEncoder, PlannedSegmenter, ResNet50Encoder
from pretraining.objectives import BYOL, MAE, PGL, PGLMAE, ConvHead, ModelsGenesis, Objective, local_contrastive_loss
from pretraining.views import GeometryBatch, sample_view_pair
from tests.drawn import drawn_for
from tests.planned_networks import small_network
from tests.precision import note_types

VIEW = (8, 16, 16)
NETWORK = small_network("resenc", features=(4, 8, 8), n_blocks_per_stage=[1, 2, 2])


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, GeometryBatch]:
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((20, 30, 30), VIEW, rng) for _ in range(2)]
    geometries = [pair[half] for half in (0, 1) for pair in pairs]
    views = torch.randn(4, 1, *VIEW, generator=torch.Generator().manual_seed(0))
    return views, GeometryBatch.from_geometries(geometries)


def make_pgl(*stages: int) -> PGL:
    torch.manual_seed(0)
    return PGL(PlannedEncoder(NETWORK), VIEW, hidden_channels=16, out_channels=8, stages=stages)


def test_the_loss_of_several_levels_is_their_mean(batch: tuple[Tensor, GeometryBatch]) -> None:
    both = make_pgl(1, 2).eval()
    alone = []
    for number, stage in enumerate((1, 2)):
        pgl = make_pgl(stage).eval()
        pgl.encoder.load_state_dict(both.encoder.state_dict())
        pgl.target_encoder.load_state_dict(both.target_encoder.state_dict())
        for own, theirs in (
            (pgl.projectors, both.projectors),
            (pgl.predictors, both.predictors),
            (pgl.target_projectors, both.target_projectors),
        ):
            own[0].load_state_dict(theirs[number].state_dict())
        with torch.no_grad():
            alone.append(pgl(*batch))
    with torch.no_grad():
        together = both(*batch)
    assert float(together.loss) == pytest.approx(float(alone[0].loss + alone[1].loss) / 2, rel=1e-5)
    assert float(together.interpolated) == float(alone[1].interpolated)  # of the deepest


def test_levels_count_from_either_end_and_once() -> None:
    assert make_pgl(-1).stages == [2]
    assert make_pgl(2, -1, 1).stages == [1, 2]
    assert [grid.stride for grid in make_pgl(1, 2).grids] == [(2, 2, 2), (4, 4, 4)]


def test_stages_beyond_the_last_level_are_left_alone(batch: tuple[Tensor, GeometryBatch]) -> None:
    """Otherwise DistributedDataParallel would wait for gradients that never come."""
    pgl = make_pgl(1)
    pgl(*batch).loss.backward()
    beyond = {id(p) for p in pgl.encoder.stages[2].parameters()}
    for parameter in pgl.encoder.parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (id(parameter) not in beyond)


def test_stages_beyond_the_last_level_are_not_computed(batch: tuple[Tensor, GeometryBatch]) -> None:
    pgl, computed = make_pgl(1), []
    for encoder in (pgl.encoder, pgl.target_encoder):
        for stage in encoder.modules_after(1):
            stage.register_forward_hook(lambda *_: computed.append(1))
    pgl(*batch)
    pgl.dry_forward(batch[0])
    assert not computed
    for encoder in (pgl.encoder, pgl.target_encoder):
        encoder(batch[0])
    assert len(computed) == 2


@pytest.mark.parametrize("method", [BYOL, PGL, PGLMAE])
def test_the_target_path_comes_first(method: type[Objective], batch: tuple[Tensor, GeometryBatch]) -> None:
    """Its maps must be gone before autograd keeps those of the online path."""
    heads = {"hidden_channels": 16, "out_channels": 8}
    if method is PGLMAE:
        objective: Any = PGLMAE(PlannedSegmenter(NETWORK, 1, 1), VIEW, 0.5, 1.0, **heads)
    else:
        objective = method(PlannedEncoder(NETWORK), **({} if method is BYOL else {"view_size": VIEW}), **heads)
    order: list[str] = []
    for name in ("encoder", "target_encoder"):
        getattr(objective, name).register_forward_hook(lambda *_, name=name: order.append(name))
    objective(*batch)
    assert order == ["target_encoder", "encoder"]


def test_heads_are_the_papers_unless_told_otherwise() -> None:
    """4096 channels inside, 256 of the projection; see docs/method.md."""
    with torch.device("meta"):
        encoder, segmenter = PlannedEncoder(NETWORK), PlannedSegmenter(NETWORK, 1, 1)
        made = (PGL(encoder, VIEW), PGLMAE(segmenter, VIEW, 0.5, 1.0), BYOL(encoder))
    for objective in made:
        convolutions = [m for m in objective.modules() if isinstance(m, ConvHead)]
        assert {(head[0].out_channels, head[-1].out_channels) for head in convolutions} == {(4096, 256)}


@pytest.mark.parametrize("method", [BYOL, PGL])
def test_networks_run_in_the_precision_and_the_layout_of_the_encoder(
    method: type[Objective], batch: tuple[Tensor, GeometryBatch]
) -> None:
    encoder = ResNet50Encoder(strides=(4, 4, 4), widths=(4, 8, 8, 8), norm="batch")
    assert encoder.memory_format is torch.channels_last_3d
    sizes = {"hidden_channels": 16, "out_channels": 8, "precision": torch.bfloat16}
    objective = BYOL(encoder, **sizes) if method is BYOL else PGL(encoder, VIEW, **sizes)
    types = note_types(objective)
    for module in objective.modules():
        if isinstance(module, nn.Conv3d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():  # gradients in bfloat16 are another matter, see tests/networks/test_precision.py
        objective(*batch)
    assert types == {torch.bfloat16}


@pytest.mark.parametrize("method", ["byol", "mae", "models_genesis", "pgl_mae", "pgl", "pgl_nce"])
def test_every_method_trains_nnunets_encoder(method: str, batch: tuple[Tensor, GeometryBatch]) -> None:
    torch.manual_seed(0)
    small = {"hidden_channels": 16, "out_channels": 8}
    made: dict[str, Objective] = {
        "byol": BYOL(PlannedEncoder(NETWORK), **small),
        "mae": MAE(PlannedSegmenter(NETWORK, 1, 1), (2, 2, 2), 0.5),
        "models_genesis": ModelsGenesis(PlannedSegmenter(NETWORK, 1, 1)),
        "pgl_mae": PGLMAE(PlannedSegmenter(NETWORK, 1, 1), VIEW, 0.5, 1.0, **small, stages=(1,)),
        "pgl": PGL(PlannedEncoder(NETWORK), VIEW, **small),
        "pgl_nce": PGL(
            PlannedEncoder(NETWORK, 1, "replicate"), VIEW, **small, stages=(1, 2), loss=local_contrastive_loss
        ),
    }
    objective = made[method]
    objective(*batch, torch.Generator().manual_seed(0), **drawn_for(objective, batch[0])).loss.backward()
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    encoder = {id(p) for p in objective.encoder.parameters()}
    assert encoder <= {id(p) for p in trained}
    before = [p.clone() for p in objective.encoder.parameters()]
    torch.optim.SGD(trained, lr=0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, objective.encoder.parameters(), strict=True))
    kept = {key.split(".")[0] for key in objective.kept_decoder()}
    assert kept == ({"decoder"} if method in ("mae", "models_genesis", "pgl_mae") else set())
