"""The options of the commands, and the settings they make."""

from __future__ import annotations

import argparse
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from nnunetv2_pgl.networks import PaddingName, PlannedName
from pretraining.data import resolve_source
from pretraining.settings.config import Method, OptimizerName, PretrainConfig, published_for_mae, recommended
from pretraining.settings.plans import DEFAULT_CONFIGURATION, DEFAULT_PLANS, settings_of_plan
from pretraining.training.run_folder import RunError
from pretraining.views import IntensityRanges, ViewSettings
from pretraining.views.pairs import Channels, NoFlip


class OptionParser(argparse.ArgumentParser):
    """Keeps the layout of the examples; takes no abbreviated options."""

    def __init__(self, **keywords: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **keywords)

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line; argparse would list all options before it."""
        self.exit(2, f"{self.prog}: {message}; -h lists the options\n")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Options that a text may be short for: none. argparse's ``allow_abbrev`` is only for those with two dashes."""
        return []


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {value}")
    return value


def add_data_options(parser: OptionParser) -> None:
    """Which scans, and how they are preprocessed."""
    group = parser.add_argument_group("scans")
    add = adder(group)
    add(
        "d",
        nargs="+",
        metavar="ID",
        help="nnU-Net data set ids or names, or folders of scans (NIfTI, NRRD, MHA, DICOM "
        "series); imagesTr and imagesTs are used, labels are not needed",
    )
    add(
        "modality",
        choices=("ct", "mr"),
        help="overrules channel_names of data sets and what DICOM files say (default: these decide, other files of "
        "folders are ct)",
    )
    add(
        "use_masks",
        action="store_true",
        default=None,
        help="take files of folders that look like segmentations, by name or values, which are left out otherwise",
    )
    add("spacing", nargs="+", metavar="MM", help="median (of the pool, default), native, or three values z y x in mm")
    add(
        "exclude",
        type=Path,
        metavar="FILE",
        help="text file with names of scans to leave out, one a line, such as those of a test set",
    )
    add(
        "weights",
        nargs="+",
        type=float,
        metavar="W",
        help="share of the draws for each of -d, in any unit (default: every scan is equally likely)",
    )
    add(
        "verify_dataset_integrity",
        action="store_true",
        help="compare scans preprocessed before with their checksums, and redo those that are damaged",
    )
    add("np", type=positive, default=8, metavar="N", help="preprocessing processes (default: 8)")
    add("seed", type=natural, help="seed of all randomness (default: 12345)")


def add_view_options(parser: OptionParser) -> None:
    """How views are drawn."""
    group = parser.add_argument_group("views")
    add = adder(group)
    add(
        "paper",
        action="store_true",
        default=None,
        help="the paper's settings in everything that is not given; in brackets: default, or recommended / paper's",
    )
    add("patch", nargs=3, type=positive, metavar=("Z", "Y", "X"), help="size of a view in voxels (default: 16 96 96)")
    add(
        "scale",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="size of a crop relative to the view (1.1 1.4; mae: 1 1)",
    )
    add(
        "flip_probability",
        nargs="+",
        type=_probability,
        metavar="P",
        help="per view and axis: one value, or three z y x (0.5)",
    )
    add(
        "no_flip",
        choices=(*get_args(NoFlip), "none"),
        help="lateral: no flips along the axis from left to right of the body, as each scan's header tells it; "
        "lateral_in_ct: the same in CT only; none: flips along all axes (lateral_in_ct / none; mae: none)",
    )
    add(
        "channels",
        choices=get_args(Channels),
        help="each: a view shows one channel of its scan, the encoder takes one; joint: all channels together (each)",
    )
    add(
        "min_overlap", type=_probability, metavar="F", help="smallest overlap of the two crops, by volume (0.1; mae: 0)"
    )
    ranges = IntensityRanges()
    for field in fields(IntensityRanges):
        default = getattr(ranges, field.name)
        if isinstance(default, tuple):
            low, high = default
            add(field.name, nargs=2, type=float, metavar=("LOW", "HIGH"), help=f"({low:g} {high:g})")
        else:
            add(field.name, type=_probability, metavar="P", help=f"({default:g})")


def add_training_options(parser: OptionParser) -> None:
    """Method, network and training."""
    group = parser.add_argument_group("network and training")
    add = adder(group)
    add(
        "m",
        choices=get_args(Method),
        help="pgl; pgl_nce: pgl, with the other places of the partner as negatives; byol: global, no alignment; "
        "models_genesis: restores deformed views; mae: restores hidden blocks, with the settings published for it in "
        "everything that is not given; pgl_mae: pgl, with hidden blocks that are restored (pgl_nce / pgl)",
    )
    add(
        "a",
        choices=("resnet50", *get_args(PlannedName)),
        help="encoder: the paper's ResNet-50, or that of nnU-Net's networks (default: resnet50, or the plan's)",
    )
    add(
        "align_stages",
        nargs="+",
        type=natural,
        metavar="N",
        help="maps of the encoder that are aligned, 0 is the finest (default: the deepest with cells of at most 16 "
        "voxels)",
    )
    add("norm", choices=("batch", "instance"), help="norm of the ResNet-50 (instance / batch)")
    add(
        "padding",
        choices=get_args(PaddingName),
        help="what the encoder sees beyond the edge of a view: zeros, which tell it the place in the view, or the "
        "outermost cells again; weights do not depend on it (replicate / zeros; mae: zeros)",
    )
    add(
        "strides",
        nargs=3,
        type=int,
        metavar=("Z", "Y", "X"),
        help="total stride of the ResNet-50, powers of two "
        "(default: 8 16 16, less where a view would keep fewer than two cells); weights do not depend on it",
    )
    add("epochs", type=positive, metavar="N", help="an epoch draws one pair of views per scan (default: 500)")
    add("pairs", type=positive, metavar="N", help="pairs per epoch (default: number of scans, at least one batch)")
    add("b", type=positive, metavar="N", help="pairs per step, over all GPUs (8 / 128; mae: 4)")
    add("accumulate", type=positive, metavar="N", help="compute each step in N parts to save memory (default: 1)")
    add(
        "optimizer",
        choices=get_args(OptimizerName),
        help="nnunet: SGD with Nesterov momentum 0.99, polynomial decay and gradients clipped to a norm of 12 (adamw / "
        "lars from 32 pairs per step on, else adamw; mae: nnunet)",
    )
    add(
        "lr",
        type=float,
        help="peak learning rate (default: 0.2 per 128 pairs for lars, 0.3 per 256 for sgd, 2e-3 for adamw, 0.01 for "
        "nnunet)",
    )
    add("wd", type=float, help="weight decay, not on biases and norms (1.5e-6; mae with nnunet: 3e-5)")
    add("warmup", type=natural, metavar="N", help="epochs of linear warm-up (2; mae with nnunet: 0)")
    add(
        "target_decay",
        type=_probability,
        metavar="TAU",
        help="of the target path at the start; it rises to 1 (0.9 / 0.996)",
    )
    add("temperature", type=float, metavar="T", help="of the similarities in pgl_nce (0.1)")
    add("interpolated_only", action="store_true", default=None, help="count only aligned points between cell centres")
    add("mask_ratio", type=_probability, metavar="F", help="share of hidden blocks in mae (0.75) and pgl_mae (0.6)")
    add("restoration_weight", type=float, metavar="W", help="weight of the restoration in pgl_mae (1)")
    add(
        "val_scans",
        type=natural,
        metavar="N",
        help="scans held out for the correspondence metric (default: 5 %%, at most 16, none below 10 scans)",
    )


def add_plan_options(parser: OptionParser) -> None:
    """The plan to follow."""
    group = parser.add_argument_group("nnU-Net's plan to follow (patch size, spacing, normalisation, network)")
    add = adder(group)
    add(
        "plans_from",
        metavar="ID",
        help="data set, planned by nnU-Net, that will be fine-tuned on; needs no labels here",
    )
    add("p", metavar="PLANS", help=f"name of its plans (default: {DEFAULT_PLANS})")
    add("configuration", metavar="NAME", help=f"of the plans (default: {DEFAULT_CONFIGURATION})")


def add_run_options(parser: OptionParser) -> None:
    """Name, device and processes of the run."""
    group = parser.add_argument_group("run")
    add = adder(group)
    add("o", metavar="NAME", help="name of the run (default: from method, encoder and data sets)")
    add("device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add("num_gpus", type=positive, default=1, metavar="N", help="processes on this machine (default: 1)")
    add(
        "save_every",
        type=positive,
        metavar="N",
        help="epochs between two saves of the state, with curves and correspondence (default: by time, the state "
        "every 10 minutes)",
    )
    group.add_argument("--c", action="store_true", help="continue the run from its checkpoint_latest.pth")


def adder(group: Any) -> Any:
    """A function that adds an option to a group under its name with one dash and with two."""

    def add(name: str, **keywords: Any) -> None:
        group.add_argument(f"-{name}", f"--{name}", **keywords)

    return add


def settings_of(arguments: argparse.Namespace) -> PretrainConfig:
    """The settings of a new run: the recommended, the paper's or those published for the method, and what is given.

    Raises:
        RunError: The options contradict each other, or name what is not there.
    """
    if getattr(arguments, "m", None) == "mae":  # pgl_preview, which draws views alone, has no -m
        return with_options(arguments, _published(arguments))
    return with_options(arguments, PretrainConfig(datasets=()) if arguments.paper else recommended())


def _published(arguments: argparse.Namespace) -> PretrainConfig:
    """Those of mae; with another optimiser, weight decay and warm-up are not those of nnU-Net's SGD either."""
    if arguments.paper:
        raise RunError(
            "--paper -m mae: PGL's paper has no mae; leave --paper out, -m mae has the settings published for it"
        )
    base = published_for_mae()
    if arguments.optimizer in (None, base.optimizer):
        return base
    ours = recommended()
    return replace(base, weight_decay=ours.weight_decay, warmup_epochs=ours.warmup_epochs)


def with_options(arguments: argparse.Namespace, base: PretrainConfig) -> PretrainConfig:
    """The settings with every option that was given."""
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    given = {**_from_plan(given), **given}  # what is asked for comes before what the plan has
    names = {
        "m": "method",
        "a": "architecture",
        "b": "batch_size",
        "lr": "learning_rate",
        "wd": "weight_decay",
        "warmup": "warmup_epochs",
        "pairs": "pairs_per_epoch",
        "val_scans": "validation_scans",
    }
    known = {field.name for field in fields(PretrainConfig)}
    changes: dict[str, Any] = {names.get(k, k): _tuple(v) for k, v in given.items() if names.get(k, k) in known}
    if "paper" in given:
        changes["preset"] = "paper"
    if changes.get("architecture", base.architecture) != "resnet50" and base.preset != "paper":
        changes.setdefault("norm", "batch")  # that of the plan
    if "exclude" in given:
        changes["exclude"] = names_in(given["exclude"], "-exclude")
    if "spacing" in given:
        changes["spacing"] = _spacing(given["spacing"])
    if "d" in given:
        changes["datasets"] = tuple(resolve_source(source)[1] for source in given["d"])
    views: dict[str, Any] = {f.name: _tuple(given[f.name]) for f in fields(ViewSettings) if f.name in given}
    if views.get("no_flip") == "none":
        views["no_flip"] = None
    if "patch" in given:
        views["size"] = _tuple(given["patch"])
    if "flip_probability" in given:
        views["flip_probability"] = _one_or_three(given["flip_probability"], "-flip_probability")
    ranges = {f.name: _tuple(given[f.name]) for f in fields(IntensityRanges) if f.name in given}
    intensity = replace(base.views.intensity, **ranges)
    return replace(base, **changes, views=replace(base.views, **views, intensity=intensity))


def _from_plan(given: dict[str, Any]) -> dict[str, Any]:
    """What -plans_from stands for."""
    if "plans_from" not in given:
        alone = next((name for name in ("p", "configuration") if name in given), None)
        if alone is not None:
            raise RunError(
                f"-{alone} is for -plans_from, which is missing: give the id of the data set that is planned"
            )
        return {}
    if "spacing" in given:
        raise RunError("-spacing: the plan of -plans_from decides it; leave one of them out")
    plans, configuration = given.get("p", DEFAULT_PLANS), given.get("configuration", DEFAULT_CONFIGURATION)
    return settings_of_plan(given["plans_from"], plans, configuration, given.get("a"))


def names_in(file: Path, option: str) -> tuple[str, ...]:
    """Names in a text file, one a line, each once and sorted.

    The file is UTF-8, or UTF-16 with a byte order mark, as editors and shells of Windows write it; lines end as they do
    on any system.

    Raises:
        RunError: The file cannot be read, is no such text, or holds no name; names the option.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"{option} {file}: cannot be read ({error})") from error
    names = tuple(sorted({name for line in _text(content, f"{option} {file}").splitlines() if (name := line.strip())}))
    if not names:
        raise RunError(f"{option} {file}: holds no names; give one a line")
    return names


def _text(content: bytes, name: str) -> str:
    """Text without byte order marks, of which files that were joined have several."""
    try:
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{name}: is no text in UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text at all
        raise RunError(f"{name}: is no text in UTF-8 (it has bytes that are zero); save it as UTF-8")
    return text.replace("\N{BOM}", "")


def _one_or_three(values: Sequence[float], option: str) -> Any:
    if len(values) not in (1, 3):
        raise RunError(f"{option} {' '.join(f'{value:g}' for value in values)}: give one value, or three z y x")
    return values[0] if len(values) == 1 else tuple(values)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _spacing(values: Sequence[str]) -> Any:
    if len(values) == 1 and values[0] in ("median", "native"):
        return values[0]
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) <= 0:
        raise RunError(f"-spacing {' '.join(values)}: give median, native, or three positive values z y x in mm")
    return numbers
