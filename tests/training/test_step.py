"""A step against one written out, and what becomes of gradients that are not finite."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import PGL, Objective, local_contrastive_loss
from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training.optimisation import GRADIENT_CLIP_NORMS
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import TrainingState, initial_state
from pretraining.training.step import Stepper
from pretraining.views import (
    GeometryBatch,
    IntensityRanges,
    ViewPairBatch,
    ViewPairDataset,
    ViewSettings,
    sample_view_pair,
)
from tests.golden import make
from tests.planned_networks import small_network

NO_CHANGES = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)
CONFIG = PretrainConfig(
    datasets=(),
    method="pgl_nce",
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    padding="replicate",
    views=ViewSettings(size=(8, 8, 8), intensity=NO_CHANGES),
    batch_size=4,
    optimizer="adamw",
    learning_rate=1e-2,
    target_decay=0.9,
    hidden_channels=8,
    out_channels=8,
)
STEPS, WARMUP = 5, 2


@dataclass(frozen=True)
class Scan:
    """Noise."""

    shape: tuple[int, int, int, int] = (1, 16, 16, 16)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    lateral_axis: int | None = None

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.random.default_rng(0).normal(size=self.shape[1:]).astype(np.float32)[z, y, x]


def parts_of(config: PretrainConfig, steps: int) -> list[ViewPairBatch]:
    dataset = ViewPairDataset([Scan()], config.views, 0, OBJECTIVES[config.method].objective.draw)
    size = config.batch_size // config.accumulate
    draws = range(steps * config.batch_size)
    return [ViewPairBatch.collate([dataset[d, 0] for d in draws[i : i + size]]) for i in draws[::size]]


DRAWN = IntensityRanges(noise_probability=1, blur_probability=0, brightness_probability=1, gamma_probability=0)
RATES = (0.5, 1.0, 1.0, 0.75)  # of the peak: two steps of warm-up, then a cosine over three
MOMENTUM, DECAY, RANK = 0.9, 0.2, 3


@dataclass
class StepsWrittenOut:
    """Steps of a method's networks: autograd for the gradient, all else by hand.

    Attributes:
        method: Its name.
        objective: Its networks, changed by every step.
        momentum: Of each trained weight.
    """

    method: str
    objective: Objective
    momentum: dict[str, Tensor] = field(default_factory=dict)

    def step(self, number: int, parts: Sequence[ViewPairBatch]) -> Tensor:
        """Gradient of the mean over the parts, momentum SGD with decay of weights, then the target path."""
        draws = np.random.SeedSequence((CONFIG.seed, number, RANK)).generate_state(1)
        generator = torch.Generator().manual_seed(int(draws[0]))
        outputs = []
        for part in parts:
            views = part.render(CONFIG.views.size, generator, "views.intensity" in METHODS[self.method].settings)
            outputs.append(torch.stack(list(self.objective(views, part.geometries, generator, **part.drawn))))
        values = torch.stack(outputs).mean(dim=0)
        trained = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(values[0], list(trained.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(trained.items(), gradients, strict=True):
                change = gradient + (DECAY * weight if weight.ndim > 1 else 0)
                self.momentum[name] = change + MOMENTUM * self.momentum.get(name, 0)
                weight -= 1e-2 * RATES[number] * self.momentum[name]
            tau = 1 - (1 - 0.9) * (math.cos(math.pi * number / STEPS) + 1) / 2
            weights = dict(self.objective.named_parameters())
            for name, weight in weights.items():
                if name.startswith("target_"):
                    weight.copy_(tau * weight + (1 - tau) * weights[name.removeprefix("target_")])
        return values.detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_written_out(method: str, accumulate: int) -> None:
    """Four steps: seed, rate, scale of the gradient, decay, order, tau of the step; and gradients are gone."""
    config = replace(CONFIG, method=method, accumulate=accumulate, optimizer="sgd", weight_decay=DECAY)
    config = replace(config, views=replace(config.views, intensity=DRAWN))
    state = initial_state(config, torch.device("cpu"), None)
    reference = StepsWrittenOut(method, copy.deepcopy(state.objective))
    stepper, batches = Stepper(config, STEPS, WARMUP, state, state.objective, RANK), parts_of(config, len(RATES))
    given = iter(batches)
    for number in range(len(RATES)):
        reference.objective.load_state_dict(state.objective.state_dict())  # so that rounding does not grow
        values, _ = stepper(number, given)
        assert all(p.grad is None for p in state.objective.parameters())
        expected = reference.step(number, batches[number * accumulate : (number + 1) * accumulate])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert not values.requires_grad
        theirs = reference.objective.state_dict()
        for name, own in state.objective.state_dict().items():
            torch.testing.assert_close(own, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert next(given, None) is None


@pytest.mark.parametrize("largest", [1e-2, 1e2])
def test_nnunets_steps_have_its_rates_and_clipped_gradients(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    """All gradients together, whose norm here is between the two: one of them clips, the other does not."""
    monkeypatch.setitem(GRADIENT_CLIP_NORMS, "nnunet", largest)
    config = replace(CONFIG, method="mae", optimizer="nnunet")
    state = initial_state(config, torch.device("cpu"), None)
    free = initial_state(replace(config, optimizer="sgd"), torch.device("cpu"), None)
    given: list[Tensor] = []

    def gradients(state: TrainingState) -> Any:
        trained = [p for p in state.objective.parameters() if p.requires_grad]
        return lambda *_: given.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))

    for each, settings in ((state, config), (free, replace(config, optimizer="sgd"))):
        each.optimizer.register_step_pre_hook(gradients(each))
        Stepper(settings, STEPS, WARMUP, each, each.objective, 0)(3, iter(parts_of(config, 1)))
    clipped, whole = given
    assert 2e-2 < whole.norm() < 1e2
    torch.testing.assert_close(clipped, whole * min(1.0, largest / float(whole.norm())), rtol=1e-4, atol=1e-8)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 1 / 3) ** 0.9)
    assert GRADIENT_CLIP_NORMS.keys() == {"nnunet"}


def test_nnunets_gradients_are_clipped_to_12() -> None:
    """As its trainers do."""
    assert GRADIENT_CLIP_NORMS["nnunet"] == 12


def test_a_gradient_that_is_not_finite_shows_although_it_is_clipped() -> None:
    config = replace(CONFIG, method="mae", optimizer="nnunet")
    state = initial_state(config, torch.device("cpu"), None)
    weight = next(p for p in state.objective.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), math.inf))
    values, _ = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(config, 1)))
    assert values.isnan().all()


def test_a_step_in_parts_is_the_step_at_once() -> None:
    """The same pairs; with running statistics, as norms see each part alone."""
    losses, weights = [], []
    for accumulate in (1, 2, 4):
        config = replace(CONFIG, accumulate=accumulate, optimizer="sgd")
        state = initial_state(config, torch.device("cpu"), None)
        state.objective.eval()
        values, _ = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(config, 1)))
        losses.append(values[0])
        weights.append(torch.cat([p.detach().flatten() for p in state.objective.parameters()]))
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weight, weights[0], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_exchange_the_gradient_of_all_parts_once(accumulate: int) -> None:
    """Asked of torch: a hook in the place of the exchange, which sees what would be sent."""
    config = replace(CONFIG, accumulate=accumulate, batch_size=6)
    state = initial_state(config, torch.device("cpu"), None)
    alone = initial_state(config, torch.device("cpu"), None)
    taken: list[int] = []
    sent: list[tuple[int, Tensor]] = []

    def given() -> Iterator[ViewPairBatch]:
        for number, part in enumerate(parts_of(config, 1)):
            taken.append(number)
            yield part

    def exchange(_: None, bucket):  # type: ignore[no-untyped-def]  # torch checks the annotations
        sent.append((taken[-1], bucket.buffer().clone()))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        joined = DistributedDataParallel(state.objective)
        joined.register_comm_hook(None, exchange)
        Stepper(config, STEPS, WARMUP, state, joined, 0)(0, given())
    finally:
        torch.distributed.destroy_process_group()
    assert [part for part, _ in sent] == [accumulate - 1]
    gradients: list[Tensor] = []
    alone.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.flatten() for p in alone.objective.parameters() if p.grad is not None)
    )
    Stepper(config, STEPS, WARMUP, alone, alone.objective, 0)(0, iter(parts_of(config, 1)))
    torch.testing.assert_close(sent[0][1].sort()[0], torch.cat(gradients).sort()[0])  # a bucket has an order of its own


def test_waiting_is_that_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only batches, 2 s each, and the networks, 5 s, move on."""
    clock = [100.0]
    monkeypatch.setattr("pretraining.training.step.time.perf_counter", lambda: clock[0])
    config = replace(CONFIG, accumulate=2)
    state = initial_state(config, torch.device("cpu"), None)

    def wait(seconds: float) -> None:
        clock[0] += seconds

    state.objective.register_forward_hook(lambda *_: wait(5))
    parts = ((wait(2), part)[1] for part in parts_of(config, 1))
    _, waited = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, parts)
    assert waited == 4


def test_what_loading_processes_drew_reaches_the_method() -> None:
    config = replace(CONFIG, method="models_genesis")
    dataset = ViewPairDataset([Scan()], config.views, 0, OBJECTIVES["models_genesis"].objective.draw)
    batch = ViewPairBatch.collate([dataset[draw, 0] for draw in range(4)])
    state = initial_state(config, torch.device("cpu"), None)
    stepper = Stepper(config, STEPS, WARMUP, state, state.objective, 0)
    values, _ = stepper(2, iter([batch]))
    views = batch.render(config.views.size, changes_intensity=False)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((config.seed, 2, 0)).generate_state(1)[0]))
    deformed = deform(views, DeformationBatch(**batch.drawn), generator)
    assert float(values[1]) == pytest.approx(float((deformed - views).square().mean()), rel=1e-5)
    drawing = [method for method in METHODS if OBJECTIVES[method].objective.draw((2, 2, 2), np.random.default_rng(0))]
    assert drawing == ["models_genesis"]


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("value", [math.inf, math.nan, 1.0])
def test_a_gradient_that_is_not_finite_shows_in_all_values(value: float, which: int) -> None:
    state = initial_state(CONFIG, torch.device("cpu"), None)
    weight = [p for p in state.objective.parameters() if p.requires_grad][which]

    def spoil(gradient: Tensor) -> Tensor:
        return torch.where(torch.arange(gradient.numel()).view_as(gradient) == 3, value, gradient)

    weight.register_hook(spoil)
    values, _ = Stepper(CONFIG, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(CONFIG, 1)))
    assert torch.isfinite(values).tolist() == [math.isfinite(value)] * len(values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("step")
    shutil.copytree(make.GOLDEN / "nnUNet_raw", root / "nnUNet_raw")
    with make.machine(root):
        yield root


def gradients_with_a_view_of_one_value(padding: Any, seed: int) -> Tensor:
    """Largest gradient of each weight of a ResNet as deep as the paper's, of few channels."""
    torch.manual_seed(seed)
    encoder = ResNet50Encoder(1, (4, 4, 4), "instance", padding=padding, widths=(8, 8, 8, 8))
    objective = PGL(encoder, (8, 8, 8), 16, 8, loss=local_contrastive_loss)
    rng = np.random.default_rng(seed)
    pairs = [sample_view_pair((16, 16, 16), (8, 8, 8), rng) for _ in range(2)]
    views = torch.randn(4, 1, 8, 8, 8)
    views[0] = -1.3
    output = objective(views, GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in pairs]))
    assert torch.isfinite(output.loss)
    output.loss.backward()
    return torch.stack([p.grad.abs().max() for p in objective.parameters() if p.grad is not None])


def test_a_view_of_one_value_spoils_the_gradient_where_instance_norm_meets_replicated_cells() -> None:
    """Why such views are drawn again. Not with every weight and rounding, so several are tried."""
    assert not all(gradients_with_a_view_of_one_value("replicate", seed).isfinite().all() for seed in range(6))
    assert gradients_with_a_view_of_one_value("zeros", 0).isfinite().all()


@pytest.mark.parametrize(
    ("spoilt", "accumulate", "epochs_saved"),
    [(0, 1, 0), (1, 1, 0), (3, 1, 1), (6, 2, 1)],
    ids=["first step", "last step of the first epoch", "last step of all", "first part of a step"],
)
def test_it_stops_the_run_and_nothing_of_it_is_saved(
    folders: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int, accumulate: int, epochs_saved: int
) -> None:
    """Two epochs of two steps; the gradient of one pass is infinite, its loss as finite as ever."""
    losses: list[float] = []
    forward = PGL.forward

    def spoiling(self: PGL, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> Any:
        output = forward(self, views, geometries, generator)
        if generator is None:  # memory is counted, on tensors without values
            return output
        if len(losses) == spoilt:
            output.loss.register_hook(lambda gradient: gradient * math.inf)
        losses.append(float(output.loss.detach()))
        return output

    monkeypatch.setattr(PGL, "forward", spoiling)
    name = f"spoilt_{spoilt}_{accumulate}"
    config = replace(make.config(), method="pgl_nce", padding="replicate", accumulate=accumulate)
    with pytest.raises(PGLError) as stop:
        pretrain(config, RunOptions(name, False, "cpu", 1, 1))
    folder = RunFolder.named(name)
    assert f"gradient is not finite in epoch {epochs_saved} of {folder.path}" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert all(map(math.isfinite, losses[: spoilt + 1]))
    assert not folder.final.exists()
    assert folder.latest.exists() == bool(epochs_saved)
    if epochs_saved:
        assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == epochs_saved
        state = torch.load(folder.latest, weights_only=True)
        assert state["step"] == 2 * epochs_saved
        assert all(value.isfinite().all() for value in state["objective"].values())
