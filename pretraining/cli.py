"""The commands ``pgl_pretrain`` and ``pgl_preview``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.checkpoint import CheckpointError
from pretraining.config import PretrainConfig
from pretraining.data import DataError, resolve_source
from pretraining.pretrain import RunOptions, prepare_volumes, pretrain
from pretraining.preview import draw_pairs
from pretraining.run_folder import RunError, RunFolder, require_same
from pretraining.training.distributed import spawn
from pretraining.training.loop import TrainingError
from pretraining.views import IntensityRanges, ViewSettings

_EPILOG = """examples:
  pgl_pretrain -d 501                                  one GPU, the paper's settings
  pgl_pretrain -d 501 502 /data/scans -o pool          two nnU-Net data sets and a folder, pooled
  pgl_pretrain -d 501 -b 32 -num_gpus 4                four GPUs, 8 pairs each
  pgl_pretrain -d 501 --c                              continue where it stopped
  torchrun --nproc_per_node=4 -m pretraining -d 501    the same four processes by torchrun, also over several nodes

Scans come from $nnUNet_raw, volumes go to $nnUNet_preprocessed, the run to $nnUNet_results/PGL/NAME. Data loading uses
nnUNet_n_proc_DA workers. Options may be written with one dash or two.
"""


class _Parser(argparse.ArgumentParser):
    """Keeps the layout of the examples; takes no abbreviated options."""

    def __init__(self, **keywords: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **keywords)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {value}")
    return value


def _add_data_options(parser: _Parser) -> None:
    group = parser.add_argument_group("scans")
    add = _grouped(group)
    add(
        "d",
        nargs="+",
        metavar="ID",
        help="nnU-Net data set ids or names, or folders of scans (NIfTI, NRRD, MHA, DICOM "
        "series); imagesTr and imagesTs are used, labels are not needed",
    )
    add("modality", choices=("ct", "mr"), help="for folders, and to overrule channel_names (default: a folder is ct)")
    add("spacing", nargs="+", metavar="MM", help="median (of the pool, default), native, or three values z y x in mm")
    add("np", type=_positive, default=8, metavar="N", help="preprocessing processes (default: 8)")
    add("seed", type=_natural, help="seed of all randomness (default: 12345)")


def _add_view_options(parser: _Parser) -> None:
    group = parser.add_argument_group("views (defaults: the paper's)")
    add = _grouped(group)
    add("patch", nargs=3, type=_positive, metavar=("Z", "Y", "X"), help="size of a view in voxels (default: 16 96 96)")
    add("scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="size of a crop relative to the view (1.1 1.4)")
    add("flip_probability", type=_probability, metavar="P", help="per view and axis (0.5)")
    add("min_overlap", type=_probability, metavar="F", help="smallest overlap of the two crops, by volume (0.1)")
    ranges = IntensityRanges()
    for field in fields(IntensityRanges):
        default = getattr(ranges, field.name)
        if isinstance(default, tuple):
            low, high = default
            add(field.name, nargs=2, type=float, metavar=("LOW", "HIGH"), help=f"({low:g} {high:g})")
        else:
            add(field.name, type=_probability, metavar="P", help=f"({default:g})")


def _add_training_options(parser: _Parser) -> None:
    group = parser.add_argument_group("network and training (defaults: the paper's)")
    add = _grouped(group)
    add("m", choices=("pgl",), help="method (default: pgl)")
    add("a", choices=("resnet50",), help="encoder (default: resnet50)")
    add("norm", choices=("batch", "instance"), help="norm of the encoder (default: batch)")
    add(
        "strides",
        nargs=3,
        type=int,
        metavar=("Z", "Y", "X"),
        help="total stride of the encoder, powers of two "
        "(default: 8 16 16, less where a view would keep fewer than two cells); weights do not depend on it",
    )
    add("epochs", type=_positive, metavar="N", help="an epoch draws one pair of views per scan (default: 500)")
    add("pairs", type=_positive, metavar="N", help="pairs per epoch (default: number of scans, at least one batch)")
    add("b", type=_positive, metavar="N", help="pairs per step, over all GPUs (default: 128)")
    add("accumulate", type=_positive, metavar="N", help="compute each step in N parts to save memory (default: 1)")
    add("optimizer", choices=("lars", "sgd", "adamw"), help="default: lars")
    add(
        "lr",
        type=float,
        help="peak learning rate (default: 0.2 per 128 pairs for lars, 0.3 per 256 for sgd, 0.001 per 128 for adamw)",
    )
    add("wd", type=float, help="weight decay, not on biases and norms (default: 1.5e-6)")
    add("warmup", type=_natural, metavar="N", help="epochs of linear warm-up (default: 2)")
    add("target_decay", type=_probability, metavar="TAU", help="of the target path at the start; it rises to 1 (0.996)")
    add("interpolated_only", action="store_true", default=None, help="count only aligned points between cell centres")
    add(
        "val_scans",
        type=_natural,
        metavar="N",
        help="scans held out for the correspondence metric (default: 5 %%, at most 16, none below 10 scans)",
    )


def _add_run_options(parser: _Parser) -> None:
    group = parser.add_argument_group("run")
    add = _grouped(group)
    add("o", metavar="NAME", help="name of the run (default: from method, encoder and data sets)")
    add("device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add("num_gpus", type=_positive, default=1, metavar="N", help="processes on this machine (default: 1)")
    add("save_every", type=_positive, default=1, metavar="N", help="epochs between two saves of the state (default: 1)")
    group.add_argument("--c", action="store_true", help="continue the run from its checkpoint_latest.pth")


def _grouped(group: Any) -> Any:
    def add(name: str, **keywords: Any) -> None:
        group.add_argument(f"-{name}", f"--{name}", **keywords)

    return add


def _overrides(arguments: argparse.Namespace, base: PretrainConfig) -> PretrainConfig:
    """The settings with every option that was given."""
    given = {key: value for key, value in vars(arguments).items() if value is not None}
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
    if "spacing" in given:
        changes["spacing"] = _spacing(given["spacing"])
    if "d" in given:
        changes["datasets"] = tuple(resolve_source(source)[1] for source in given["d"])
    views: dict[str, Any] = {f.name: _tuple(given[f.name]) for f in fields(ViewSettings) if f.name in given}
    if "patch" in given:
        views["size"] = _tuple(given["patch"])
    ranges = {f.name: _tuple(given[f.name]) for f in fields(IntensityRanges) if f.name in given}
    intensity = replace(base.views.intensity, **ranges)
    return replace(base, **changes, views=replace(base.views, **views, intensity=intensity))


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


def _default_name(sources: Sequence[str], arguments: argparse.Namespace) -> str:
    names = "_".join(resolve_source(source)[0] for source in sources)
    return f"{arguments.m or 'pgl'}_{arguments.a or 'resnet50'}_{names}".replace(" ", "_")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.d is None and not (arguments.c and arguments.o):
        raise RunError("-d is missing: give data set ids, names or folders of scans")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError("no CUDA device was found: add -device cpu (or mps)")
    name = arguments.o or _default_name(arguments.d, arguments)
    folder = RunFolder.named(name)
    if arguments.c:
        config = folder.settings_to_continue()
        require_same(_overrides(arguments, config), config, folder)
    else:
        config = _overrides(arguments, PretrainConfig(datasets=()))
    config.check()
    options = RunOptions(name, arguments.c, arguments.device, arguments.np, arguments.save_every)
    if arguments.num_gpus > 1:
        if arguments.device == "cuda" and arguments.num_gpus > torch.cuda.device_count():
            raise RunError(f"-num_gpus {arguments.num_gpus}, but this machine has {torch.cuda.device_count()}")
        spawn(pretrain, (config, options), arguments.num_gpus)
    else:
        pretrain(config, options)


def _exit_with(command: str, error: Exception) -> None:
    sys.exit(f"{command}: {error}")


def pretrain_entry() -> None:
    """Entry point of ``pgl_pretrain`` and of ``torchrun -m pretraining``."""
    parser = _Parser(
        prog="pgl_pretrain",
        description="Pre-trains an encoder with PGL on images alone and writes a checkpoint for nnUNetTrainerPGL.",
        epilog=_EPILOG,
    )
    for add_options in (_add_data_options, _add_view_options, _add_training_options, _add_run_options):
        add_options(parser)
    try:
        _run(parser.parse_args())
    except (DataError, RunError, TrainingError, CheckpointError, OSError, ValueError) as error:
        _exit_with("pgl_pretrain", error)


def preview_entry() -> None:
    """Entry point of ``pgl_preview``."""
    parser = _Parser(
        prog="pgl_preview",
        description="Draws pairs of views of your scans: their boxes on the scan, the views, and the aligned overlap.",
    )
    _add_data_options(parser)
    _add_view_options(parser)
    add = _grouped(parser.add_argument_group("picture"))
    add("o", type=Path, default=Path("pgl_preview.png"), metavar="FILE", help="default: pgl_preview.png")
    add("n", type=_positive, default=4, metavar="N", help="number of pairs (default: 4)")
    arguments = parser.parse_args()
    try:
        if arguments.d is None:
            raise RunError("-d is missing: give data set ids, names or folders of scans")
        output = arguments.o
        del arguments.o
        config = _overrides(arguments, PretrainConfig(datasets=()))
        config.check()
        volumes, skipped = prepare_volumes(config, arguments.np)
        draw_pairs(volumes, config.views, config.seed, output, arguments.n)
        for item in skipped:
            print(f"WARNING: {item}")
        print(output)
    except (DataError, RunError, OSError, ValueError) as error:
        _exit_with("pgl_preview", error)
