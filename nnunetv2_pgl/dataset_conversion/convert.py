"""The command ``pgl_convert``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_pgl.dataset_conversion.datasets import BCV_SPLITS, read_bcv, read_kits19, read_ribfrac
from nnunetv2_pgl.dataset_conversion.downloaded import DEFAULT_SEED, DownloadedDataset
from nnunetv2_pgl.dataset_conversion.msd import read_msd
from nnunetv2_pgl.dataset_conversion.writing import RECORD, write_dataset
from nnunetv2_pgl.errors import PGLError, one_line

_SHOWN = 20


def convert_entry() -> None:
    """Entry point of ``pgl_convert``."""
    arguments = _parser().parse_args()
    try:
        _convert(arguments)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_convert: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_convert: interrupted; run the same command again to continue")


def _convert(arguments: argparse.Namespace) -> None:
    dataset = arguments.read(arguments)
    dataset_id = dataset.default_id if arguments.id is None else arguments.id
    for line in _shortfall(dataset):
        print(line, file=sys.stderr)
    folder = write_dataset(dataset, dataset_id, link=getattr(arguments, "link", False), processes=arguments.np)
    print("\n".join(_summary(dataset, dataset_id, folder)))


def _shortfall(dataset: DownloadedDataset) -> list[str]:
    """What is not as the dataset was published."""
    lines = [f"Note: {note}." for note in dataset.notes]
    if not dataset.missing:
        return lines
    lines.append(f"Warning: {len(dataset.missing)} of {dataset.expected} scans are left out:")
    lines += [f"  {line}" for line in dataset.missing[:_SHOWN]]
    if len(dataset.missing) > _SHOWN:
        lines.append(f"  and {len(dataset.missing) - _SHOWN} more, all listed in {RECORD} of the dataset")
    return lines


def _summary(dataset: DownloadedDataset, dataset_id: int, folder: Path) -> list[str]:
    training, test = len(dataset.training), len(dataset.test)
    labels = "without labels" if dataset.labels is None else "with labels"
    lines = [
        f"{folder}: {training + test} of {dataset.expected} scans, {training} for training and {test} for testing, "
        f"{labels}"
    ]
    if dataset.folds:
        first = dataset.folds[0]
        lines.append(f"Fold 0: {len(first['train'])} to train on, {len(first['val'])} for validation")
    licence = dataset.licence
    lines.append(f"Licence: {licence.name} ({licence.reference}): {licence.consequence}.")
    command = "pgl_pretrain" if dataset.labels is None else "nnUNetv2_plan_and_preprocess --verify_dataset_integrity"
    return [*lines, f"Next: {command} -d {dataset_id}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgl_convert",
        allow_abbrev=False,
        description="Makes an nnU-Net dataset from a download of the paper's experiment (docs/reproduce.md).",
        epilog="pgl_convert DATASET -h lists the options of a dataset.",
    )
    choice = parser.add_subparsers(required=True, metavar="DATASET")

    ribfrac = _add(choice, "ribfrac", "660 chest CT scans, for pre-training", "15", links=True)
    ribfrac.add_argument("--with_labels", action="store_true", help="with the fractures, all as one class")
    ribfrac.set_defaults(read=lambda a: read_ribfrac(a.i, a.with_labels))

    tasks = "a task of the Medical Segmentation Decathlon: 3, 6, 7, 8, 9 or 10"
    msd = _add(choice, "msd", tasks, "the task's number", links=True, splits=True)
    msd.set_defaults(read=lambda a: read_msd(a.i, a.seed))

    kits19 = _add(choice, "kits19", "210 CT scans with kidneys and tumours, for fine-tuning", "64", splits=True)
    kits19.set_defaults(read=lambda a: read_kits19(a.i, a.seed))

    bcv = _add(choice, "bcv", "30 CT scans with 13 abdominal organs, for fine-tuning", "17", links=True, splits=True)
    bcv.add_argument(
        "-split",
        "--split",
        choices=BCV_SPLITS,
        default=BCV_SPLITS[0],
        help="15 / 15 by the seed (default), or the later 21 / 9",
    )
    bcv.set_defaults(read=lambda a: read_bcv(a.i, a.split, a.seed))
    return parser


def _add(
    choice: Any, name: str, description: str, default_id: str, *, links: bool = False, splits: bool = False
) -> argparse.ArgumentParser:
    """A sub-command with the options that all datasets have.

    Args:
        choice: The sub-commands.
        name: Of the dataset.
        description: What it is.
        default_id: Id of the dataset if the user names none.
        links: Whether files can be linked to, since none of them is changed.
        splits: Whether the dataset is divided by a seed.
    """
    parser: argparse.ArgumentParser = choice.add_parser(
        name, help=description, description=description, allow_abbrev=False
    )
    parser.add_argument("-i", "--i", type=Path, required=True, metavar="FOLDER", help="folder of the unpacked download")
    in_range = partial(_integer, least=1, most=999)
    parser.add_argument("-id", "--id", type=in_range, metavar="N", help=f"id of the dataset (default: {default_id})")
    parser.add_argument(
        "-np",
        "--np",
        type=partial(_integer, least=1),
        default=2,
        metavar="N",
        help="files to write at a time (default: 2)",
    )
    if splits:
        parser.add_argument(
            "-seed",
            "--seed",
            type=partial(_integer, least=0, most=2**32 - 1),
            default=DEFAULT_SEED,
            metavar="N",
            help=f"of the split (default: {DEFAULT_SEED})",
        )
    if links:
        parser.add_argument("--link", action="store_true", help="link to .nii.gz files instead of copying")
    return parser


def _integer(text: str, least: int, most: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from error
    if value < least or (most is not None and value > most):
        bounds = f"must be at least {least}" if most is None else f"must lie between {least} and {most}"
        raise argparse.ArgumentTypeError(f"{bounds}, got {value}")
    return value
