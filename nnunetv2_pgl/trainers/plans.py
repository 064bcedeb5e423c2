"""What our trainers read from nnU-Net's plans: which network a model has, and a run that is described in full.

"pgl_network": {"architecture": "resnet50", "norm": "instance", "centred": true}, or {"architecture": "plan"}. The names
of nnU-Net's networks (plain, resenc_m, ...), as `pgl_compare` writes them, also mean the plan's network.

"pgl_run", which `pgl_compare` writes: {"initialisation": "random", "seed": 0,
"folds": {"0": {"training_cases": ["case_001", ...], "validation_cases": ["case_007", ...]}, ...}}
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks import PGLSegmenter, PlanError, PlannedNetwork
from nnunetv2_pgl.networks.hardware import autocast_type
from nnunetv2_pgl.networks.planned import PLANNERS, network_strides

PLANS_KEY = "pgl_network"
RESNET = "resnet50"
PLAN = "plan"
RUN_KEY = "pgl_run"
RANDOM = "random"


@dataclass(frozen=True)
class ModelNetwork:
    """What nnU-Net's plans do not say about the network.

    Attributes:
        architecture: "resnet50", "plan", or the name of one of nnU-Net's networks.
        norm: The ResNet-50's, as in its checkpoint; without one instance norm, since batch norm works badly with
            nnU-Net's two patches per batch.
        centred: See `ResNet50Encoder`.
    """

    architecture: str = RESNET
    norm: str = "instance"
    centred: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelNetwork:
        """The inverse of `to_dict`; also reads ``pgl["architecture"]`` of a checkpoint, which has a ``name``.

        Raises:
            PGLError: It is not known here.
        """
        architecture = values.get("architecture", values.get("name", RESNET))
        if architecture not in (known := (RESNET, PLAN, *PLANNERS)):
            raise PGLError(
                f"the network {architecture} is not known to this nnunetv2-pgl, which has {', '.join(known)}; install "
                "a newer version"
            )
        return cls(architecture, values.get("norm", cls.norm), values.get("centred", cls.centred))

    @classmethod
    def of_model(cls, folder: str) -> ModelNetwork | None:
        """That of the folds which are already in a model folder, if any."""
        plans_file = Path(folder, "plans.json")
        stored = json.loads(plans_file.read_text()).get(PLANS_KEY) if plans_file.is_file() else None
        return cls.from_dict(stored) if isinstance(stored, dict) else None

    @property
    def is_planned(self) -> bool:
        """Whether it is the plan's own network."""
        return self.architecture != RESNET

    def to_dict(self) -> dict[str, Any]:
        """What is stored; all of nnU-Net's networks lead to the same entry, since the plans say the rest."""
        if self.is_planned:
            return {"architecture": PLAN}
        return {"architecture": RESNET, "norm": self.norm, "centred": self.centred}

    def require_plan(self, plans: PlansManager, configuration: ConfigurationManager, origin: str) -> None:
        """Refuses plans whose network is of another class than the encoder is made for.

        The PGLError says what the plan has, what ``origin``, the encoder, is for, and how to plan for it.
        """
        if not self.is_planned:
            return
        where, remedy = f"{plans.plans_name} of {plans.dataset_name}", self._how_to_plan(plans)
        try:
            planned = PlannedNetwork.from_configuration(configuration, where)
        except PlanError as error:
            raise PGLError(f"{error}; {origin} needs {remedy}") from error
        if self.architecture != PLAN and planned.is_residual != (self.architecture != "plain"):
            needed = "PlainConvUNet" if self.architecture == "plain" else "ResidualEncoderUNet"
            raise PGLError(f"{where} has a {planned.short_name}, {origin} is for a {needed}: {remedy}")

    def _how_to_plan(self, plans: PlansManager) -> str:
        """The command that plans for the network, and the option that trains with it."""
        dataset = plans.dataset_name.split("_")[0].removeprefix("Dataset").lstrip("0")
        _, planner, name = PLANNERS.get(self.architecture, PLANNERS["plain"])
        option = "" if name == PLANNERS["plain"].plans else f" -pl {planner}"
        return f"plan with nnUNetv2_plan_experiment -d {dataset}{option} and train with -p {name}"


def require_3d(plans: dict[str, Any], configuration: str) -> None:
    """Ends nnU-Net's command with one line where a configuration is not 3D."""
    dimensions = len(PlansManager(plans).get_configuration(configuration).patch_size)
    if dimensions != 3:
        raise SystemExit(
            f"PGL's encoder is 3D, the configuration {configuration} is {dimensions}D: use 3d_fullres, 3d_lowres or "
            "3d_cascade_fullres"
        )


def build_network(
    plans: PlansManager, configuration: ConfigurationManager, inputs: int, outputs: int, deep_supervision: bool
) -> nn.Module:
    """The network that the plans name under ``pgl_network``, with random weights: nnU-Net's own, or the segmenter."""
    network = ModelNetwork.from_dict(plans.plans.get(PLANS_KEY) or {})
    if network.is_planned:
        planned: nn.Module = nnUNetTrainer.build_network_architecture(
            plans, configuration, inputs, outputs, deep_supervision
        )
        return planned
    return PGLSegmenter(
        inputs,
        outputs,
        strides=network_strides(configuration),
        norm=network.norm,  # type: ignore[arg-type]
        centred=network.centred,
        cpu_bfloat16=autocast_type(torch.device("cpu")) is torch.bfloat16,
    )


@dataclass(frozen=True)
class PlannedRun:
    """A training as the plans describe it: start, cases and seed.

    Attributes:
        initialisation: "random", or the name of the pre-training whose checkpoint the plans name.
        training_cases: Identifiers of the preprocessed cases to train on.
        validation_cases: Those to validate on.
        seed: What random weights and batches are drawn by.
        extra_epochs: Epochs that the training is longer than the trainer's.
    """

    initialisation: str
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    seed: int
    extra_epochs: int = 0

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], fold: int | str) -> PlannedRun | None:
        """The run of a fold that the plans describe, None if they describe no run.

        Raises:
            PGLError: It is incomplete, lacks the fold, or has no cases.
        """
        described = plans.get(RUN_KEY)
        if described is None:
            return None
        where = f"{RUN_KEY} in the plans {plans.get('plans_name')}"
        try:
            if str(fold) not in described["folds"]:
                raise PGLError(f"{where} has no fold {fold}: it has {', '.join(described['folds'])}")
            cases = described["folds"][str(fold)]
            training, validation = tuple(cases["training_cases"]), tuple(cases["validation_cases"])
            extra = int(described.get("extra_epochs", 0))
            run = cls(str(described["initialisation"]), training, validation, int(described["seed"]), extra)
        except (KeyError, TypeError) as error:
            raise PGLError(f"{where} is incomplete ({type(error).__name__}: {error})") from error
        if not training or not validation:
            raise PGLError(f"{where} has no training or no validation cases for fold {fold}")
        if not run.is_random and not (plans.get("pretrain_info") or {}).get("checkpoint_path"):
            raise PGLError(
                f"{where} starts from {run.initialisation}, but pretrain_info.checkpoint_path names no checkpoint"
            )
        return run

    @property
    def is_random(self) -> bool:
        """Whether it starts from random weights."""
        return self.initialisation == RANDOM

    def require_preprocessed(self, available: Collection[str], folder: str) -> None:
        """Refuses cases that nnU-Net has not preprocessed, with a PGLError that names the first of them."""
        missing = [case for case in (*self.training_cases, *self.validation_cases) if case not in available]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise PGLError(f"case {missing[0]}{others} of {RUN_KEY} is not preprocessed in {folder}")

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
