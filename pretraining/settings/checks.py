"""Settings that no run can have, in the words of the options that set them."""

from __future__ import annotations

from collections.abc import Iterator

from nnunetv2_pgl.errors import PGLError, counted
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import Triple
from pretraining.option_fields import require_ranges, spelled
from pretraining.settings.config import PretrainConfig
from pretraining.views.geometry import number_of_blocks


def check_config(config: PretrainConfig) -> None:
    """Refuses settings that no run can have.

    Raises:
        PGLError: Names the option, its value and what is allowed.
    """
    require_ranges(config, config.preset_settings)
    for problem in _problems(config):
        raise PGLError(problem)


def _problems(config: PretrainConfig) -> Iterator[str]:
    if config.batch_size % config.accumulate:
        yield f"-b {config.batch_size}: not a multiple of -accumulate {config.accumulate}"
    if config.planned_network is None and any(stride not in (1, 2, 4, 8, 16) for stride in config.encoder_strides):
        yield f"-strides {spelled(config.encoder_strides)}: give powers of two from 1 to 16"
    if config.weights is not None:
        given = f"-weights {spelled(config.weights)}"
        if len(config.weights) != len(config.datasets):
            yield f"{given}: give {len(config.datasets)}, one for each of -d"
        if not all(0 <= weight < float("inf") for weight in config.weights) or not any(config.weights):
            yield f"{given}: give numbers that are not negative, at least one of them positive"
    if config.align_stages is not None:
        yield from _problems_of_stages(config, config.align_stages)
    if config.method == "pgl_nce":
        yield from _problems_of_negatives(config)
    if config.method == "mae":
        yield from _problems_of_masking(config)
    yield from _problems_of_instance_norm(config)
    if config.planned_network is not None:
        yield from _problems_of_plan(config)


def _problems_of_stages(config: PretrainConfig, stages: tuple[int, ...]) -> Iterator[str]:
    given, count = f"-align_stages {spelled(stages)}", len(config.stage_strides)
    if not stages:
        yield "-align_stages: name at least one stage"
    if not all(0 <= stage < count for stage in stages):
        yield f"{given}: this encoder has the stages 0 to {count - 1}"
    if not METHODS[config.method].aligns:
        *most, last = (method.name for method in METHODS.values() if method.aligns)
        yield f"{given}: only {', '.join(most)} and {last} align"


def _problems_of_negatives(config: PretrainConfig) -> Iterator[str]:
    """A stage with a single cell has none."""
    for stage in config.stages:
        if _has_a_single_cell(config, config.stage_strides[stage]):
            yield (
                f"-patch {spelled(config.views.size)}: stage {stage} of the encoder, of stride "
                f"{spelled(config.stage_strides[stage])}, has a single cell, and pgl_nce tells the cells of a view "
                "apart; use a larger -patch, smaller -strides or finer -align_stages"
            )


def _problems_of_masking(config: PretrainConfig) -> Iterator[str]:
    """Where nothing is masked, mae has nothing to learn from."""
    view, block = config.views.size, config.mask_block
    blocks, masked = number_of_blocks(view, block, config.mask_ratio)
    if masked < 1:
        yield (
            f"-mask_ratio {config.mask_ratio:g} -patch {spelled(view)}: of {counted(blocks, 'block')} "
            f"of {spelled(block)} voxels none is masked, and mae learns from nothing else; use a larger -mask_ratio "
            "or -patch"
        )


def _problems_of_instance_norm(config: PretrainConfig) -> Iterator[str]:
    """A stage with a single cell has no variance."""
    network = config.planned_network
    norm = config.norm if network is None else str(network.kwargs.get("norm_op"))
    if "instance" not in norm.lower():
        return
    # Methods that restore images use all stages.
    method = METHODS[config.method]
    last = config.stages[-1] if method.aligns and not method.has_decoder else len(config.stage_strides) - 1
    remedy = "smaller -strides or -norm batch" if network is None else "or a plan for such patches"
    for strides in config.stage_strides[: last + 1]:
        if _has_a_single_cell(config, strides):
            yield (
                f"-patch {spelled(config.views.size)}: a stage of the encoder, of stride {spelled(strides)}, has a "
                f"single cell, and instance norm needs two; use a larger -patch, {remedy}"
            )


def _problems_of_plan(config: PretrainConfig) -> Iterator[str]:
    own, strides = f"-a {config.architecture}", config.encoder_strides
    if config.strides is not None:
        yield f"-strides: {own} has those of its plan; leave it out"
    if config.norm != "batch":
        yield f"-norm: {own} has that of its plan; leave it out"
    if any(size % stride for size, stride in zip(config.views.size, strides, strict=True)):
        yield f"-patch {spelled(config.views.size)}: {own} needs multiples of {spelled(strides)}"


def _has_a_single_cell(config: PretrainConfig, strides: Triple) -> bool:
    return all(size <= stride for size, stride in zip(config.views.size, strides, strict=True))
