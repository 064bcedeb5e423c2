"""The command ``pgl_convert``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunetv2_pgl.dataset_conversion.bcv import SPLITS, read_bcv
from nnunetv2_pgl.dataset_conversion.collection import Collection, ConversionError
from nnunetv2_pgl.dataset_conversion.kits19 import read_kits19
from nnunetv2_pgl.dataset_conversion.msd import read_msd
from nnunetv2_pgl.dataset_conversion.ribfrac import read_ribfrac
from nnunetv2_pgl.dataset_conversion.splits import DEFAULT_SEED
from nnunetv2_pgl.dataset_conversion.writing import RECORD, write_dataset
from nnunetv2_pgl.errors import one_line

_SHOWN = 20


def convert_entry() -> None:
    """Entry point of ``pgl_convert``."""
    arguments = _parser().parse_args()
    try:
        _convert(arguments)
    except (ConversionError, OSError) as error:
        sys.exit(one_line(f"pgl_convert: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_convert: interrupted; the same command goes on where it stopped")


def _convert(arguments: argparse.Namespace) -> None:
    collection = arguments.read(arguments)
    dataset_id = collection.default_id if arguments.id is None else arguments.id
    for line in _shortfall(collection):
        print(line, file=sys.stderr)
    folder = write_dataset(collection, dataset_id, link=getattr(arguments, "link", False), processes=arguments.np)
    print("\n".join(_summary(collection, dataset_id, folder)))


def _shortfall(collection: Collection) -> list[str]:
    """What is not as the data set was published."""
    lines = [f"Note: {note}." for note in collection.notes]
    if not collection.missing:
        return lines
    lines.append(f"Warning: {len(collection.missing)} of {collection.expected} scans are left out:")
    lines += [f"  {line}" for line in collection.missing[:_SHOWN]]
    if len(collection.missing) > _SHOWN:
        lines.append(f"  and {len(collection.missing) - _SHOWN} more, all listed in {RECORD} of the dataset")
    return lines


def _summary(collection: Collection, dataset_id: int, folder: Path) -> list[str]:
    training, test = len(collection.training), len(collection.test)
    labels = "without labels" if collection.labels is None else "with labels"
    lines = [
        f"{folder}: {training + test} of {collection.expected} scans, {training} for training and {test} for testing, "
        f"{labels}"
    ]
    if collection.folds:
        first = collection.folds[0]
        lines.append(f"Fold 0: {len(first['train'])} to train on, {len(first['val'])} for validation")
    licence = collection.licence
    lines.append(f"Licence: {licence.name} ({licence.reference}): {licence.consequence}.")
    command = "pgl_pretrain" if collection.labels is None else "nnUNetv2_plan_and_preprocess --verify_dataset_integrity"
    return [*lines, f"Next: {command} -d {dataset_id}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgl_convert",
        allow_abbrev=False,
        description="Makes an nnU-Net dataset of a data set of the paper's experiment (docs/reproduce.md).",
        epilog="pgl_convert DATASET -h lists the options of a data set.",
    )
    choice = parser.add_subparsers(required=True, metavar="DATASET")

    ribfrac = _add(choice, "ribfrac", "660 chest CT scans, for pre-training", "15")
    ribfrac.add_argument("--with_labels", action="store_true", help="with the fractures, all as one class")
    _add_link(ribfrac)
    ribfrac.set_defaults(read=lambda a: read_ribfrac(a.i, a.with_labels))

    msd = _add(choice, "msd", "a task of the Medical Segmentation Decathlon: 3, 6, 7, 8, 9 or 10", "the task's number")
    _add_seed(msd)
    _add_link(msd)
    msd.set_defaults(read=lambda a: read_msd(a.i, a.seed))

    kits19 = _add(choice, "kits19", "210 CT scans with kidneys and tumours, for fine-tuning", "64")
    _add_seed(kits19)
    kits19.set_defaults(read=lambda a: read_kits19(a.i, a.seed))

    bcv = _add(choice, "bcv", "30 CT scans with 13 abdominal organs, for fine-tuning", "17")
    bcv.add_argument(
        "-split",
        "--split",
        choices=SPLITS,
        default=SPLITS[0],
        help="15 / 15 by the seed (default), or the later 21 / 9",
    )
    _add_seed(bcv)
    _add_link(bcv)
    bcv.set_defaults(read=lambda a: read_bcv(a.i, a.split, a.seed))
    return parser


def _add(choice: Any, name: str, description: str, default_id: str) -> argparse.ArgumentParser:
    """A sub-command with the options that all data sets have."""
    parser: argparse.ArgumentParser = choice.add_parser(
        name, help=description, description=description, allow_abbrev=False
    )
    parser.add_argument("-i", "--i", type=Path, required=True, metavar="FOLDER", help="folder of the unpacked download")
    parser.add_argument("-id", "--id", type=_dataset_id, metavar="N", help=f"id of the dataset (default: {default_id})")
    parser.add_argument(
        "-np", "--np", type=_positive, default=2, metavar="N", help="files to write at a time (default: 2)"
    )
    return parser


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-seed", "--seed", type=_seed, default=DEFAULT_SEED, metavar="N", help=f"of the split (default: {DEFAULT_SEED})"
    )


def _add_link(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--link", action="store_true", help="link to .nii.gz files instead of copying")


def _dataset_id(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 999:
        raise argparse.ArgumentTypeError(f"must lie between 1 and 999, got {value}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 2 ** 32 - 1, got {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
