"""The options of `pgl_compare`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.inits import BUILT_IN
from pretraining.comparison.settings import ComparisonSettings, option_of, require_name
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
    """The settings that the command line gives, by the names of `ComparisonSettings`.

    Raises:
        PGLError: A file of names cannot be read, or a name is given twice.
        DataError: A data set or folder does not exist.
    """
    converters: dict[str, Callable[[Any], Any]] = {
        "dataset": _dataset,
        "pretrain_on": lambda sources: tuple(resolve_source(source)[1] for source in sources),
        "test_cases": lambda file: names_in(file, "--test_cases"),
        "checkpoints": _checkpoints,
        "definitions": lambda texts: _pairs(texts, "--define", '"OPTIONS"'),
    }
    given = {
        setting.name: getattr(arguments, option_of(setting.name).lstrip("-")) for setting in fields(ComparisonSettings)
    }
    return {name: converters.get(name, _tuple)(value) for name, value in given.items() if value is not None}


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="pgl_compare",
        description="Does pre-training help on your data? Compares initialisations at several fractions of the labels "
        "on a fixed test set, through nnU-Net, and writes a report.",
        epilog=_EPILOG,
    )
    add = adder(parser.add_argument_group("what is compared"))
    add("d", metavar="ID", help="labelled nnU-Net data set, id or name; needed unless -o names a comparison")
    add("init", nargs="+", metavar="NAME", help="initialisations (default: random models_genesis byol pgl pgl_nce)")
    add("fractions", nargs="+", type=_share, metavar="F", help="of a fold's training cases (default: 0.2 0.5 1)")
    add("folds", nargs="+", type=natural, metavar="FOLD", help="of the cross-validation (default: 0)")
    seeds = "repetitions, over which intervals and tests are; each has other cases in the fractions (default: 5)"
    add("seeds", type=positive, metavar="N", help=seeds)
    add("tr", metavar="TRAINER", help="nnUNetTrainerPGL (default) or a subclass of it")
    add("c", metavar="CONFIGURATION", help="default: 3d_fullres")
    add("p", metavar="PLANS", help="default: nnUNetPlans")
    add("max_validation", type=positive, metavar="N", help="use the first N validation cases of a fold (default: all)")
    add = adder(parser.add_argument_group("pre-training"))
    pretrain_on = "data sets and folders (default: that of -d); test cases are always left out"
    add("pretrain_on", nargs="+", metavar="ID", help=pretrain_on)
    add("checkpoint", nargs="+", metavar="NAME=PATH", help="use a checkpoint_final.pth that exists")
    add("pretrain_options", metavar="OPTIONS", help='options of all pre-trainings, as in "-epochs 100 -b 32"')
    add("define", nargs="+", metavar="NAME=OPTIONS", help='an initialisation, as in short="-m pgl -epochs 50"')
    add = adder(parser.add_argument_group("test set and prediction"))
    held_out = "hold out this share of imagesTr (default: imagesTs if all of it has labels in labelsTs, else 0.3)"
    add("test_fraction", type=_share, metavar="F", help=held_out)
    add("test_cases", type=Path, metavar="FILE", help="hold out the cases that a text file names, one a line")
    add("tolerance", type=_distance, metavar="MM", help="of the surface Dice (default: 1)")
    add("predict_options", metavar="OPTIONS", help='options of nnUNetv2_predict, as in "--disable_tta"')
    add = adder(parser.add_argument_group("run"))
    add("o", metavar="NAME", help="name of the comparison (default: that of the data set)")
    add("device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add("np", type=positive, default=8, metavar="N", help="processes for preprocessing (default: 8)")
    add("only", choices=STEPS, help="only this step")
    part = "with --only: the I-th of N shares of the step, from 0"
    add("part", nargs=2, type=natural, metavar=("I", "N"), help=part)
    done_elsewhere = "results.csv of runs done elsewhere, which are taken in and not done again"
    add("results", nargs="+", type=Path, metavar="FILE", help=done_elsewhere)
    add("dry_run", action="store_true", help="list the runs with their state and an estimate of time; change nothing")
    add("slurm", action="store_true", help="write a submit script for Slurm into the comparison's folder; run nothing")
    return parser


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
        raise PGLError(f"-d {text}: give a data set of nnUNet_raw, as id or DatasetXXX_Name")
    return name


def _checkpoints(texts: Sequence[str]) -> dict[str, str]:
    pairs = _pairs(texts, "--checkpoint", "PATH")
    return {name: str(Path(path).expanduser().resolve()) for name, path in pairs.items()}


def _pairs(texts: Sequence[str], option: str, value: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not rest.strip():
            raise PGLError(f"{option} {text!r}: give NAME={value}")
        if require_name(name, option) in pairs:
            raise PGLError(f"{option} {name}: given twice")
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
