"""Everything a run needs to continue: copied to the host to be written, read back for ``--c``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from nnunetv2_pgl.formats.weights_only import CheckpointError, load_weights_only
from pretraining.objectives import Objective
from pretraining.settings.config import PretrainConfig
from pretraining.training.networks import make_objective
from pretraining.training.optimisation import make_optimizer

_FORMAT_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)  # 1 and 2 count epochs, and 1 has none in progress


@dataclass
class EpochSoFar:
    """What the epoch in progress has added up.

    Attributes:
        steps: Steps done.
        sums: Of the values of `Objective.output` over these steps, on the training device; None before the first.
        waited: Seconds waited for batches.
        seconds: Seconds it has taken.
    """

    steps: int = 0
    sums: Tensor | None = None
    waited: float = 0.0
    seconds: float = 0.0

    @property
    def total(self) -> Tensor:
        """The sums, once there is a step."""
        assert self.sums is not None
        return self.sums

    def add(self, output: Tensor, waited: float) -> None:
        """Counts a step."""
        self.steps += 1
        self.sums = output if self.sums is None else self.sums + output
        self.waited += waited


@dataclass
class TrainingState:
    """A run between two steps.

    Attributes:
        objective: Networks of the method.
        optimizer: With its momenta.
        step: Steps done.
        steps_per_epoch: Steps after which an epoch's record is written.
        so_far: What the epoch in progress has added up.
        history: One record per epoch; of several processes, the main one has it.
        baseline: Correspondence before training.
        config: Settings as plain values, for the reader.
        scans: Names of the scans trained on, which decide what each draw means.
        scaler: Scales losses whose gradients are in float16; None where they are not.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    step: int = 0
    steps_per_epoch: int = 1
    so_far: EpochSoFar = field(default_factory=EpochSoFar)
    history: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    scans: list[str] = field(default_factory=list)
    scaler: torch.amp.GradScaler | None = None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return (self.step - self.so_far.steps) // self.steps_per_epoch

    def on_host(self) -> dict[str, Any]:
        """A copy that later steps do not change, as it is written to ``checkpoint_latest.pth``; tensors on the CPU."""
        copies: dict[Any, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:  # nnU-Net's networks hold tensors under two names: one copy
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in copies:
                copies[key] = tensor.detach().to("cpu", copy=True)
            return copies[key]

        content = {
            "training_state": _FORMAT_VERSION,
            "objective": dict(self.objective.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "so_far": vars(self.so_far),
            "history": self.history,
            "step": self.step,
            "baseline": self.baseline,
            "config": self.config,
            "scans": self.scans,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return tree_map_only(Tensor, copied, content)

    def restore(self, path: Path) -> None:
        """Fills networks, optimiser and history from ``checkpoint_latest.pth``.

        Random numbers need no state: they follow from the seed and the number of the draw or step.

        Raises:
            CheckpointError: If the file cannot be read, is damaged, or is of another network or pool of scans.
        """
        content = load_weights_only(path)
        if content.get("training_state") not in _READABLE_VERSIONS:
            raise CheckpointError(
                f"{path}: not the state of a run that this version can continue; continue it with the version that it "
                "was written with, or start a new run with -o"
            )
        scans = content.get("scans")
        if scans != self.scans:
            changed = sorted(set(map(str, scans if isinstance(scans, list) else [])) ^ set(self.scans))
            raise CheckpointError(
                f"{path}: the run was started on other scans ({len(changed)} were added or removed: "
                f"{', '.join(changed[:3])}...); restore the data, or start a new run with -o"
            )
        try:
            self._fill(content)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # torch checks little of what it is given
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path}: damaged, or does not fit the settings in config.json ({reason})") from error

    def _fill(self, content: dict[str, Any]) -> None:
        self.objective.load_state_dict(content["objective"])
        for group, own in zip(content["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            # How the optimiser computes is a matter of this device and this torch.
            group.update({name: own[name] for name in ("foreach", "fused") if name in own})
        self.optimizer.load_state_dict(content["optimizer"])
        for weight, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    # Fused kernels go through momenta and weights in the order of memory, but torch keeps the layout
                    # that was saved: versions until 0.1.0 had all networks in channels last.
                    values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        if self.scaler is not None and content.get("scaler") is not None:
            self.scaler.load_state_dict(content["scaler"])
        self.so_far = EpochSoFar(**content.get("so_far", {}))
        if self.so_far.sums is not None:
            self.so_far.sums = self.so_far.sums.to(next(self.objective.parameters()).device)
        self.history, self.baseline = content["history"], content["baseline"]
        if content["training_state"] < 3:
            self.step = content["epoch"] * self.steps_per_epoch + self.so_far.steps
        else:
            self.step = content["step"]
        steps_of_records = len(self.history) * self.steps_per_epoch
        if self.so_far.steps < 0 or self.step != steps_of_records + self.so_far.steps:
            raise ValueError(f"{len(self.history)} records do not belong to {self.step!r} steps")


def initial_state(config: PretrainConfig, device: torch.device, precision: torch.dtype | None) -> TrainingState:
    """A run before its first epoch."""
    objective = make_objective(config, precision).to(device)
    optimizer = make_optimizer(config.optimizer_name, objective, config.peak_learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type) if precision is torch.float16 else None
    return TrainingState(objective, optimizer, config=config.to_dict(), scaler=scaler)
