"""A plans file for each (initialisation, fraction, seed): nnU-Net's own way to keep models apart.

The preprocessed data are those of the plans they are copied from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_pgl.trainers.plans import PLANS_KEY, RANDOM, RUN_KEY
from pretraining.comparison.derived import DECODER
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import ComparisonFolder, read_json, write_json
from pretraining.comparison.inits import Initialisation, random_network
from pretraining.comparison.runs import TrainingRun, plans_name
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Splits


def base_plans(settings: ComparisonSettings) -> Path:
    """The plans that all others are copies of."""
    return Path(nnUNet_preprocessed) / settings.dataset / f"{settings.plans}.json"


def plans_of_run(
    folder: ComparisonFolder,
    settings: ComparisonSettings,
    splits: Splits,
    inits: Sequence[Initialisation],
    run: TrainingRun,
    extra_epochs: int = 0,
) -> dict[str, Any]:
    """The content of a run's plans file; the same for all folds. Says by how many epochs it is longer than others."""
    (init,) = (init for init in inits if init.name == run.init)
    plans = read_json(base_plans(settings))
    plans["plans_name"] = plans_name(folder, settings, run)
    checkpoint = init.checkpoint(folder)
    if checkpoint is None:
        plans.pop("pretrain_info", None)
        plans[PLANS_KEY] = random_network(inits)
    else:
        plans.pop(PLANS_KEY, None)  # the trainer takes it from the checkpoint
        plans["pretrain_info"] = {"checkpoint_path": str(checkpoint)}
        if init.kind == DECODER:
            plans["pretrain_info"]["transfer_decoder"] = True
    plans[RUN_KEY] = {
        "comparison": folder.name,
        "initialisation": RANDOM if init.is_random else run.init,
        "seed": run.seed,
        "folds": {
            str(number): {
                "training_cases": list(fold.training(run.fraction, run.seed)),
                "validation_cases": list(fold.validation),
            }
            for number, fold in enumerate(splits.folds)
        },
    }
    if extra_epochs:
        plans[RUN_KEY]["extra_epochs"] = extra_epochs
    return plans


def write_plans(settings: ComparisonSettings, plans: dict[str, Any]) -> Path:
    """Writes a plans file beside the one it was copied from, unless it is there.

    Raises:
        ComparisonError: There is one of that name with another content: models may have been trained with it.
    """
    path = base_plans(settings).with_name(f"{plans['plans_name']}.json")
    if not path.exists():
        write_json(path, plans)
        return path
    stored = read_json(path)
    different = sorted(key for key in stored.keys() | plans.keys() if stored.get(key) != plans.get(key))
    if different:
        raise ComparisonError(
            f"{path} is there, and differs in {', '.join(different)}: was {settings.plans} planned anew, or is it "
            "of another comparison? Start another comparison with -o"
        )
    return path
