"""Settings that no run can have, in the words of the options that set them."""

from __future__ import annotations

from collections.abc import Sequence

from pretraining.objectives.mae import number_of_blocks
from pretraining.settings.config import PretrainConfig


def check_config(config: PretrainConfig) -> None:
    """Refuses settings that no run can have.

    Raises:
        ValueError: Names the option, its value and what is allowed.
    """
    _require_ranges(config)
    low, high = config.views.scale
    problems = {
        f"-scale {low:g} {high:g}: give two positive sizes in rising order": not 0 < low <= high,
        f"-b {config.batch_size}: not a multiple of -accumulate {config.accumulate}": bool(
            config.batch_size % config.accumulate
        ),
        f"-lr {config.learning_rate}: must be positive": not 0 < config.peak_learning_rate < float("inf"),
        f"-wd {config.weight_decay}: must not be negative": not 0 <= config.weight_decay < float("inf"),
        f"-temperature {config.temperature}: must be positive, 0.1 is usual": not 0 < config.temperature < float("inf"),
        f"-restoration_weight {config.restoration_weight}: must not be negative": not (
            0 <= config.restoration_weight < float("inf")
        ),
        f"-strides {config.encoder_strides}: powers of two between 1 and 16": any(
            stride not in (1, 2, 4, 8, 16) for stride in config.encoder_strides
        ),
    }
    problems |= _problems_of_network(config)
    if config.weights is not None:
        given = "-weights " + " ".join(f"{weight:g}" for weight in config.weights)
        sources = len(config.datasets)
        problems[f"{given}: give {sources}, one for each of -d"] = len(config.weights) != sources
        problems[f"{given}: give numbers that are not negative, at least one of them positive"] = not (
            all(0 <= weight < float("inf") for weight in config.weights) and any(config.weights)
        )
    for name, value in vars(config.views.intensity).items():
        if isinstance(value, tuple):
            problems[f"-{name} {value[0]:g} {value[1]:g}: give two values >= 0 in rising order"] = not (
                0 <= value[0] <= value[1]
            )
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise ValueError(problem)


def _require_ranges(config: PretrainConfig) -> None:
    """Refuses what the options do not let through, but a ``config.json`` could hold."""
    at_least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "hidden_channels": 1, "out_channels": 1}
    at_least |= {"pairs_per_epoch": 1, "in_channels": 1, "validation_scans": 0, "warmup_epochs": 0, "seed": 0}
    for name, least in at_least.items():
        if (value := getattr(config, name)) is not None and value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
    if config.align_stages is not None and not config.align_stages:
        raise ValueError("-align_stages: name at least one map")
    if min(config.views.size) < 1:
        raise ValueError(f"-patch {_spaced(config.views.size)}: give sizes of at least 1")
    if isinstance(config.spacing, tuple) and min(config.spacing) <= 0:
        raise ValueError(f"-spacing {_spaced(config.spacing)}: give positive sizes")
    shares = {"target_decay": config.target_decay, "mask_ratio": config.mask_ratio}
    shares |= {"min_overlap": config.views.min_overlap}
    shares |= {k: v for k, v in vars(config.views.intensity).items() if k.endswith("probability")}
    flips = config.views.flip_probability
    each = flips if isinstance(flips, tuple) else (flips,)
    for name, share in [*shares.items(), *(("flip_probability", flip) for flip in each)]:
        if not 0 <= share <= 1:
            raise ValueError(f"-{name} {share}: give a number from 0 to 1")


def _problems_of_network(config: PretrainConfig) -> dict[str, bool]:
    """What is wrong with encoder and levels, as text and whether it is so."""
    problems: dict[str, bool] = {}
    if config.align_stages is not None:
        given, maps = " ".join(map(str, config.align_stages)), len(config.map_strides)
        problems[f"-align_stages {given}: this encoder has the maps 0 to {maps - 1}"] = not all(
            0 <= level < maps for level in config.align_stages
        )
        problems[f"-align_stages {given}: only pgl, pgl_nce and pgl_mae align"] = config.method not in (
            *("pgl", "pgl_nce", "pgl_mae"),
        )
    problems |= _problems_of_negatives(config)
    problems |= _problems_of_hiding(config)
    problems |= _problems_of_instance_norm(config)
    if config.planned_network is None:
        return problems
    own = f"-a {config.architecture}"
    problems[f"-strides: {own} has those of its plan; leave it out"] = config.strides is not None
    problems[f"-norm: {own} has that of its plan; leave it out"] = config.norm != "batch"
    deepest = config.encoder_strides
    problems[f"-patch {_spaced(config.views.size)}: {own} needs multiples of {_spaced(deepest)}"] = any(
        size % stride for size, stride in zip(config.views.size, deepest, strict=True)
    )
    return problems


def _problems_of_negatives(config: PretrainConfig) -> dict[str, bool]:
    """A map of a single cell has none."""
    if config.method != "pgl_nce":
        return {}
    view, maps = config.views.size, config.map_strides
    single = [
        level
        for level in config.levels
        if level < len(maps) and all(size <= stride for size, stride in zip(view, maps[level], strict=True))
    ]
    return {
        f"-patch {_spaced(view)}: map {level} of the encoder, of stride {_spaced(maps[level])}, has a single cell, and "
        "pgl_nce tells the cells of a view apart; use a larger -patch, smaller -strides or finer -align_stages": True
        for level in single
    }


def _problems_of_hiding(config: PretrainConfig) -> dict[str, bool]:
    """Where nothing is hidden, mae has nothing to learn from."""
    if config.method != "mae":
        return {}
    view, block = config.views.size, config.mask_block
    blocks, hidden = number_of_blocks(view, block, config.mask_ratio)
    return {
        f"-mask_ratio {config.mask_ratio:g} -patch {_spaced(view)}: of {blocks} block{'s' if blocks > 1 else ''} of "
        f"{_spaced(block)} voxels none is hidden, and mae restores hidden ones alone; use a larger -mask_ratio or "
        "-patch": hidden < 1
    }


def _problems_of_instance_norm(config: PretrainConfig) -> dict[str, bool]:
    """A map of a single cell has no variance."""
    network = config.planned_network
    norm = config.norm if network is None else str(network.kwargs.get("norm_op"))
    if "instance" not in norm.lower():
        return {}
    deepest = config.levels[-1] if config.method in ("pgl", "pgl_nce") else len(config.map_strides) - 1
    view, computed = config.views.size, config.map_strides[: deepest + 1]
    remedy = "smaller -strides or -norm batch" if network is None else "or a plan for such patches"
    return {
        f"-patch {_spaced(view)}: a map of the encoder, of stride {_spaced(strides)}, has a single cell, and instance "
        f"norm needs two; use a larger -patch, {remedy}": True
        for strides in computed
        if all(size <= stride for size, stride in zip(view, strides, strict=True))
    }


def _spaced(values: Sequence[float]) -> str:
    return " ".join(map(str, values))
