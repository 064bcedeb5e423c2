from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn
from torch.torch_version import TorchVersion

from pretraining.settings.config import PretrainConfig
from pretraining.training import optimisation
from pretraining.training.optimisation import (
    DECAY_POWERS,
    learning_rate_at,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)


def test_schedule_by_hand() -> None:
    rates = [learning_rate_at(step, 100, 10, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[9] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.1)  # half of the cosine
    assert rates[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 89 / 90)))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_at_its_ends() -> None:
    assert learning_rate_at(0, 10, 0, 0.2) == 0.2, "no warm-up"
    assert learning_rate_at(5, 10, 0, 0.2) == pytest.approx(0.1)
    assert learning_rate_at(10, 10, 10, 0.2) == 0.2, "nothing but warm-up"
    assert learning_rate_at(11, 10, 10, 0.2) == 0
    assert learning_rate_at(150, 100, 10, 0.2) == 0, "later than the end"


def test_nnunets_schedule_is_nnunets() -> None:
    """Of nnU-Net's scheduler, over as many epochs as there are steps here."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.01)
    theirs = PolyLRScheduler(optimizer, 0.01, 50)
    power = DECAY_POWERS["nnunet"]
    for step in range(50):
        theirs.step(step)
        assert learning_rate_at(step, 50, 0, 0.01, power) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert learning_rate_at(50, 50, 0, 0.01, power) == learning_rate_at(60, 50, 0, 0.01, power) == 0
    assert learning_rate_at(0, 50, 10, 0.01, power) == pytest.approx(0.001)
    assert learning_rate_at(30, 50, 10, 0.01, power) == pytest.approx(0.01 * 0.5**0.9), "half of what follows"


def test_nnunets_step_by_hand() -> None:
    """Nesterov's momentum of 0.99: the second step looks ahead."""
    module = nn.Linear(3, 2, bias=False)
    weight, momentum = module.weight.detach().clone(), torch.zeros(2, 3)
    optimizer = make_optimizer("nnunet", module, 0.1, 0.01)
    for _ in range(3):
        gradient = torch.randn(2, 3)
        module.weight.grad = gradient.clone()
        optimizer.step()
        change = gradient + 0.01 * weight
        momentum = 0.99 * momentum + change
        weight = weight - 0.1 * (change + 0.99 * momentum)
        torch.testing.assert_close(module.weight.detach(), weight)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_optimisers_have_the_rate_and_the_momentum(name: str) -> None:
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(name, module, 0.3, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0]
    assert name == "adamw" or [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    set_learning_rate(optimizer, 0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("optimizer", "batch", "expected"),
    [
        ("lars", 128, 0.2),
        ("lars", 32, 0.05),
        ("sgd", 256, 0.3),
        ("sgd", 64, 0.075),
        ("adamw", 128, 2e-3),
        ("nnunet", 128, 1e-2),
    ],
)
def test_rates_of_each_optimiser(optimizer: str, batch: int, expected: float) -> None:
    config = PretrainConfig(("x",), optimizer=optimizer, batch_size=batch)  # type: ignore[arg-type]
    assert config.peak_learning_rate == pytest.approx(expected)
    fixed = PretrainConfig(("x",), optimizer=optimizer, batch_size=batch, learning_rate=0.7)  # type: ignore[arg-type]
    assert fixed.peak_learning_rate == 0.7


def test_small_batches_have_another_optimiser() -> None:
    chosen = {batch: PretrainConfig(("x",), batch_size=batch) for batch in (8, 31, 32, 128)}
    assert [config.optimizer_name for config in chosen.values()] == ["adamw", "adamw", "lars", "lars"]
    assert [config.peak_learning_rate for config in chosen.values()] == pytest.approx([2e-3, 2e-3, 0.05, 0.2])
    assert PretrainConfig(("x",), batch_size=8, optimizer="lars").peak_learning_rate == pytest.approx(0.0125)


def test_biases_and_norms_have_no_decay() -> None:
    module = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1, bias=False))
    module[2].weight.requires_grad_(False)
    decayed, others = parameter_groups(module, 0.1)
    assert decayed == {"params": [module[0].weight], "weight_decay": 0.1}
    assert others["weight_decay"] == 0
    assert [id(p) for p in others["params"]] == [id(module[0].bias), id(module[1].weight), id(module[1].bias)]


def test_lars_step_by_hand() -> None:
    """You et al. 2017: the step of a weight is scaled by 0.001 |w| / (|g| + decay |w|); that of a bias is not."""
    module = nn.Linear(3, 2)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = make_optimizer("lars", module, 0.2, 0.01)
    gradient = torch.randn(2, 3)
    module.weight.grad, module.bias.grad = gradient.clone(), torch.ones(2)
    optimizer.step()
    ratio = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
    torch.testing.assert_close(module.weight.detach(), weight - 0.2 * ratio * (gradient + 0.01 * weight))
    torch.testing.assert_close(module.bias.detach(), bias - 0.2 * torch.ones(2))


def test_lars_continues_from_its_state() -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 2)
    second = copy.deepcopy(first)
    optimizer = make_optimizer("lars", first, 0.2, 0.01)
    first(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    second.load_state_dict(first.state_dict())
    restored = make_optimizer("lars", second, 0.2, 0.01)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its in ((first, optimizer), (second, restored)):
        module.zero_grad()
        module(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
        its.step()
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=0)


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="lars, sgd, adamw or nnunet"):
        make_optimizer("lamb", nn.Linear(1, 1), 0.1, 0.0)


def test_adamw_is_torch_s_own_in_one_pass() -> None:
    """Three steps beside torch's plain AdamW in float64, with the same gradients, some as small as epsilon.

    A network's gradients would not do: that of a bias before a norm is rounding alone, of which AdamW makes full steps.
    """
    torch.manual_seed(0)
    ours, plain = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7)) for _ in range(2))
    plain.double()
    plain.load_state_dict(ours.state_dict())
    first = make_optimizer("adamw", ours, 1e-2, 0.1)
    second = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=1e-2, foreach=False)
    assert first.param_groups[0]["fused"]
    for _ in range(3):
        for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape) * 10.0 ** torch.randint(-8, 1, mine.shape)
            theirs.grad = mine.grad.double()
        first.step()
        second.step()
    # Each step rounds a weight of about 1 twice (decay, update); the update's own rounding is a hundredth of that.
    rounding = 3 * 2 * torch.finfo(torch.float32).eps / 2
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert theirs.abs().max() < 1.1
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1.2 * rounding)


@pytest.mark.parametrize(
    ("device", "version", "fused"),
    [
        ("cpu", "2.4", True),
        ("cuda", "2.4.1", None),
        ("cuda", "2.5", True),
        ("cuda", "2.14.1+cu130", True),
        ("meta", "2.9", None),
    ],
)
def test_where_one_kernel_updates_all(
    monkeypatch: pytest.MonkeyPatch, device: str, version: str, fused: bool | None
) -> None:
    class Module(nn.Module):
        def parameters(self, recurse: bool = True) -> Iterator[Any]:
            yield SimpleNamespace(device=torch.device(device))

    asked: list[bool | None] = []
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(optimisation, "parameter_groups", lambda module, weight_decay: [])
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: asked.append(fused))
    make_optimizer("adamw", Module(), 0.1, 0.0)
    assert asked == [fused]
