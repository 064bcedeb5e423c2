"""A training step as a GPU would see it: nothing waits, nothing changes its layout, little is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.fake_gpu import GPU, Watch, batch_on_gpu, fake_gpu, state_on_gpu
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.launching.distributed import Processes
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig, recommended
from pretraining.training import loop
from pretraining.training.loop import TrainingLoop
from pretraining.training.step import Stepper
from pretraining.training.synchronised import SynchronisedBatchNorm3d, synchronise_batch_norms
from pretraining.views import ViewSettings
from tests.planned_networks import small_network

METHODS = tuple(OBJECTIVES)
HAVE_TARGET = [method for method in METHODS if method not in ("models_genesis", "mae")]
PAIRS = 3


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(ResNet50Encoder, blocks=(1, 2, 1, 1))
    monkeypatch.setattr("pretraining.training.networks.ResNet50Encoder", few)
    monkeypatch.setattr("nnunetv2_pgl.networks.segmenter.ResNet50Encoder", few)


@pytest.fixture(params=[1, 2])
def processes(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many there are; of two, the other one is not there."""
    if request.param == 1:
        yield 1
        return
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield 2
    dist.destroy_process_group()


def settings(method: str, encoder: str = "resnet50", norm: str = "instance", **changes: Any) -> PretrainConfig:
    """The recommended ones for an encoder, with small networks of nnU-Net's; batch norm pads with zeros."""
    network = None
    if encoder != "resnet50":
        norm_op = {"batch": "batchnorm.BatchNorm3d", "instance": "instancenorm.InstanceNorm3d"}[norm]
        network = small_network(encoder, features=(4, 6, 8), norm_op=f"torch.nn.modules.{norm_op}").to_dict()
    named: Any = {"method": method, "norm": norm, "padding": "zeros" if norm == "batch" else "replicate"}
    architecture: Any = {"resnet50": "resnet50", "plain": "plain", "resenc": "resenc_l"}[encoder]
    return replace(
        recommended(),
        architecture=architecture,
        network=network,
        views=ViewSettings((16, 32, 32)),
        **{**named, **changes},
    )


def make_stepper(config: PretrainConfig, processes: int = 1) -> Stepper:
    state = state_on_gpu(config)
    if processes > 1:
        synchronise_batch_norms(state.objective)
    return Stepper(config, 10, 2, state, state.objective, 0)


def make_step(stepper: Stepper, watch: Watch, pairs: int = PAIRS, number: int = 0) -> None:
    batch = batch_on_gpu(stepper.config, pairs)
    watch.forget()
    stepper(number, iter([batch]))


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("encoder", ["resnet50", "plain", "resenc"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_neither_waits_nor_copies_layouts(method: str, encoder: str, norm: str, processes: int) -> None:
    """Values that decide a shape or move to the host raise an error here."""
    with fake_gpu() as watch:
        stepper = make_stepper(settings(method, encoder, norm), processes)
        make_step(stepper, watch)
        assert watch.waits == []
        assert max(watch.products, default=0) <= 2 * PAIRS
        deepest = stepper.state.objective.encoder.strides
        cells = torch.Size(n // s for n, s in zip((16, 32, 32), deepest, strict=True)).numel()
        large = [copy for copy in watch.layout_copies if torch.Size(copy.shape[2:]).numel() > cells]
        assert len(large) <= 2, large
        assert len(watch.layout_copies) <= 20, watch.layout_copies
        assert all(p.grad is None for p in stepper.model.parameters())


def test_clipping_neither_waits_nor_depends_on_the_gradients() -> None:
    with fake_gpu() as watch:
        stepper = make_stepper(settings("mae", "plain", optimizer="nnunet"))
        make_step(stepper, watch)
        assert watch.waits == []
        assert any("clamp" in name for name in map(str, watch.operations)), "of the factor"


@pytest.mark.parametrize("method", METHODS)
def test_as_much_is_asked_for_whatever_the_number_of_views(method: str) -> None:
    counts = []
    with fake_gpu() as watch:
        stepper = make_stepper(settings(method, "plain"))
        for number, pairs in enumerate((2, 2, 7)):  # the first step makes the optimiser's state
            make_step(stepper, watch, pairs, number)
            counts.append(len(watch.operations))
    assert counts[1] == counts[2]


@pytest.mark.parametrize("method", HAVE_TARGET)
def test_the_target_path_comes_first(method: str) -> None:
    """Its maps are then gone when those that autograd keeps come."""
    called: list[str] = []
    with fake_gpu() as watch:
        stepper = make_stepper(settings(method, "plain"))
        for name, module in stepper.model.named_children():
            for part in module.modules():
                part.register_forward_hook(lambda *_, name=name: called.append(name))
        make_step(stepper, watch)
    first_online = next(i for i, name in enumerate(called) if not name.startswith("target"))
    assert any(name.startswith("target") for name in called)
    assert not any(name.startswith("target") for name in called[first_online:])


@pytest.mark.parametrize("method", HAVE_TARGET)
def test_the_target_path_follows_in_a_few_operations(method: str) -> None:
    with fake_gpu() as watch:
        objective = state_on_gpu(settings(method, norm="batch")).objective
        assert len(list(objective.buffers())) > 50
        watch.forget()
        objective.update_target(0.9)
    assert set(watch.operations) == {"_foreach_lerp_"}
    assert len(watch.operations) <= 2


def test_adamw_is_a_few_operations_too() -> None:
    with fake_gpu() as watch:
        stepper = make_stepper(settings("pgl_nce"))
        make_step(stepper, watch)
        for parameter in stepper.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        watch.forget()
        stepper.state.optimizer.step()
    assert len(watch.operations) <= 4, watch.operations


@pytest.mark.parametrize("channels", [1, 2])
def test_views_are_rendered_by_a_few_products(channels: int) -> None:
    config = settings("pgl_nce", in_channels=channels)
    with fake_gpu() as watch:
        batch = batch_on_gpu(config, PAIRS)
        watch.forget()
        views = batch.render(config.views.size, torch.Generator(GPU))
        assert views.shape == (2 * PAIRS, channels, *config.views.size)
        assert views.stride(1) == 16 * 32 * 32
    assert watch.waits == []
    # Three axes, for the views and for the blur; blurred, channels are views.
    assert watch.products == [2 * PAIRS] * 3 + [2 * PAIRS * channels] * 3


def test_processes_join_without_waiting_and_without_exchanging_buffers() -> None:
    """What `TrainingLoop.distribute` asks of torch on a GPU."""
    asked: dict[str, Any] = {}

    class Joined(nn.Module):
        def __init__(self, module: nn.Module, **how: Any):
            super().__init__()
            self.module = module
            asked.update(how)

    run = object.__new__(TrainingLoop)
    run.config, run.steps, run.steps_per_epoch = settings("pgl", norm="batch"), 3, 3
    run.processes, run.device = Processes(1, 2, local_rank=1, local_world_size=2), torch.device("cuda", 1)
    with fake_gpu(), mock.patch.object(loop, "DistributedDataParallel", Joined):
        run.state = state_on_gpu(run.config)
        norms = sum(isinstance(module, nn.BatchNorm3d) for module in run.state.objective.modules())
        run.distribute()
        model = run.step.model
    assert isinstance(model, Joined)
    assert asked == {"device_ids": [1], "broadcast_buffers": False}
    assert sum(isinstance(module, SynchronisedBatchNorm3d) for module in model.modules()) == norms > 20
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
