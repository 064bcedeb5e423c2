"""What a run tells its user at the start and at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretraining.citations import citations_of
from pretraining.config import PretrainConfig
from pretraining.data import Volume
from pretraining.plans_from import DEFAULT_PLANS
from pretraining.run_folder import RunFolder
from pretraining.training.loop import Pool, steps_per_epoch


def opening_lines(config: PretrainConfig, pool: Pool, device: str, processes: int) -> list[str]:
    """What to cite, and what is going to be trained on what."""
    spacing = median_spacing([*pool.training, *pool.validation])
    held_out = f"{len(pool.validation)} held out" if pool.validation else "none held out, the metric uses the same"
    return [
        "Please cite the following when using this encoder:",
        *(text for entry in citations_of(config.method) for text in entry["apa_citations"]),
        "",
        f"{len(pool.training)} scans to train on, {held_out}; spacing {_numbers(spacing)} mm (z, y, x)",
        f"views of {_numbers(config.views.size)} voxels, encoder strides {_numbers(config.encoder_strides)}",
        f"{config.epochs} epochs of {steps_per_epoch(config, len(pool.training))} steps of {config.batch_size} pairs, "
        f"{config.optimizer_name}, peak learning rate {config.peak_learning_rate:g}",
        f"device {device}, {processes} process(es)",
    ]


def next_commands(config: PretrainConfig, folder: RunFolder) -> list[str]:
    """How to fine-tune: with the plans that were followed, or those of the encoder's network."""
    if config.plans is not None:
        name, plans, configuration = config.plans.split("/")
        dataset, first_line = str(int(name.removeprefix("Dataset").split("_")[0])), f"Next, for {name}:"
        prepare = f"nnUNetv2_preprocess -d {dataset} -plans_name {plans} -c {configuration}"
    else:
        dataset, configuration = "DATASET", "3d_fullres"
        first_line = "Next, for a data set with labels (DATASET is its id):"
        size = config.architecture.removeprefix("resenc_").upper() if config.architecture.startswith("resenc_") else ""
        plans = f"nnUNetResEncUNet{size}Plans" if size else DEFAULT_PLANS
        planner = f" -pl nnUNetPlannerResEnc{size}" if size else ""
        prepare = f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}{planner}"
    option = "" if plans == DEFAULT_PLANS else f" -p {plans}"
    return [
        first_line,
        f"  {prepare}",
        '  export nnUNet_extTrainer="$(pgl_extension)"',
        f'  export PGL_CHECKPOINT="{folder.final}"',
        f"  nnUNetv2_train {dataset} {configuration} 0 -tr nnUNetTrainerPGL{option}",
    ]


def median_spacing(volumes: Sequence[Volume]) -> tuple[float, float, float]:
    """Per axis (z, y, x), in mm."""
    z, y, x = np.median([volume.spacing for volume in volumes], axis=0).tolist()
    return (z, y, x)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
