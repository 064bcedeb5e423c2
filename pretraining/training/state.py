"""Everything a run needs to go on: written atomically after an epoch, read back for ``--c``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.checkpoint import CheckpointError, atomic_save, load_plain
from pretraining.objectives import Objective

_FORMAT_VERSION = 1


@dataclass
class TrainingState:
    """A run between two epochs.

    Attributes:
        objective: Networks of the method.
        optimizer: With its momenta.
        epoch: Epochs done.
        history: One record per epoch.
        baseline: Correspondence before training.
        config: Settings as plain values, for the reader.
        scans: Names of the scans trained on, which decide what each draw means.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    scans: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes ``checkpoint_latest.pth`` atomically.

        Raises:
            OSError: If it cannot be written; the former one is intact.
        """
        content = {
            "training_state": _FORMAT_VERSION,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "baseline": self.baseline,
            "config": self.config,
            "scans": self.scans,
        }
        atomic_save(content, path)

    def restore(self, path: Path) -> None:
        """Fills networks, optimiser and history from ``checkpoint_latest.pth``.

        Random numbers need no state: they follow from the seed and the number of the draw or step.

        Raises:
            CheckpointError: If the file cannot be read, or is of another network or pool of scans.
        """
        content = load_plain(path)
        if content.get("training_state") != _FORMAT_VERSION:
            raise CheckpointError(f"{path}: not the state of a pre-training run that this version can continue")
        if content.get("scans") != self.scans:
            changed = sorted(set(content.get("scans", [])) ^ set(self.scans))
            raise CheckpointError(
                f"{path}: the run was started on other scans ({len(changed)} came or went: "
                f"{', '.join(changed[:3])}...); restore the data, or start a new run with -o"
            )
        try:
            self.objective.load_state_dict(content["objective"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: does not fit the settings in config.json ({reason})") from error
        self.epoch = int(content["epoch"])
        self.history = list(content["history"])
        self.baseline = content["baseline"]
