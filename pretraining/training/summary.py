"""What a run reports at the start and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_pgl.errors import counted, size_text
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PLANNERS
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import DEFAULT_PLANS
from pretraining.training.loop import steps_per_epoch
from pretraining.training.pool import Pool, median_spacing
from pretraining.training.run_folder import RunFolder


def opening_lines(config: PretrainConfig, pool: Pool, device: str, processes: int) -> list[str]:
    """What to cite, and what is going to be trained on what."""
    spacing = median_spacing(pool.volumes)
    held_out = f"{len(pool.validation)} held out" if pool.validation else "none held out"
    measured_on = "" if pool.validation else ": the correspondence is measured on training scans"
    steps = steps_per_epoch(config, len(pool.training))
    return [
        "Please cite the following when using this encoder:",
        *(text for entry in METHODS[config.method].citations for text in entry["apa_citations"]),
        "",
        *_preset_lines(config),
        f"{len(pool.training)} scans to train on, {held_out}{measured_on}; spacing {size_text(spacing)} mm (z, y, x)",
        f"views of {size_text(config.views.size)} voxels, encoder strides {size_text(config.encoder_strides)}, padding "
        f"{config.padding}, method {config.method}",
        f"{counted(config.epochs, 'epoch')} of {counted(steps, 'step')} of {counted(config.batch_size, 'pair')}, "
        f"{config.optimizer_name}, peak learning rate {config.peak_learning_rate:g}",
        f"device {device}, {processes} process{'es' if processes > 1 else ''}",
    ]


def licence_line(sources: Sequence[Mapping[str, Any]]) -> str:
    """The licence of each source, which the checkpoint records."""
    stated = [f"{source['name']}: {source['licence'] or 'not stated'}" for source in sources]
    return f"Licences of the scans, from dataset.json: {'; '.join(stated)}"


def _preset_lines(config: PretrainConfig) -> list[str]:
    """Which settings the run has, what was changed, and which optimiser the batch has led to."""
    name = {
        "paper": "The paper's settings (--paper)",
        "recommended": "The recommended settings (the paper's: --paper)",
        "published": "The settings published for mae (docs/method.md)",
    }[config.preset]
    not_reported = {"datasets", "in_channels", "exclude", "network", "preprocessing", "seed", "modality", "use_masks"}
    if config.planned_network is not None:
        not_reported.add("norm")  # the network has its own
    changed = {
        setting: f"{setting} {'none' if value is None else value}"
        for setting, value, _ in config.differences(config.preset_settings)
        if setting.split(".")[0] not in not_reported
    }
    lines = [name + (f", changed: {', '.join(changed.values())}" if changed else "")]
    # What no method names is used by all.
    own = METHODS[config.method].used_settings
    others = {name for method in METHODS.values() for name in method.used_settings} - own
    if unused := [text for setting, text in changed.items() if setting.startswith(tuple(others))]:
        lines.append(f"WARNING: {config.method} does not use {', '.join(unused)}")
    if config.preset == "paper" and config.optimizer is None and config.optimizer_name != "lars":
        lines.append(
            f"{config.optimizer_name} instead of the paper's lars, which learns more slowly with {config.batch_size} "
            "pairs per step; -optimizer lars overrides this"
        )
    return lines


def next_commands(config: PretrainConfig, folder: RunFolder) -> list[str]:
    """How to fine-tune: with the plans that were followed, or those of the encoder's network."""
    if config.plans is not None:
        name, plans, configuration = config.plans.split("/")
        dataset, first_line = str(int(name.removeprefix("Dataset").split("_")[0])), f"Next, for {name}:"
        prepare = f"nnUNetv2_preprocess -d {dataset} -plans_name {plans} -c {configuration}"
    else:
        dataset, configuration = "DATASET", "3d_fullres"
        first_line = "Next, for a dataset with labels (DATASET is its id):"
        _, planner, plans = PLANNERS.get(config.architecture, PLANNERS["plain"])
        planner = "" if plans == DEFAULT_PLANS else f" -pl {planner}"
        prepare = f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}{planner}"
    option = "" if plans == DEFAULT_PLANS else f" -p {plans}"
    return [
        first_line,
        f"  {prepare}",
        '  export nnUNet_extTrainer="$(pgl_extension)"',
        f'  export PGL_CHECKPOINT="{folder.final}"',
        f"  nnUNetv2_train {dataset} {configuration} 0 -tr nnUNetTrainerPGL{option}",
    ]
