"""What was drawn, applied to a batch: against the same in numpy view by view, and how a GPU would be used."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretraining.objectives import ModelsGenesis
from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.deformation_draw import DeformationSettings, as_arrays, draw_deformation
from tests.drawn import drawn_for

SIZE = (6, 20, 24)
HAPPENING = [(c, s, *painting) for c in (0, 1) for s in (0, 1) for painting in ((0, 0), (1, 0), (1, 1))]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def plainly(view: NDArray[np.float64], drawn: dict[str, NDArray[Any]], noise: NDArray[np.float64]) -> NDArray[Any]:
    """One channel of a view, in this order: shuffled, mapped, painted."""
    low, high = view.min(), view.max()
    flat = view.ravel()
    result = flat[np.arange(flat.size) + drawn["offsets"].ravel()].reshape(view.shape)
    if drawn["curves"].any():
        t = np.linspace(0, 1, 200001)[:, None]
        a, b, c, d = drawn["curves"].astype(np.float64)
        points = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
        result = low + (high - low) * np.interp((result - low) / (high - low), points[:, 0], points[:, 1])
    inside = np.zeros(view.shape, dtype=bool)
    for (z, y, x), (z1, y1, x1) in drawn["windows"]:
        inside[z:z1, y:y1, x:x1] = True
    return np.where(inside ^ drawn["outside"], low + (high - low) * noise, result)


def test_a_batch_is_what_each_view_gives_on_its_own() -> None:
    """All combinations of what may happen, in two channels of different range."""
    rng = np.random.default_rng(0)
    combinations = [
        DeformationSettings(c, 0.5, s, paint_probability=p, inpaint_probability=i) for c, s, p, i in HAPPENING
    ]
    of_views = [as_arrays(draw_deformation(SIZE, given, rng), SIZE, given, rng) for given in 2 * combinations]
    drawn = {name: np.stack([of_view[name] for of_view in of_views]) for name in of_views[0]}
    views = torch.randn(len(of_views), 2, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    views *= torch.tensor([1.0, 30.0]).view(1, 2, 1, 1, 1)
    before = views.clone()
    deformations = DeformationBatch(**{name: torch.from_numpy(values) for name, values in drawn.items()})
    deformed = deform(views, deformations, seeded())
    assert torch.equal(views, before)
    noise = torch.rand(views.shape, generator=seeded(), dtype=torch.float64).numpy()
    for number, view in enumerate(views.numpy()):
        of_view = {name: values[number] for name, values in drawn.items()}
        for channel in range(2):
            expected = plainly(view[channel], of_view, noise[number, channel])
            np.testing.assert_allclose(deformed[number, channel], expected, atol=1e-3 * np.ptp(view[channel]))


class Calls(TorchDispatchMode):
    """Counts operations, and notes where tensors are made of tensors elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.moves: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names[str(function)] += 1
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        if len(devices) > 1:
            self.moves.add(str(function))
        return result


@pytest.mark.parametrize("channels", [1, 3])
def test_as_many_operations_for_any_number_of_views(channels: int) -> None:
    counted = []
    for count in (2, 10):
        views = torch.randn(count, channels, *SIZE)
        with Calls() as calls:
            deform(views, DeformationBatch(**drawn_for(ModelsGenesis, views)), seeded())
        counted.append(calls.names)
    assert counted[0] == counted[1]


def test_a_gpu_is_never_waited_for() -> None:
    """Fake tensors raise where a shape or a number would be read from the device."""
    drawn = drawn_for(ModelsGenesis, torch.empty(4, 1, 8, 8, 8))
    with FakeTensorMode(), Calls() as calls:
        with torch.device("cuda"):
            views = torch.empty(4, 1, 8, 8, 8)
            on_device = {name: torch.empty(values.shape, dtype=values.dtype) for name, values in drawn.items()}
        calls.names.clear()
        deformed = deform(views, DeformationBatch(**on_device))
    assert deformed.device.type == "cuda"
    assert not calls.moves
    assert not {name for name in calls.names if "_local_scalar_dense" in name or "nonzero" in name}
