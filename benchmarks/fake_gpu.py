"""A GPU that is not there: tensors on it have a shape and a layout but no values; those of the host are real.

So what a step does on a GPU is known short of numbers and times: the operations in their order, their layouts, what is
kept, and where the host would wait for the device. Half precision is float16: torch would compute convolutions in
bfloat16 without cuDNN on a GPU whose generation is unknown.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_backward import BackwardEngine
from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig
from pretraining.training import state as training_state
from pretraining.training.state import TrainingState
from pretraining.views import ViewPairBatch
from pretraining.views.rendering import largest_source_box

GPU = torch.device("cuda", 0)
HALF = torch.float16


class LayoutCopy(NamedTuple):
    """An operation that returns a map in another layout than it was given."""

    operation: str
    before: str
    after: str
    shape: tuple[int, ...]


class Watch(TorchDispatchMode):
    """Calls operations on the device with tensors that have no values, all others for real, and keeps what it saw.

    Attributes:
        operations: Names of what the device was asked to compute, about one kernel each; views of memory are not.
        waits: Copies between host and device for which the host waits.
        layout_copies: Of maps of several channels and more than one cell along each axis.
        products: Of each batched matrix product, the number of matrices.
        now: Bytes of all tensors on the device.
        peak: Most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.waits: list[str] = []
        self.layout_copies: list[LayoutCopy] = []
        self.products: list[int] = []
        self.now = self.peak = 0
        self._storages: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function and notes it."""
        kwargs = kwargs or {}
        if function is torch.ops.prim.device.default:  # asks what a tensor knows
            return function(*args, **kwargs)
        inputs = list(_tensors((*args, *kwargs.values())))
        devices = {tensor.device.type for tensor in inputs} | {torch.device(kwargs.get("device") or "cpu").type}
        if "cuda" not in devices:
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        output = _WITHOUT_SHAPES[name](*args) if name in _WITHOUT_SHAPES else function(*args, **kwargs)
        self._note(name, inputs, list(_tensors((output,))), (*args, *kwargs.values()))
        return output

    def forget(self) -> None:
        """Clears the records; the peak becomes what is in use now."""
        for seen in (self.operations, self.waits, self.layout_copies, self.products):
            seen.clear()
        self.peak = self.now

    def _note(self, name: str, inputs: list[Tensor], outputs: list[Tensor], arguments: tuple[Any, ...]) -> None:
        shared = {tensor.untyped_storage()._cdata for tensor in inputs}
        if name.endswith("_") or not outputs or any(t.untyped_storage()._cdata not in shared for t in outputs):
            self.operations.append(name)
        if name in ("_to_copy", "copy_"):
            to, source = outputs[0], inputs[-1]
            # Neither waits for the other where the host has said so and does not want the values.
            if to.device != source.device and (to.device.type == "cpu" or not any(a is True for a in arguments)):
                self.waits.append(f"{source.device.type} to {to.device.type}, {tuple(source.shape)}")
        if name == "bmm":
            self.products.append(len(outputs[0]))
        maps = inputs[: 2 if name == "convolution_backward" else 1]
        for before, after in itertools.product(maps, outputs[:1]):
            if _changes_layout(before, after):
                self.layout_copies.append(LayoutCopy(name, _layout(before), _layout(after), tuple(after.shape)))
        for tensor in outputs:
            self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._storages:
            self._storages[storage] = None
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All in a nest of lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _changes_layout(before: Tensor, after: Tensor) -> bool:
    """Whether a map of several channels lies in new memory and in another order."""
    if not before.ndim == after.ndim == 5 or min(*before.shape[1:], *after.shape[1:]) == 1:
        return False
    return before.untyped_storage() is not after.untyped_storage() and _layout(before) != _layout(after)


def _layout(x: Tensor) -> str:
    """Axes from the slowest to the fastest in memory, without those of one cell."""
    axes = sorted((axis for axis in range(5) if x.shape[axis] > 1), key=lambda axis: -x.stride(axis))
    return "".join("bczyx"[axis] for axis in axes)


# Kernels of whose results torch knows nothing unless it runs them: a number per channel, or a map like the input.
_WITHOUT_SHAPES = {
    "batch_norm_stats": lambda x, *_: _of_channels(x, 2),
    "batch_norm_gather_stats_with_counts": lambda x, *_: _of_channels(x, 2),
    "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
    "batch_norm_backward_reduce": lambda grad, x, *_: _of_channels(x, 4),
    "batch_norm_backward_elemt": lambda grad, x, *_: torch.empty_like(x),
}


def _of_channels(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(count))


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """Within it there is the device, and `Tensor.backward` asks for no real one."""
    engine = BackwardEngine()
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.Generator", _Generator),
        mock.patch("torch.nn.Module.to", _to),
        mock.patch("torch.Tensor.backward", lambda loss: engine.backward(loss)),
        saved_tensors_hooks(engine.keep, engine.give),
        FakeTensorMode(allow_non_fake_inputs=True),
        Watch() as watch,
    ):
        yield watch


def state_on_gpu(config: PretrainConfig) -> TrainingState:
    """Networks and optimiser as a run on the device starts with, within `fake_gpu`."""
    make = training_state.make_objective

    def without_values(*arguments: Any) -> Any:
        with torch.device("meta"):
            return make(*arguments)

    with mock.patch.object(training_state, "make_objective", without_values):
        state = training_state.initial_state(config, GPU, HALF)
    state.scaler = None  # as with bfloat16, in whose place this float16 stands
    return state


def batch_on_gpu(config: PretrainConfig, pairs: int) -> ViewPairBatch:
    """Pairs of views that have all intensity changes and what their method draws, within `fake_gpu`."""
    views, channels = 2 * pairs, config.encoder_channels
    crops = torch.empty(
        views, channels, *largest_source_box(config.views.size, config.views.scale), dtype=torch.int16, device=GPU
    )
    place = torch.empty(views, 3, dtype=torch.float64, device=GPU)
    scale = torch.empty(views, channels, device=GPU)
    changes = torch.tensor([0.1, 0.7, 1.1, 1.2]).repeat(views, channels, 1)
    of_a_view = OBJECTIVES[config.method].objective.draw(config.views.size, np.random.default_rng(0))
    drawn = {
        name: torch.empty(views, *values.shape, dtype=torch.from_numpy(values).dtype, device=GPU)
        for name, values in of_a_view.items()
    }
    return ViewPairBatch(crops, place, place, place, place, place > 0, scale, scale, changes, drawn)


class _Generator(torch.Generator):
    """One that passes for the device's."""

    device = GPU

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


_in_place_of = nn.Module.to


def _to(module: nn.Module, *device: torch.device, **changes: Any) -> nn.Module:
    """Moves each parameter and buffer to the device once, wherever it is used; torch's own fails on a second use."""
    if not device:
        return _in_place_of(module, **changes)
    moved: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.device == device[0]:
                    continue
                if tensor not in moved:
                    how: Any = {"dtype": tensor.dtype, "device": device[0], "requires_grad": tensor.requires_grad}
                    copy = torch.empty_strided(tensor.shape, tensor.stride(), **how)
                    moved[tensor] = nn.Parameter(copy, tensor.requires_grad) if tensors is part._parameters else copy
                tensors[name] = moved[tensor]
    return module
