"""The options of `pgl_compare`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import require_name
from pretraining.comparison.inits import BUILT_IN
from pretraining.data import resolve_source
from pretraining.settings.options import OptionParser, adder, natural, positive
from pretraining.settings.values import names_in

STEPS = ("prepare", "pretrain", "train", "report")
_EPILOG = f"""initialisations: random, {", ".join(BUILT_IN)}, and what --define and --checkpoint name;
made from one of them:
  shuffled:NAME  the encoder of NAME with the values of each tensor in another order (is it knowledge that helps?)
  longer:NAME    random weights, trained longer by what the pre-training of NAME has computed (is it worth its time?)
  decoder:NAME   NAME with the decoder of its pre-training, where it has trained one (mae, pgl_mae, models_genesis)

examples:
  pgl_compare -d 4                                         random, Models Genesis, BYOL, PGL at 20, 50 and 100 % labels
  pgl_compare -d 4 --pretrain_on 4 501 /data/scans -o pool pre-train on more scans than those with labels
  pgl_compare -d 4 --checkpoint pgl=/path/to/checkpoint_final.pth --init random pgl
  pgl_compare -d 4 --dry_run                               list what there is to do, and about how long it takes
  pgl_compare -d 4 --slurm                                 write a submit script for a cluster

Called again, a comparison goes on where it stopped. It lives in $nnUNet_results/PGL_compare/NAME; the report is there.
Options may be written with one dash or two.
"""
# Their values begin with a dash, which argparse takes for the next option.
_TAKE_OPTIONS = ("pretrain_options", "predict_options")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; exits as argparse does."""
    return _parser().parse_args(_joined(words))


def settings_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by the names of `ComparisonSettings`.

    Raises:
        ComparisonError: A file of names cannot be read, or a name is given twice.
        DataError: A data set or folder does not exist.
    """
    names = {"init": "inits", "tr": "trainer", "c": "configuration", "p": "plans"}
    plain = ("fractions", "folds", "seeds", "test_fraction", "max_validation", "tolerance", *_TAKE_OPTIONS, *names)
    given = {names.get(key, key): _tuple(value) for key, value in vars(arguments).items() if key in plain}
    given = {key: value for key, value in given.items() if value is not None}
    if arguments.d is not None:
        given["dataset"] = _dataset(arguments.d)
    if arguments.pretrain_on is not None:
        given["pretrain_on"] = tuple(resolve_source(source)[1] for source in arguments.pretrain_on)
    if arguments.test_cases is not None:
        given["test_cases"] = names_in(arguments.test_cases, "--test_cases")
    if arguments.checkpoint is not None:
        pairs = _pairs(arguments.checkpoint, "--checkpoint", "PATH")
        given["checkpoints"] = {name: str(Path(path).expanduser().resolve()) for name, path in pairs.items()}
    if arguments.define is not None:
        given["definitions"] = _pairs(arguments.define, "--define", '"OPTIONS"')
    return given


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="pgl_compare",
        description="Does pre-training help on your data? Compares initialisations at several fractions of the labels "
        "on a fixed test set, through nnU-Net, and writes a report.",
        epilog=_EPILOG,
    )
    _add_comparison_options(adder(parser.add_argument_group("what is compared")))
    _add_pretraining_options(adder(parser.add_argument_group("pre-training")))
    _add_test_options(adder(parser.add_argument_group("test set and prediction")))
    group = parser.add_argument_group("run")
    _add_run_options(adder(group))
    return parser


def _add_comparison_options(add: Any) -> None:
    add("d", metavar="ID", help="labelled nnU-Net data set, id or name; needed unless -o names a comparison")
    add("init", nargs="+", metavar="NAME", help="initialisations (default: random models_genesis byol pgl pgl_nce)")
    add("fractions", nargs="+", type=_share, metavar="F", help="of a fold's training cases (default: 0.2 0.5 1)")
    add("folds", nargs="+", type=natural, metavar="FOLD", help="of the cross-validation (default: 0)")
    add(
        "seeds",
        type=positive,
        metavar="N",
        help="repetitions, over which intervals and tests are; each has other cases in the fractions (default: 5)",
    )
    add("tr", metavar="TRAINER", help="nnUNetTrainerPGL (default) or a subclass of it")
    add("c", metavar="CONFIGURATION", help="default: 3d_fullres")
    add("p", metavar="PLANS", help="default: nnUNetPlans")
    add("max_validation", type=positive, metavar="N", help="use the first N validation cases of a fold (default: all)")


def _add_pretraining_options(add: Any) -> None:
    add(
        "pretrain_on",
        nargs="+",
        metavar="ID",
        help="data sets and folders (default: that of -d); test cases are always left out",
    )
    add("checkpoint", nargs="+", metavar="NAME=PATH", help="use a checkpoint_final.pth that exists")
    add("pretrain_options", metavar="OPTIONS", help='options of all pre-trainings, as in "-epochs 100 -b 32"')
    add("define", nargs="+", metavar="NAME=OPTIONS", help='an initialisation, as in short="-m pgl -epochs 50"')


def _add_test_options(add: Any) -> None:
    add(
        "test_fraction",
        type=_share,
        metavar="F",
        help="hold out this share of imagesTr (default: imagesTs if all of it has labels in labelsTs, else 0.3)",
    )
    add("test_cases", type=Path, metavar="FILE", help="hold out the cases that a text file names, one a line")
    add("tolerance", type=_distance, metavar="MM", help="of the surface Dice (default: 1)")
    add("predict_options", metavar="OPTIONS", help='options of nnUNetv2_predict, as in "--disable_tta"')


def _add_run_options(add: Any) -> None:
    add("o", metavar="NAME", help="name of the comparison (default: that of the data set)")
    add("device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add("np", type=positive, default=8, metavar="N", help="processes for preprocessing (default: 8)")
    add("only", choices=STEPS, help="only this step")
    add(
        "part",
        nargs=2,
        type=natural,
        metavar=("I", "N"),
        help="with --only: the I-th of N shares of the step, from 0",
    )
    add(
        "results",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="results.csv of runs done elsewhere, which are taken in and not done again",
    )
    add("dry_run", action="store_true", help="list the runs with their state and an estimate of time; change nothing")
    add("slurm", action="store_true", help="write a submit script for Slurm into the comparison's folder; run nothing")


def _joined(words: Sequence[str]) -> list[str]:
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and word.lstrip("-") in _TAKE_OPTIONS:
            value = next(rest, None)
            joined.append(word if value is None else f"{word}={value}")
        else:
            joined.append(word)
    return joined


def _dataset(text: str) -> str:
    name, full = resolve_source(text)
    if full != name or not name.startswith("Dataset"):
        raise ComparisonError(f"-d {text}: give a data set of nnUNet_raw, as id or DatasetXXX_Name")
    return name


def _pairs(texts: Sequence[str], option: str, value: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not rest.strip():
            raise ComparisonError(f"{option} {text!r}: give NAME={value}")
        if require_name(name, option) in pairs:
            raise ComparisonError(f"{option} {name}: given twice")
        pairs[name] = rest
    return pairs


def _tuple(value: Any) -> Any:
    return tuple(dict.fromkeys(value)) if isinstance(value, list) else value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie above 0 and be at most 1, got {text}")
    return value


def _distance(text: str) -> float:
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a distance in mm, got {text}")
    return value
