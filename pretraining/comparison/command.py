"""The command ``pgl_compare``."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from dataclasses import MISSING, Field, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from pretraining.comparison.comparison import Comparison, extension_path, find_trainer
from pretraining.comparison.execution import collect_results
from pretraining.comparison.files import ComparisonFolder, write_file
from pretraining.comparison.inits import BUILT_IN, Initialisation
from pretraining.comparison.merging import add_results
from pretraining.comparison.preparation import is_prepared, prepare
from pretraining.comparison.runs import share, training_runs
from pretraining.comparison.schedule import Failures, failure_name, in_progress, pretrain_all, train_all
from pretraining.comparison.settings import GROUPS, ComparisonSettings
from pretraining.console_commands import CommandStopped, find_command
from pretraining.launching.errors import STOPPED_EXIT_CODE
from pretraining.option_fields import add_options, given_values, require_ranges, spelled
from pretraining.settings.options import OptionParser, adder, natural, positive

STEPS = ("prepare", "pretrain", "train", "report")
_FOLDERS = (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
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

Run again, a comparison continues where it stopped. Its files and its report are in $nnUNet_results/PGL_compare/NAME.
Options may be written with one dash or two.
"""


def compare_entry() -> None:
    """Entry point of ``pgl_compare``."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if words and re.fullmatch("--?(pretrain|predict)_options", words[-1]):
            words[-1] += f"={word}"  # argparse would take a value that begins with a dash for an option
        else:
            words.append(word)
    arguments = _parser().parse_args(words)
    try:
        failures = _compare(arguments)
    except CommandStopped as stopped:
        print(f"pgl_compare: {stopped}. Run it again to continue", file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_compare: {error}"))
    if failures:
        print(f"\n{len(failures)} failed:")
        for name, reason in failures.items():
            print(f"  {name}: {reason}")
        sys.exit(1)


def _compare(arguments: argparse.Namespace) -> Failures:
    if arguments.results and (arguments.dry_run or arguments.slurm):
        raise PGLError("--results adds runs, --dry_run and --slurm change none: add them first, with --only prepare")
    comparison = _comparison(arguments)
    if arguments.dry_run:
        from pretraining.comparison.dry_run import print_dry_run

        print_dry_run(comparison)
        return {}
    if arguments.slurm:
        with comparison.alone("prepare", "the preparation"):
            script = write_submit_script(_comparison(arguments))
        print(f"Wrote {script}: edit its #SBATCH lines, then start it with bash")
        return {}
    steps = STEPS if arguments.only is None else (arguments.only,)
    if {"pretrain", "train"} & set(steps) and arguments.device == "cuda" and not torch.cuda.is_available():
        raise PGLError("no CUDA device was found: add -device cpu (or mps)")
    if "prepare" not in steps and not is_prepared(comparison):
        raise PGLError(f"{comparison.folder.path} is not prepared for these settings: run it with --only prepare first")
    part = arguments.part and tuple(arguments.part)
    failures: Failures = {}
    _warn_without_locks(comparison)
    if arguments.results:
        new = add_results(comparison, arguments.results)
        print(f"Added {new} run{'' if new == 1 else 's'} from {' '.join(map(str, arguments.results))}", flush=True)
    for step in steps:
        if step == "prepare":
            with comparison.alone("prepare", "the preparation"):
                comparison = _comparison(arguments)  # another process may have extended it since
                prepare(comparison)
        elif step == "pretrain":
            failures |= pretrain_all(comparison, share(_pretrained(comparison), part))
        elif step == "train":
            take_over = []
            if "pretrain" in steps:
                take_over = [init for init in _pretrained(comparison) if failure_name(init) not in failures]
            failures |= train_all(comparison, share(training_runs(comparison.settings), part), take_over)
        else:
            with comparison.alone("report", "the report"):
                _report(replace(comparison, settings=ComparisonSettings.load(comparison.folder.settings)), failures)
    if others := in_progress(comparison):
        print("\nIn progress elsewhere; what ends last writes the report of all:")
        print(*(f"  {name}: {holder}" for name, holder in others.items()), sep="\n", flush=True)
    return failures


def _pretrained(comparison: Comparison) -> list[Initialisation]:
    """The initialisations that the comparison pre-trains."""
    return [init for init in comparison.inits if init.options]


def _warn_without_locks(comparison: Comparison) -> None:
    with comparison.lock("prepare") as lock:
        if lock.take() and not lock.is_held:
            print(
                f"WARNING: no file can be locked in {comparison.folder.path}: where several pgl_compare do this "
                "comparison at the same time, give each its own share with --only and --part",
                flush=True,
            )


def _report(comparison: Comparison, failures: Failures) -> None:
    from pretraining.comparison.report import write_report
    from pretraining.comparison.study import describe_comparison

    results = collect_results(comparison)
    if results is not None:
        print("", *write_report(results, describe_comparison(comparison), comparison.folder.path), sep="\n")
    elif failures or in_progress(comparison):
        print("\nNo run is done: there is nothing to report yet.")
    else:
        raise PGLError(f"no run of {comparison.folder.name} is done: there is nothing to report yet")


def _comparison(arguments: argparse.Namespace) -> Comparison:
    """The comparison that the command line means, its settings checked."""
    for variable in _FOLDERS:
        if not variable.is_set():
            name = variable.env_var_name
            raise PGLError(f"{name} is not set: export {name}=/path/to/{name}")
    if arguments.part is not None:
        index, count = arguments.part
        if arguments.only not in ("pretrain", "train"):
            raise PGLError("--part is a share of one step: add --only pretrain or --only train")
        if index >= count:
            raise PGLError(f"--part {index} {count}: I runs from 0 to N - 1")
    given = given_values(arguments, ComparisonSettings)
    name = arguments.o or given.get("dataset")
    if name is None:
        raise PGLError("-d is missing: give a labelled dataset, or with -o the name of a comparison")
    folder = ComparisonFolder.from_name(name)
    if folder.settings.is_file():
        settings = ComparisonSettings.load(folder.settings).extended(given, folder.settings)
    elif "dataset" not in given:
        raise PGLError(f"-d is missing: there is no comparison {folder.path} to continue")
    else:
        settings = ComparisonSettings(**{"pretrain_on": (given["dataset"],), **given})
    require_ranges(settings)
    if settings.test_fraction is not None and settings.test_cases is not None:
        raise PGLError("--test_fraction and --test_cases: give one of them")
    if settings.configuration == "2d":
        raise PGLError("-c 2d: PGL's encoder is 3D; use 3d_fullres or 3d_lowres")
    find_trainer(settings.trainer)
    comparison = Comparison(folder, settings, arguments.device, arguments.np, download=not arguments.dry_run)
    comparison.inits, comparison.splits  # noqa: B018 - checks them
    return comparison


def write_submit_script(comparison: Comparison) -> Path:
    """Writes ``submit.sh``: the steps as jobs for Slurm that wait for each other; preparing is the first of them."""
    folder = comparison.folder
    comparison.save()
    pretrainings = sum(bool(init.options) for init in comparison.inits)
    # The steps in their order with the size of their arrays; 0: one job.
    jobs = {"prepare": 0, "pretrain": pretrainings, "train": len(training_runs(comparison.settings)), "report": 0}
    if not pretrainings:
        del jobs["pretrain"]
    exports = {variable.env_var_name: os.fspath(variable) for variable in _FOLDERS}
    loader = PackageLoader("pretraining.comparison")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    script = folder.path / "submit.sh"
    text = environment.get_template("submit.jinja").render(
        name=folder.name,
        script=script,
        log=folder.logs("slurm"),
        exports={**exports, EXTENSION: extension_path()},
        command=find_command("pgl_compare"),
        device=comparison.device,
        processes=comparison.processes,
        jobs=jobs,
    )
    write_file(script, f"{text}\n")
    return script


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="pgl_compare",
        description="Does pre-training help on your data? Compares initialisations at several fractions of the labels "
        "on a fixed test set, through nnU-Net, and writes a report.",
        epilog=_EPILOG,
    )
    add_options(parser, (ComparisonSettings,), GROUPS, _default_of)
    add = adder(parser.add_argument_group("run"))
    add("o", metavar="NAME", help="name of the comparison (default: that of the dataset)")
    add("device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add("np", type=positive, default=8, metavar="N", help="processes for preprocessing (default: 8)")
    add("only", choices=STEPS, help="only this step")
    part = "with --only: the I-th of N shares of the step, from 0"
    add("part", nargs=2, type=natural, metavar=("I", "N"), help=part)
    done_elsewhere = "results.csv of runs done elsewhere: these are added, and not run again"
    add("results", nargs="+", type=Path, metavar="FILE", help=done_elsewhere)
    add("dry_run", action="store_true", help="list the runs with their state and an estimate of time; change nothing")
    add("slurm", action="store_true", help="write a submit script for Slurm into the comparison's folder; run nothing")
    return parser


def _default_of(_: type, of: Field[Any]) -> str:
    text: str | None = of.metadata["option"].default_text
    return text or ("" if of.default in (MISSING, None, "") else spelled(of.default))
