"""pgl_demo: the whole way from unlabelled scans to segmented test scans, on generated CT phantoms."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from nnunetv2_pgl.errors import one_line
from pretraining.demo.datasets import FILE_ENDING, write_labelled_dataset, write_unlabelled_dataset
from pretraining.demo.folder import (
    CONFIGURATION,
    FOLD,
    LABELLED_ID,
    LABELLED_NAME,
    RUN_NAME,
    TRAINER,
    UNLABELLED_ID,
    UNLABELLED_NAME,
    DemoFolder,
    DemoFolderError,
)
from pretraining.demo.pictures import PredictedCase, draw_phantom, draw_predictions, read_volume
from pretraining.demo.results import CaseResult, dice_table, read_results
from pretraining.launching.commands import CommandError, CommandRunner

N_UNLABELLED, N_TRAIN, N_TEST = 24, 8, 4
# Chosen so that the demo takes minutes on two CPU cores; real runs keep the defaults.
PRETRAIN_OPTIONS = "-patch 16 32 40 -strides 8 8 8 -epochs 6 -pairs 96 -save_every 1"
N_PROCESSES = "2"


def demo_entry() -> None:
    """Entry point of ``pgl_demo``."""
    arguments = _parser().parse_args()
    folder = DemoFolder(arguments.output.expanduser().resolve())
    try:
        folder.prepare(arguments.overwrite)
        _run_demo(folder, arguments.device, arguments.seed)
    except (DemoFolderError, CommandError, OSError) as error:
        sys.exit(one_line(f"pgl_demo: {error}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgl_demo",
        description="Shows all of it on generated CT phantoms: pre-training without labels, nnU-Net training from the "
        "pre-trained encoder, prediction, evaluation. Takes some minutes on a laptop CPU.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("pgl_demo"), metavar="FOLDER", help="new folder (default: ./pgl_demo)"
    )
    parser.add_argument(
        "-device",
        "--device",
        choices=("cpu", "cuda", "mps"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: cuda where there is one, else cpu",
    )
    parser.add_argument("-seed", "--seed", type=int, default=0, help="of phantoms and pre-training (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a former demo in FOLDER")
    return parser


def _run_demo(folder: DemoFolder, device: str, seed: int) -> None:
    start = time.monotonic()
    runner = CommandRunner(folder.root / "logs", _environment(folder))
    _announce_variables(folder, runner)
    _write_datasets(folder, seed)
    for command in _commands(folder, device, seed):
        begin = time.monotonic()
        runner.run(command)
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    results = read_results(folder.predictions / "summary.json", FILE_ENDING)
    pictures = _draw_pictures(folder, results)
    print(f"\nDice on {len(results)} test scans\n{dice_table(results)}\n\nPictures")
    for picture in pictures:
        print(f"  {picture}")
    print(f"\nThe demo took {(time.monotonic() - start) / 60:.1f} minutes. All of it is in {folder.root}")


def _environment(folder: DemoFolder) -> dict[str, str]:
    """The variables of the commands: nnU-Net's folders are the demo's, whatever the user has set."""
    environment = dict(os.environ)
    environment.pop("PGL_CHECKPOINT", None)  # the demo's own run is the one to start from
    # As many processes as there are cores; nnU-Net's defaults are meant for larger machines.
    environment.setdefault("nnUNet_n_proc_DA", N_PROCESSES)
    environment.setdefault("nnUNet_def_n_proc", N_PROCESSES)
    return {
        **environment,
        "nnUNet_raw": str(folder.raw),
        "nnUNet_preprocessed": str(folder.preprocessed),
        "nnUNet_results": str(folder.results),
    }


def _announce_variables(folder: DemoFolder, runner: CommandRunner) -> None:
    """Set nnUNet_extTrainer and print what a user would type to have the same variables."""
    runner.set_variable("nnUNet_extTrainer", runner.output_of(["pgl_extension"]))
    print("The demo runs the following with these variables, set for its own commands only:\n")
    print(f'export nnUNet_raw="{folder.raw}"')
    print(f'export nnUNet_preprocessed="{folder.preprocessed}"')
    print(f'export nnUNet_results="{folder.results}"')
    print('export nnUNet_extTrainer="$(pgl_extension)"', flush=True)


def _write_datasets(folder: DemoFolder, seed: int) -> None:
    print(f"\nGenerating {N_UNLABELLED} scans without and {N_TRAIN} + {N_TEST} with labels ...", flush=True)
    write_unlabelled_dataset(folder.raw, UNLABELLED_ID, UNLABELLED_NAME, N_UNLABELLED, seed)
    write_labelled_dataset(folder.raw, LABELLED_ID, LABELLED_NAME, N_TRAIN, N_TEST, seed)


def _commands(folder: DemoFolder, device: str, seed: int) -> list[list[str]]:
    """The commands of the demo in their order."""
    dataset = str(LABELLED_ID)
    on_device = ["-device", device]
    pretrain = ["pgl_pretrain", "-d", str(UNLABELLED_ID), "-o", RUN_NAME, *shlex.split(PRETRAIN_OPTIONS)]
    predict = ["nnUNetv2_predict", "-i", str(folder.labelled / "imagesTs"), "-o", str(folder.predictions)]
    predict += ["-d", dataset, "-c", CONFIGURATION, "-f", FOLD, "-tr", TRAINER, *on_device]
    evaluate = ["nnUNetv2_evaluate_folder", str(folder.labelled / "labelsTs"), str(folder.predictions)]
    evaluate += ["-djfile", str(folder.model / "dataset.json"), "-pfile", str(folder.model / "plans.json")]
    plan = ["nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", CONFIGURATION, "-np", N_PROCESSES]
    return [
        [*pretrain, "-np", N_PROCESSES, "-seed", str(seed), *on_device],
        [*plan, "--verify_dataset_integrity"],
        ["nnUNetv2_train", dataset, CONFIGURATION, FOLD, "-tr", TRAINER, *on_device],
        [*predict, "--disable_tta", "-npp", "1", "-nps", "1"],
        [*evaluate, "-np", N_PROCESSES],
    ]


def _draw_pictures(folder: DemoFolder, results: list[CaseResult]) -> list[Path]:
    """Draw the demo's own pictures; return them and those that the commands have drawn, in the demo's order."""
    phantom, predictions = folder.pictures / "phantom.png", folder.pictures / "predictions.png"
    first = f"{LABELLED_NAME}_000"
    image = read_volume(folder.labelled / "imagesTr" / f"{first}_0000{FILE_ENDING}")
    draw_phantom(image, read_volume(folder.labelled / "labelsTr" / f"{first}{FILE_ENDING}"), phantom)
    chosen = {"Worst": results[0], "Best": results[-1]}
    draw_predictions([_predicted_case(folder, which, result) for which, result in chosen.items()], predictions)
    drawn = [folder.pretraining / "views.png", folder.pretraining / "progress.png"]
    drawn.append(folder.model / f"fold_{FOLD}" / "progress.png")
    return [phantom, *(picture for picture in drawn if picture.is_file()), predictions]


def _predicted_case(folder: DemoFolder, which: str, result: CaseResult) -> PredictedCase:
    segmentation = f"{result.case}{FILE_ENDING}"
    dice = "undefined" if math.isnan(result.mean_dice) else f"{result.mean_dice:.3f}"
    return PredictedCase(
        title=f"{which} case, {result.case}: mean Dice {dice}",
        image=read_volume(folder.labelled / "imagesTs" / f"{result.case}_0000{FILE_ENDING}"),
        truth=read_volume(folder.labelled / "labelsTs" / segmentation),
        prediction=read_volume(folder.predictions / segmentation),
    )
