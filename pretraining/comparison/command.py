"""The command ``pgl_compare``."""

from __future__ import annotations

import argparse
import sys

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunetv2_pgl.errors import PGLError, one_line
from pretraining.comparison.comparison import Comparison, find_trainer
from pretraining.comparison.execution import Failures, collect_results, pretrain_all, train_all
from pretraining.comparison.merging import add_results
from pretraining.comparison.options import STEPS, parse, settings_given
from pretraining.comparison.preparation import is_prepared, prepare
from pretraining.comparison.runs import share, training_runs
from pretraining.comparison.settings import ComparisonFolder, ComparisonSettings
from pretraining.launching.commands import CommandStopped
from pretraining.launching.errors import STOPPED_EXIT_CODE


def compare_entry() -> None:
    """Entry point of ``pgl_compare``."""
    arguments = parse(sys.argv[1:])
    try:
        failures = _compare(arguments)
    except CommandStopped as stopped:
        print(f"pgl_compare: {stopped}. Call it again to go on", file=sys.stderr)
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
        raise PGLError(
            "--results takes in runs, --dry_run and --slurm change none: give it alone first, with --only prepare"
        )
    comparison = _comparison(arguments)
    if arguments.dry_run:
        from pretraining.comparison.dry_run import print_dry_run

        print_dry_run(comparison)
        return {}
    if arguments.slurm:
        from pretraining.comparison.slurm import write_submit_script

        print(f"Wrote {write_submit_script(comparison)}: edit its #SBATCH lines, then start it with bash")
        return {}
    steps = STEPS if arguments.only is None else (arguments.only,)
    if {"pretrain", "train"} & set(steps) and arguments.device == "cuda" and not torch.cuda.is_available():
        raise PGLError("no CUDA device was found: add -device cpu (or mps)")
    if "prepare" not in steps and not is_prepared(comparison):
        raise PGLError(f"{comparison.folder.path} is not prepared for these settings: run it with --only prepare first")
    part = arguments.part and tuple(arguments.part)
    failures: Failures = {}
    if arguments.results:
        new = add_results(comparison, arguments.results)
        print(f"Took in {new} run{'' if new == 1 else 's'} from {' '.join(map(str, arguments.results))}", flush=True)
    for step in steps:
        if step == "prepare":
            prepare(comparison)
        elif step == "pretrain":
            failures |= pretrain_all(comparison, share([init for init in comparison.inits if init.options], part))
        elif step == "train":
            failures |= train_all(comparison, share(training_runs(comparison.settings), part))
        else:
            _report(comparison, failures)
    return failures


def _report(comparison: Comparison, failures: Failures) -> None:
    from pretraining.comparison.report import write_report
    from pretraining.comparison.study import study_of

    results = collect_results(comparison)
    if results is not None:
        print("", *write_report(results, study_of(comparison), comparison.folder.path), sep="\n")
    elif failures:
        print("\nNo run is done: there is nothing to report yet.")
    else:
        raise PGLError(f"no run of {comparison.folder.name} is done: there is nothing to report yet")


def _comparison(arguments: argparse.Namespace) -> Comparison:
    """The comparison that the command line means, its settings checked."""
    for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        if not variable.is_set():
            name = variable.env_var_name
            raise PGLError(f"{name} is not set: export {name}=/path/to/{name}")
    if arguments.part is not None:
        index, count = arguments.part
        if arguments.only not in ("pretrain", "train"):
            raise PGLError("--part is a share of one step: add --only pretrain or --only train")
        if index >= count:
            raise PGLError(f"--part {index} {count}: I runs from 0 to N - 1")
    given = settings_given(arguments)
    name = arguments.o or given.get("dataset")
    if name is None:
        raise PGLError("-d is missing: give a labelled data set, or with -o the name of a comparison")
    folder = ComparisonFolder.named(name)
    if folder.settings.is_file():
        settings = ComparisonSettings.load(folder.settings).extended(given, folder.settings)
    elif "dataset" not in given:
        raise PGLError(f"-d is missing: there is no comparison {folder.path} to go on with")
    else:
        settings = ComparisonSettings(**{"pretrain_on": (given["dataset"],), **given})
    if settings.test_fraction is not None and settings.test_cases is not None:
        raise PGLError("--test_fraction and --test_cases: give one of them")
    find_trainer(settings.trainer)
    comparison = Comparison(folder, settings, arguments.device, arguments.np)
    comparison.inits, comparison.splits  # noqa: B018 - checks them
    return comparison
