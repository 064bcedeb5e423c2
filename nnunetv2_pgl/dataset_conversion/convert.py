"""The command ``pgl_convert``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from nnunetv2_pgl.command_line import CommandParser
from nnunetv2_pgl.dataset_conversion.datasets import BCV_SPLITS, read_bcv, read_kits19, read_ribfrac
from nnunetv2_pgl.dataset_conversion.downloaded import DEFAULT_SEED, DownloadedDataset
from nnunetv2_pgl.dataset_conversion.msd import read_msd
from nnunetv2_pgl.dataset_conversion.writing import RECORD, write_dataset
from nnunetv2_pgl.errors import PGLError, one_line

_MAX_MISSING_SHOWN = 20


def convert_entry() -> None:
    """Entry point of ``pgl_convert``."""
    arguments = _parser().parse_args()
    try:
        dataset: DownloadedDataset = arguments.read(arguments)
        dataset_id = dataset.default_id if arguments.id is None else arguments.id
        for line in _shortfall(dataset):
            print(line, file=sys.stderr)
        folder = write_dataset(dataset, dataset_id, link=getattr(arguments, "link", False), processes=arguments.np)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_convert: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_convert: interrupted; run the same command again to continue")
    print("\n".join(_summary(dataset, dataset_id, folder)))


def _shortfall(dataset: DownloadedDataset) -> list[str]:
    """What is not as the dataset was published."""
    lines = [f"Note: {note}." for note in dataset.notes]
    if dataset.missing:
        lines.append(f"Warning: {len(dataset.missing)} of {dataset.expected} scans are left out:")
        lines += [f"  {line}" for line in dataset.missing[:_MAX_MISSING_SHOWN]]
    if len(dataset.missing) > _MAX_MISSING_SHOWN:
        lines.append(f"  and {len(dataset.missing) - _MAX_MISSING_SHOWN} more, all listed in {RECORD} of the dataset")
    return lines


def _summary(dataset: DownloadedDataset, dataset_id: int, folder: Path) -> list[str]:
    training, test, licence = len(dataset.training), len(dataset.test), dataset.licence
    labels, command = "with labels", "nnUNetv2_plan_and_preprocess --verify_dataset_integrity"
    if dataset.labels is None:
        labels, command = "without labels", "pgl_pretrain"
    lines = [
        f"{folder}: {training + test} of {dataset.expected} scans, {training} for training and {test} for testing, "
        f"{labels}"
    ]
    if dataset.folds:
        first = dataset.folds[0]
        lines.append(f"Fold 0: {len(first['train'])} to train on, {len(first['val'])} for validation")
    lines.append(f"Licence: {licence.name} ({licence.reference}): {licence.consequence}.")
    return [*lines, f"Next: {command} -d {dataset_id}"]


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="pgl_convert",
        description="Makes an nnU-Net dataset from a download of the paper's experiment (docs/reproduce.md).",
        epilog="pgl_convert DATASET -h lists the options of a dataset.",
    )
    links, splits = CommandParser(add_help=False), CommandParser(add_help=False)
    links.add_argument("--link", action="store_true", help="link to .nii.gz files instead of copying")
    seed = partial(_integer, minimum=0, maximum=2**32 - 1)
    splits.add_argument(
        *("-seed", "--seed"),
        type=seed,
        default=DEFAULT_SEED,
        metavar="N",
        help=f"of the split (default: {DEFAULT_SEED})",
    )
    choice = parser.add_subparsers(required=True, metavar="DATASET")

    def add(name: str, description: str, default_id: str, *shared: CommandParser) -> CommandParser:
        """A sub-command with the options that all datasets have, and those that it shares with some."""
        command = choice.add_parser(name, help=description, description=description, parents=shared)
        command.add_argument(
            *("-i", "--i"), type=Path, required=True, metavar="FOLDER", help="folder of the unpacked download"
        )
        number, count = partial(_integer, minimum=1, maximum=999), partial(_integer, minimum=1)
        command.add_argument("-id", "--id", type=number, metavar="N", help=f"id of the dataset (default: {default_id})")
        command.add_argument(
            "-np", "--np", type=count, default=2, metavar="N", help="files to write at a time (default: 2)"
        )
        return command

    ribfrac = add("ribfrac", "660 chest CT scans, for pre-training", "15", links)
    ribfrac.add_argument("--with_labels", action="store_true", help="with the fractures, all as one class")
    ribfrac.set_defaults(read=lambda a: read_ribfrac(a.i, a.with_labels))

    tasks = "a task of the Medical Segmentation Decathlon: 3, 6, 7, 8, 9 or 10"
    add("msd", tasks, "the task's number", links, splits).set_defaults(read=lambda a: read_msd(a.i, a.seed))

    kits19 = add("kits19", "210 CT scans with kidneys and tumours, for fine-tuning", "64", splits)
    kits19.set_defaults(read=lambda a: read_kits19(a.i, a.seed))

    bcv = add("bcv", "30 CT scans with 13 abdominal organs, for fine-tuning", "17", links, splits)
    split_help = "15 / 15 by the seed (default), or the later 21 / 9"
    bcv.add_argument("-split", "--split", choices=BCV_SPLITS, default=BCV_SPLITS[0], help=split_help)
    bcv.set_defaults(read=lambda a: read_bcv(a.i, a.split, a.seed))
    return parser


def _integer(text: str, minimum: int, maximum: int | None = None) -> int:
    value = int(text) if text.removeprefix("-").isdecimal() else None
    if value is None or value < minimum or (maximum is not None and value > maximum):
        bounds = f"of at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}")
    return value
