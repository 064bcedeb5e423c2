"""How much memory and arithmetic a training step takes, and how much memory there is; nothing is computed for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_pgl.networks.hardware import autocast_type
from pretraining.objectives import Objective
from pretraining.settings.config import PretrainConfig
from pretraining.training.networks import bytes_drawn, make_objective
from pretraining.views.rendering import largest_source_box

# Counted is what torch asks for. Resident memory was up to 1.6 times that (buffers of the libraries, memory that the
# allocator keeps), and this much more whatever the batch; docs/cluster.md has the figures.
_OVERHEAD = 1.6
_LIBRARIES = 300 * 2**20

# Between these the peak is straight: with fewer small views it comes later, when more of the gradients are there.
_PAIRS = (512, 1024)

_UNLIMITED = 2**60
_LIMITS = (  # of both versions of control groups: limit, use, and the caches within it, which count as free
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def bytes_of_step(config: PretrainConfig, workers: int, processes: int) -> tuple[float, float]:
    """Resident bytes that training adds to a process on a CPU: whatever the batch, and for each pair of a part."""
    size = (config.encoder_channels, *config.views.size)
    with torch.device("meta"):
        objective = make_objective(config, autocast_type(torch.device("cpu")))
    few, many = (_peak_bytes(objective, size, pairs) for pairs in _PAIRS)
    per_pair = (many - few) / (_PAIRS[1] - _PAIRS[0])
    weights = 4 * sum(p.numel() for p in objective.parameters())
    trained = 4 * sum(p.numel() for p in objective.parameters() if p.requires_grad)
    state = weights + (1 + (config.optimizer_name == "adamw")) * trained  # with momentum and AdamW's second one
    buckets = trained * (processes > 1)  # in which processes exchange gradients
    saved = state  # the copy that is written while training continues
    fixed = state + buckets + saved + _OVERHEAD * max(trained, few - _PAIRS[0] * per_pair) + _LIBRARIES
    crop = 2 * config.encoder_channels * torch.Size(largest_source_box(config.views.size, config.views.scale)).numel()
    loaded = 2 * (crop + bytes_drawn(config))
    return fixed, _OVERHEAD * per_pair + loaded * (1 + 2 * workers)  # each worker is two batches ahead


def flop_of_pair(config: PretrainConfig) -> int:
    """Operations of a step for one pair of views, see `flop`."""
    with torch.device("meta"):
        objective = make_objective(config, None)
    return flop(objective.dry_forward, (2, config.encoder_channels, *config.views.size))


def flop(network: Callable[[Tensor], Any], shape: Sequence[int]) -> int:
    """Additions and multiplications of convolutions and matrix products, forward and backward, as PyTorch counts them.

    Args:
        network: On the device "meta".
        shape: Shape of its input.
    """
    with FlopCounterMode(display=False) as counter:
        outputs = tree_leaves(network(torch.empty(*shape, device="meta")))
        torch.stack([output.sum() for output in outputs]).sum().backward()
    return int(counter.get_total_flops())


def available_memory() -> int | None:
    """Bytes that can still be taken, by the system and by the process's control groups; None where unknown."""
    limits = [*_left_in_system(), *_left_in_control_groups()]
    return max(0, min(limits)) if limits else None


class MemoryCounter(TorchDispatchMode):
    """Follows the bytes of all tensors that exist at a time.

    Attributes:
        peak: The most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function and counts the storages it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = None
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self._now -= size


class _DryForward(nn.Module):
    """`Objective.dry_forward` as the forward pass of a module, which `functional_call` needs."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective

    def forward(self, views: Tensor) -> Tensor:
        return self.objective.dry_forward(views)


def _peak_bytes(objective: Objective, view_size: tuple[int, int, int, int], pairs: int) -> int:
    """Bytes of a forward and backward pass, gradients included, weights not; with tensors that hold no values."""
    networks = _DryForward(objective)
    tensors = [*networks.named_parameters(), *networks.named_buffers()]
    with FakeTensorMode():
        without_values = {
            name: torch.empty_strided(t.shape, t.stride(), requires_grad=t.requires_grad) for name, t in tensors
        }
        with MemoryCounter() as counter:
            views = torch.empty(2 * pairs, *view_size)
            torch.func.functional_call(networks, without_values, (views,)).backward()
    return counter.peak


def _left_in_system() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _left_in_control_groups() -> Iterator[int]:
    """Limits set by containers and Slurm, in bytes left."""
    for folder in _control_groups():
        for limit, used, cache in _LIMITS:
            try:
                most, now = int((folder / limit).read_text()), int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # not there, or "max"
                continue
            if most < _UNLIMITED:
                yield most - now + int(stat.get(cache, 0))


def _control_groups() -> Iterator[Path]:
    """Folders of the control groups that this process is in, and of those around them."""
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers in ("", "memory"):
            base = Path("/sys/fs/cgroup") / controllers
            inner = base / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base))
