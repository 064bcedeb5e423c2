"""A run that its plans describe in full: start, cases of each fold and seed, under ``pgl_run``; `pgl_compare` does so.

"pgl_run": {"initialisation": "random", "seed": 0,
"folds": {"0": {"training_cases": ["case_001", ...], "validation_cases": ["case_007", ...]}, ...}}
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunetv2_pgl.errors import PGLError

RUN_KEY = "pgl_run"
RANDOM = "random"


class PlannedRunError(PGLError):
    """A ``pgl_run`` that cannot be trained; the message says what is wrong with it."""


@dataclass(frozen=True)
class PlannedRun:
    """What the plans say about one training.

    Attributes:
        initialisation: "random", or the name of the pre-training whose checkpoint the plans name.
        training_cases: Identifiers of the preprocessed cases to train on.
        validation_cases: Those to validate on.
        seed: Of the random weights and of the batches.
        extra_epochs: Epochs that the training is longer than the trainer's.
    """

    initialisation: str
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    seed: int
    extra_epochs: int = 0

    @classmethod
    def of(cls, plans: Mapping[str, Any], fold: int | str) -> PlannedRun | None:
        """The run of a fold that the plans describe, None if they describe no run.

        Raises:
            PlannedRunError: It is incomplete, lacks the fold, or has no cases.
        """
        described = plans.get(RUN_KEY)
        if described is None:
            return None
        where = f"{RUN_KEY} in the plans {plans.get('plans_name')}"
        try:
            if str(fold) not in described["folds"]:
                raise PlannedRunError(f"{where} has no fold {fold}: it has {', '.join(described['folds'])}")
            cases = described["folds"][str(fold)]
            training, validation = tuple(cases["training_cases"]), tuple(cases["validation_cases"])
            extra = int(described.get("extra_epochs", 0))
            run = cls(str(described["initialisation"]), training, validation, int(described["seed"]), extra)
        except (KeyError, TypeError) as error:
            raise PlannedRunError(f"{where} is incomplete ({type(error).__name__}: {error})") from error
        if not training or not validation:
            raise PlannedRunError(f"{where} has no training or no validation cases for fold {fold}")
        if not run.is_random and not (plans.get("pretrain_info") or {}).get("checkpoint_path"):
            raise PlannedRunError(
                f"{where} starts from {run.initialisation}, but pretrain_info.checkpoint_path names no checkpoint"
            )
        return run

    @property
    def is_random(self) -> bool:
        """Whether it starts from random weights."""
        return self.initialisation == RANDOM

    def require_preprocessed(self, available: Collection[str], folder: str) -> None:
        """Refuses cases that nnU-Net has not preprocessed.

        Raises:
            PlannedRunError: Names the first of them.
        """
        missing = [case for case in (*self.training_cases, *self.validation_cases) if case not in available]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise PlannedRunError(f"case {missing[0]}{others} of {RUN_KEY} is not preprocessed in {folder}")

    def seed_all(self, epoch: int, rank: int) -> None:
        """Seeds torch, numpy and random for what is drawn from this epoch on; other epochs and ranks draw otherwise."""
        value = int(np.random.SeedSequence([self.seed, epoch, rank]).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)

    def __str__(self) -> str:
        longer = f", {self.extra_epochs} epochs longer" if self.extra_epochs else ""
        start = "random weights" if self.is_random else f"the encoder of {self.initialisation}"
        return (
            f"{RUN_KEY} of the plans: start from {start}{longer}, {len(self.training_cases)} training and "
            f"{len(self.validation_cases)} validation cases, seed {self.seed} for the random weights and for every "
            "batch and its augmentation, whatever nnUNet_n_proc_DA"
        )
