from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PGLSegmenter
from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.models_genesis import ModelsGenesis, ModelsGenesisOutput
from pretraining.views import GeometryBatch, sample_view_pair
from tests.drawn import drawn_for
from tests.precision import needs_bfloat16, note_types

VIEW = (8, 32, 32)
NARROW = (8, 16, 32, 64)  # the encoder's layers at an eighth of their width


def make_genesis(precision: torch.dtype | None = None) -> ModelsGenesis:
    torch.manual_seed(0)
    return ModelsGenesis(PGLSegmenter(1, 1, (2, 8, 8), widths=NARROW), precision=precision)


def draw_geometries(seed: int) -> GeometryBatch:
    rng = np.random.default_rng(seed)
    pairs = [sample_view_pair((20, 60, 60), VIEW, rng) for _ in range(2)]
    return GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in pairs])


@pytest.fixture
def views() -> Tensor:
    """Smooth, so that there is something to restore."""
    coarse = torch.randn(4, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=VIEW, mode="trilinear")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(genesis: ModelsGenesis, views: Tensor, places: int = 0) -> ModelsGenesisOutput:
    return genesis(views, draw_geometries(places), seeded(), **drawn_for(genesis, views))


def deformed_of(views: Tensor) -> Tensor:
    """What `run` has the network restore."""
    return deform(views, DeformationBatch(**drawn_for(ModelsGenesis, views)), seeded())


class Constant(nn.Module):
    """A network that returns what it was given at its making."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


def test_perfect_restoration_costs_nothing(views: Tensor) -> None:
    genesis = make_genesis()
    genesis.segmenter = Constant(views)
    output = run(genesis, views)
    assert float(output.loss) == 0
    assert float(output.deformed) > 0.01


def test_doing_nothing_costs_what_was_deformed(views: Tensor) -> None:
    genesis = make_genesis()
    genesis.segmenter = nn.Identity()
    output = run(genesis, views)
    assert torch.equal(output.loss, output.deformed)


def test_loss_is_the_mean_squared_error_to_the_views(views: Tensor) -> None:
    genesis = make_genesis().eval()
    with torch.no_grad():
        restored = genesis.segmenter(deformed_of(views)).double().numpy()
        output = run(genesis, views)
    expected = np.mean((restored - views.double().numpy()) ** 2)
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)


def test_the_views_given_are_not_changed(views: Tensor) -> None:
    before = views.clone()
    output = run(make_genesis(), views)
    assert torch.equal(views, before)
    assert float(output.deformed) == pytest.approx(float((deformed_of(views) - views).square().mean()))


def test_without_what_was_drawn_nothing_is_restored(views: Tensor) -> None:
    with pytest.raises(TypeError, match="offsets"):
        make_genesis()(views, draw_geometries(0), seeded())


def test_places_do_not_matter(views: Tensor) -> None:
    genesis = make_genesis().eval()
    with torch.no_grad():
        one, other = (run(genesis, views, seed).loss for seed in (0, 1))
    assert torch.equal(one, other)


def test_gradients_reach_encoder_and_decoder(views: Tensor) -> None:
    genesis = make_genesis()
    run(genesis, views).loss.backward()
    assert all(p.grad is not None for p in genesis.parameters())
    for part in (genesis.encoder.conv, genesis.encoder.stage4, genesis.segmenter.aspp, genesis.segmenter.decoder):
        assert max(float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None) > 0


def test_encoder_is_the_segmenter_s_and_stored_once() -> None:
    genesis = make_genesis()
    assert genesis.encoder is genesis.segmenter.encoder
    assert list(genesis.state_dict()) == [f"segmenter.{name}" for name in genesis.segmenter.state_dict()]


def test_kept_decoder_and_encoder_are_the_segmenter_but_its_head() -> None:
    genesis = make_genesis()
    torch.manual_seed(1)
    other = PGLSegmenter(1, 3, (2, 8, 8), widths=NARROW)
    kept = genesis.kept_decoder()
    missing, unexpected = other.load_state_dict(kept, strict=False)
    assert unexpected == []
    assert all(name.startswith(("encoder.", "head.")) for name in missing)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in kept.items())
    assert {name.split(".")[0] for name in kept} == {"aspp", "decoder"}


def test_there_is_no_target_to_update() -> None:
    genesis = make_genesis()
    before = {name: value.clone() for name, value in genesis.state_dict().items()}
    genesis.update_target(0.5)
    assert all(torch.equal(value, before[name]) for name, value in genesis.state_dict().items())
    assert not {"target_decay", "views.intensity"} & {*METHODS["models_genesis"].used_settings}


@needs_bfloat16
def test_bfloat16_tracks_float32(views: Tensor) -> None:
    with torch.no_grad():
        exact, fast = (run(make_genesis(precision), views) for precision in (None, torch.bfloat16))
    assert torch.equal(exact.deformed, fast.deformed)
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.05)


def test_the_network_runs_in_the_precision_asked_for(views: Tensor) -> None:
    genesis = make_genesis(torch.bfloat16)
    types = note_types(genesis.encoder)
    with torch.no_grad():
        genesis.dry_forward(views)
    assert types == {torch.bfloat16}


def test_a_dry_pass_runs_the_whole_network(views: Tensor) -> None:
    genesis = make_genesis()
    genesis.dry_forward(views).backward()
    assert all(p.grad is not None for p in genesis.parameters())


def test_training_restores(views: Tensor) -> None:
    """The error falls below a third of the first, and below that of the deformed views."""
    genesis = make_genesis()
    optimizer = torch.optim.AdamW(genesis.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        output = run(genesis, views)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 3
    assert losses[-1] < output.deformed.item()
