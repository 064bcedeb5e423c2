"""The losses against loops and numpy in float64, and what shows whether training is healthy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretraining.objectives import feature_spread, local_consistency_loss, local_contrastive_loss, within_view_share


@pytest.mark.parametrize("loss", [local_consistency_loss, local_contrastive_loss])
def test_losses_refuse_other_shapes(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="valid is"):
        loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool))


def test_loss_by_hand() -> None:
    prediction = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 2)  # columns (1, 0) and (0, 3)
    assert float(local_consistency_loss(prediction, 5 * prediction)) == pytest.approx(0, abs=1e-6)
    assert float(local_consistency_loss(prediction, -prediction)) == pytest.approx(4)
    other = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).reshape(1, 2, 2)  # orthogonal; at 45 degrees
    assert float(local_consistency_loss(prediction, other)) == pytest.approx((2 + 2 - math.sqrt(2)) / 2, rel=1e-6)
    only_second = torch.tensor([[False, True]])
    assert float(local_consistency_loss(prediction, other, only_second)) == pytest.approx(2 - math.sqrt(2), rel=1e-6)
    assert float(local_consistency_loss(prediction, other, torch.zeros(1, 2, dtype=torch.bool))) == 0


def test_loss_is_the_squared_distance_of_normalised_features() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 3, 5, 2, 4, 4))
    unit_p, unit_t = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, t))
    expected = ((unit_p - unit_t) ** 2).sum(axis=1).mean()
    assert float(local_consistency_loss(torch.tensor(p), torch.tensor(t))) == pytest.approx(expected, rel=1e-5)


def test_feature_spread_of_even_and_of_collapsed_features() -> None:
    even = torch.randn(8, 64, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert float(feature_spread(even)) == pytest.approx(1, abs=0.02)
    assert float(feature_spread(even[:1, :, :1, :1, :1].expand(8, -1, 4, 6, 6))) == pytest.approx(0, abs=1e-5)


def test_within_view_share_sees_features_that_only_tell_scans_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    of_scans = torch.randn(8, 64, 1, 1, 1, generator=generator).expand(-1, -1, 4, 6, 6)
    of_places = torch.randn(1, 64, 4, 6, 6, generator=generator).expand(8, -1, -1, -1, -1)
    assert float(within_view_share(of_scans)) == pytest.approx(0, abs=1e-6)
    assert float(within_view_share(of_places)) == pytest.approx(1, abs=1e-6)
    assert float(feature_spread(of_scans)) > 0.8  # which the spread alone does not see


def test_spread_and_share_by_numpy() -> None:
    """Features of unlike lengths, so that normalising counts."""
    features = np.random.default_rng(0).normal(size=(4, 5, 2, 3, 2)) + np.arange(5).reshape(1, 5, 1, 1, 1)
    units = (features / np.linalg.norm(features, axis=1, keepdims=True)).reshape(4, 5, 12)
    spread = units.transpose(1, 0, 2).reshape(5, 48).std(axis=1, ddof=1).mean() * math.sqrt(5)
    total = ((units - units.mean(axis=(0, 2), keepdims=True)) ** 2).sum()
    within = ((units - units.mean(axis=2, keepdims=True)) ** 2).sum()
    assert float(feature_spread(torch.from_numpy(features))) == pytest.approx(spread, rel=1e-5)
    assert float(within_view_share(torch.from_numpy(features))) == pytest.approx(within / total, rel=1e-5)


def reference(
    prediction: NDArray[Any], target: NDArray[Any], valid: NDArray[np.bool_], temperature: float
) -> tuple[float, NDArray[np.float64]]:
    """Loss and its gradient to the predictions, place by place: each looks for itself among the valid places."""
    losses, gradient = [], np.zeros(prediction.shape)
    for p, t, v, g in zip(prediction, target, valid, gradient, strict=True):
        places = [tuple(place) for place in np.argwhere(v)]
        for query in places:
            z, y, x = query
            own, length = p[:, z, y, x], np.linalg.norm(p[:, z, y, x])
            units = [t[:, k, j, i] / np.linalg.norm(t[:, k, j, i]) for k, j, i in places]
            logits = np.array([unit @ own / length for unit in units]) / temperature
            shares = np.exp(logits) / np.exp(logits).sum()
            right = places.index(query)
            losses.append(-math.log(shares[right]))
            to_unit = (sum(s * u for s, u in zip(shares, units, strict=True)) - units[right]) / temperature
            g[:, z, y, x] = (to_unit - own / length * (own / length @ to_unit)) / length
    count = max(len(losses), 1)
    return sum(losses) / count, gradient / count


def features(shape: Sequence[int] = (3, 5, 2, 3, 2)) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_loss_and_gradient_are_those_of_loops(temperature: float, share: float) -> None:
    p, t = features()
    valid = np.random.default_rng(1).random((3, 2, 3, 2)) < share
    valid[1] = share == 1  # a pair without any
    loss, gradient = reference(p, t, valid, temperature)
    prediction, target = torch.tensor(p, requires_grad=True), torch.tensor(t)
    own = local_contrastive_loss(prediction, target, torch.from_numpy(valid), temperature)
    own.backward()
    assert own.dtype == torch.float32
    assert float(own.detach()) == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert prediction.grad is not None
    np.testing.assert_allclose(prediction.grad.numpy(), gradient, rtol=1e-3, atol=1e-5)
    if share == 1:
        unmasked = local_contrastive_loss(prediction.detach(), target, temperature=temperature)
        assert float(unmasked) == pytest.approx(loss, rel=1e-5)


def test_gradients_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    p, t = (torch.from_numpy(x) for x in features((2, 3, 1, 2, 2)))
    valid = torch.tensor([[True, True, False, True], [True, False, True, True]]).view(2, 1, 2, 2)
    for mask in (valid, None):
        assert torch.autograd.gradcheck(
            lambda a, b, mask=mask: local_contrastive_loss(a, b, mask, 0.3), (p.requires_grad_(), t.requires_grad_())
        )


def test_half_precision_gives_the_float32_loss_of_the_same_values() -> None:
    p, t = (torch.from_numpy(x).bfloat16() for x in features())
    loss = local_contrastive_loss(p, t)
    expected, _ = reference(p.double().numpy(), t.double().numpy(), np.ones((3, 2, 3, 2), dtype=bool), 0.1)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_features_that_are_alike_everywhere_are_found_by_chance() -> None:
    p, t = (torch.from_numpy(x)[:, :, :1, :1, :1].expand(-1, -1, 2, 3, 2) for x in features())
    assert float(local_contrastive_loss(p, t)) == pytest.approx(math.log(12), rel=1e-5)
    assert float(local_contrastive_loss(p, t, torch.zeros(3, 2, 3, 2, dtype=torch.bool))) == 0


def test_other_pairs_are_no_negatives() -> None:
    """What they look like does not matter to a pair's loss."""
    p, t = (torch.from_numpy(x) for x in features())
    alone = local_contrastive_loss(p[:1], t[:1])
    for scale in (1.0, -1.0):
        together = torch.cat([p[:1], p[1:] * scale])
        others = float(local_contrastive_loss(together[1:], t[1:]))
        loss = local_contrastive_loss(together, t)
        assert float(loss) == pytest.approx((float(alone) + 2 * others) / 3, rel=1e-5)
