"""From the options of a command to the settings of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, replace
from typing import Any

from nnunetv2_pgl.command_line import CommandParser
from nnunetv2_pgl.errors import PGLError
from pretraining.option_fields import MAX_NUMBER, Option, add_options, given_values, spelled
from pretraining.settings.config import PretrainConfig, published_for_mae, recommended
from pretraining.settings.plans import PlanOptions, settings_of_plan
from pretraining.settings.table import GROUPS, RunOptions
from pretraining.views import IntensityRanges, ViewSettings

OPTION_CLASSES = (PretrainConfig, PlanOptions, ViewSettings, IntensityRanges, RunOptions)


class OptionParser(CommandParser):
    """Keeps the layout of the examples."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _integer(text, least=1)


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    return _integer(text, least=0)


def _integer(text: str, least: int) -> int:
    required = f"must be a whole number of at least {least}, got {text!r}"
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(required) from error
    if value < least:
        raise argparse.ArgumentTypeError(required)
    if value >= MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{text} is too large")
    return value


def adder(group: Any) -> Any:
    """A function that adds an option to a group under its name with one dash and with two."""

    def add(name: str, **keywords: Any) -> None:
        group.add_argument(f"-{name}", f"--{name}", **keywords)

    return add


def add_pretraining_options(parser: OptionParser, groups: Sequence[str] = GROUPS) -> None:
    """Adds the options under the headings ``groups``, and ``--paper``."""
    adder(parser)(
        "paper",
        action="store_true",
        default=None,
        help="the paper's settings in everything that is not given; of two defaults, the paper's is the second",
    )
    add_options(parser, OPTION_CLASSES, groups, default_of)


def default_of(owner: type, setting: Field[Any]) -> str:
    """The default of an option in words: of the recommended settings, the paper's where it differs, and mae's."""
    if owner in (PlanOptions, RunOptions):
        return _shown(setting, setting.default)
    ours, paper, mae = (
        _shown(setting, getattr(_part(owner, config), setting.name))
        for config in (recommended(), PretrainConfig(datasets=()), published_for_mae())
    )
    both = ours if ours == paper else f"{ours} / {paper}"
    # -m is what chooses these, and mae has no target path
    return both if mae == ours or setting.name in ("method", "target_decay") else f"{both}; mae: {mae}"


def _part(owner: type, config: PretrainConfig) -> Any:
    if owner is PretrainConfig:
        return config
    return config.views if owner is ViewSettings else config.views.intensity


def _shown(setting: Field[Any], value: Any) -> str:
    option: Option = setting.metadata["option"]
    if option.default_text is not None and value == setting.default:
        return option.default_text
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value in (None, ()) else spelled(value)


def settings_of(arguments: argparse.Namespace) -> PretrainConfig:
    """The settings of a new run: the recommended, the paper's or those published for the method, and what is given.

    Raises:
        PGLError: The options contradict each other, or name what is not there.
    """
    if getattr(arguments, "method", None) == "mae":  # pgl_preview, which draws views alone, has no -m
        return with_options(arguments, _published(arguments))
    return with_options(arguments, PretrainConfig(datasets=()) if arguments.paper else recommended())


def _published(arguments: argparse.Namespace) -> PretrainConfig:
    """The settings published for mae; another optimiser than its own gets the recommended weight decay and warm-up."""
    if arguments.paper:
        raise PGLError(
            "--paper -m mae: PGL's paper has no mae; leave --paper out, -m mae has the settings published for it"
        )
    base = published_for_mae()
    if arguments.optimizer in (None, base.optimizer):
        return base
    ours = recommended()
    return replace(base, weight_decay=ours.weight_decay, warmup_epochs=ours.warmup_epochs)


def with_options(arguments: argparse.Namespace, base: PretrainConfig) -> PretrainConfig:
    """The settings with every option that was given; what is given comes before what a plan has.

    Raises:
        PGLError: The options contradict each other, or name what is not there.
    """
    given = given_values(arguments, PretrainConfig)
    plan = _from_plan(given_values(arguments, PlanOptions), given)
    views = plan.pop("views", {}) | given_values(arguments, ViewSettings)
    changes = plan | given
    if arguments.paper:
        changes["preset"] = "paper"
    if changes.get("architecture", base.architecture) != "resnet50" and base.preset != "paper":
        changes.setdefault("norm", "batch")  # that of the plan
    intensity = replace(base.views.intensity, **given_values(arguments, IntensityRanges))
    return replace(base, **changes, views=replace(base.views, **views, intensity=intensity))


def _from_plan(plan: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What -plans_from stands for."""
    options = PlanOptions(**plan)
    if options.plans_from is None:
        if plan:
            name = "-p" if "plans_name" in plan else "-configuration"
            raise PGLError(f"{name} is for -plans_from, which is missing: give the id of the dataset that is planned")
        return {}
    if "spacing" in given:
        raise PGLError("-spacing: the plan of -plans_from decides it; leave one of them out")
    architecture = given.get("architecture")
    return settings_of_plan(options.plans_from, options.plans_name, options.configuration, architecture)
