from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder, resnet3d
from pretraining.objectives.deformation import Deformation
from pretraining.objectives.models_genesis import ModelsGenesis
from pretraining.views import GeometryBatch, sample_view_pair
from tests.precision import needs_bfloat16

VIEW = (8, 32, 32)


@pytest.fixture(autouse=True)
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers of the ResNet-50 at an eighth of their width."""
    monkeypatch.setattr(resnet3d, "_WIDTHS", (8, 16, 32, 64))
    monkeypatch.setattr(ResNet50Encoder, "skip_channels", (64, 32, 64, 256))


def make_genesis(precision: torch.dtype | None = None, deformation: Deformation | None = None) -> ModelsGenesis:
    torch.manual_seed(0)
    return ModelsGenesis(PGLSegmenter(1, 1, (2, 8, 8)), precision=precision, deformation=deformation or Deformation())


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
    output = genesis(views, draw_geometries(0), seeded())
    assert float(output.loss) == 0
    assert float(output.deformed) > 0.01


def test_doing_nothing_costs_what_was_deformed(views: Tensor) -> None:
    genesis = make_genesis()
    genesis.segmenter = nn.Identity()
    output = genesis(views, draw_geometries(0), seeded())
    assert torch.equal(output.loss, output.deformed)


def test_loss_is_the_mean_squared_error_to_the_views(views: Tensor) -> None:
    genesis = make_genesis().eval()
    with torch.no_grad():
        restored = genesis.segmenter(genesis.deform(views, seeded())).double().numpy()
        output = genesis(views, draw_geometries(0), seeded())
    expected = np.mean((restored - views.double().numpy()) ** 2)
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)


def test_nothing_to_deform_leaves_the_views_to_the_bit(views: Tensor) -> None:
    genesis = make_genesis(deformation=Deformation(0.0, shuffle_probability=0.0, paint_probability=0.0))
    assert torch.equal(genesis.deform(views, seeded()), views)
    assert float(genesis(views, draw_geometries(0), seeded()).deformed) == 0


def test_deformed_views_follow_from_the_generator_alone(views: Tensor) -> None:
    genesis = make_genesis()
    before = views.clone()
    generator = seeded()
    torch.manual_seed(1)
    first = genesis.deform(views, generator)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(genesis.deform(views, seeded()), first)
    assert not torch.equal(genesis.deform(views, generator), first)  # it goes on
    assert not torch.equal(genesis.deform(views, seeded(1)), first)
    assert torch.equal(views, before)


def test_views_are_deformed_each_on_its_own(views: Tensor) -> None:
    always = Deformation(curve_probability=1.0, shuffle_probability=1.0, paint_probability=1.0)
    same = views[:1].expand(4, -1, -1, -1, -1)
    deformed = make_genesis(deformation=always).deform(same, seeded())
    assert all(not torch.equal(deformed[i], deformed[j]) for i in range(4) for j in range(i))


def test_places_do_not_matter(views: Tensor) -> None:
    genesis = make_genesis().eval()
    with torch.no_grad():
        one, other = (genesis(views, draw_geometries(seed), seeded()).loss for seed in (0, 1))
    assert torch.equal(one, other)


def test_gradients_reach_encoder_and_decoder(views: Tensor) -> None:
    genesis = make_genesis()
    genesis(views, draw_geometries(0), seeded()).loss.backward()
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
    other = PGLSegmenter(1, 3, (2, 8, 8))
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
    assert not genesis.has_target
    assert not genesis.changes_intensity


@needs_bfloat16
def test_bfloat16_tracks_float32(views: Tensor) -> None:
    with torch.no_grad():
        exact, fast = (
            make_genesis(precision)(views, draw_geometries(0), seeded()) for precision in (None, torch.bfloat16)
        )
    assert torch.equal(exact.deformed, fast.deformed)
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.05)


def test_rehearsal_runs_the_whole_network(views: Tensor) -> None:
    genesis = make_genesis()
    genesis.rehearse(views).backward()
    assert all(p.grad is not None for p in genesis.parameters())


def test_training_restores(views: Tensor) -> None:
    """The error falls below a third of the first, and below that of the deformed views."""
    genesis = make_genesis()
    optimizer = torch.optim.AdamW(genesis.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        output = genesis(views, draw_geometries(0), seeded())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 3
    assert losses[-1] < output.deformed.item()
