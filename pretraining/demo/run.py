"""pgl_demo: the whole way from unlabelled scans to segmented test scans, on generated CT phantoms."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.extension_folder import extension_folder
from pretraining.console_commands import CommandRunner
from pretraining.demo.datasets import FILE_ENDING, write_labelled_dataset, write_unlabelled_dataset
from pretraining.demo.phantoms import LABELS
from pretraining.demo.pictures import PredictedCase, draw_phantom, draw_predictions, read_volume
from pretraining.settings.options import OptionParser, natural

UNLABELLED_ID, UNLABELLED_NAME, N_UNLABELLED = 501, "PGLDemoUnlabelled", 16
LABELLED_ID, LABELLED_NAME, N_TRAIN, N_TEST = 502, "PGLDemoTorso", 16, 4
RUN_NAME = "demo"
TRAINER, CONFIGURATION, FOLD = "nnUNetTrainerPGL_demo", "3d_fullres", "0"
# Scans, views and steps are chosen so that the demo takes minutes on two CPU cores; real runs keep the defaults.
SHAPE, SPACING = (20, 32, 40), (14.0, 9.4, 9.4)
PRETRAIN_OPTIONS = "-patch 16 24 32 -strides 8 8 8 -b 4 -epochs 4 -pairs 32 -save_every 1"
# Work is short and starting a process takes seconds, so there is one at a time. Planning does not work with 0.
ONE_PROCESS = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}

_MARKER = "pgl_demo.txt"
_WRITTEN_NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs", "predictions", "pictures", _MARKER)


@dataclass(frozen=True)
class DemoFolder:
    """Where the demo keeps what; all of it lies in ``root``."""

    root: Path

    @property
    def raw(self) -> Path:
        """The folder for nnUNet_raw."""
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """The folder for nnUNet_preprocessed."""
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """The folder for nnUNet_results."""
        return self.root / "nnUNet_results"

    @property
    def labelled(self) -> Path:
        """The raw dataset with labels."""
        return self.raw / f"Dataset{LABELLED_ID}_{LABELLED_NAME}"

    @property
    def model(self) -> Path:
        """The folder of the fine-tuned model."""
        return self.results / self.labelled.name / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"

    @property
    def predictions(self) -> Path:
        """The segmentations of the test scans."""
        return self.root / "predictions"

    def prepare(self, overwrite: bool) -> None:
        """Create the folder, or remove all that a former demo wrote into it.

        Raises:
            PGLError: The folder holds something else, or a former demo and ``overwrite`` is not set.
        """
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            if not (self.root / _MARKER).is_file():
                raise PGLError(f"{self.root} exists and holds no former demo; choose another folder with -o")
            if not overwrite:
                raise PGLError(f"{self.root} holds a former demo; add --overwrite, or choose another with -o")
            for name in _WRITTEN_NAMES:
                path = self.root / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True)
        (self.root / _MARKER).write_text("Written by pgl_demo, which may overwrite this folder.\n", encoding="utf-8")


def demo_entry() -> None:
    """Entry point of ``pgl_demo``."""
    arguments = _parser().parse_args()
    folder = DemoFolder(arguments.output.expanduser().resolve())
    try:
        folder.prepare(arguments.overwrite)
        _run_demo(folder, arguments.device, arguments.seed)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_demo: {error}"))


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="pgl_demo",
        description="Shows all of it on generated CT phantoms: pre-training without labels, nnU-Net training from the "
        "pre-trained encoder,\nprediction, evaluation. Takes some minutes on a laptop CPU.",
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
    parser.add_argument("-seed", "--seed", type=natural, default=0, help="seed of phantoms and encoder (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a former demo in FOLDER")
    return parser


def _run_demo(folder: DemoFolder, device: str, seed: int) -> None:
    start = time.monotonic()
    # nnU-Net's folders are the demo's, whatever the user has set, and its encoder is the one to start from.
    folders = {
        "nnUNet_raw": str(folder.raw),
        "nnUNet_preprocessed": str(folder.preprocessed),
        "nnUNet_results": str(folder.results),
    }
    environment = {name: value for name, value in os.environ.items() if name != "PGL_CHECKPOINT"}
    environment |= {**folders, **ONE_PROCESS, "nnUNet_extTrainer": str(extension_folder())}
    runner = CommandRunner(folder.root / "logs", environment)
    print("The demo runs the following with these variables, set for its own commands only:\n")
    for name, value in {**folders, "nnUNet_extTrainer": "$(pgl_extension)"}.items():
        print(f'export {name}="{value}"')
    print(f"\nGenerating {N_UNLABELLED} scans without and {N_TRAIN} + {N_TEST} with labels ...", flush=True)
    write_unlabelled_dataset(
        folder.raw, UNLABELLED_ID, UNLABELLED_NAME, N_UNLABELLED, seed, shape=SHAPE, spacing=SPACING
    )
    write_labelled_dataset(folder.raw, LABELLED_ID, LABELLED_NAME, N_TRAIN, N_TEST, seed, shape=SHAPE, spacing=SPACING)
    for command in demo_commands(folder, device, seed):
        begin = time.monotonic()
        runner.run(command)
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    results = read_results(folder.predictions / "summary.json")
    print(f"\nDice on {len(results)} test scans\n{dice_table(results)}\n\nPictures")
    for picture in _draw_pictures(folder, results):
        print(f"  {picture}")
    print(f"\nThe demo took {(time.monotonic() - start) / 60:.1f} minutes. All of it is in {folder.root}")


def demo_commands(folder: DemoFolder, device: str, seed: int) -> list[list[str]]:
    """The commands of the demo in their order."""
    data, model = f"-d {LABELLED_ID} -c {CONFIGURATION}", f"-f {FOLD} -tr {TRAINER}"
    images, truth, predictions = (
        shlex.quote(str(path))
        for path in (folder.labelled / "imagesTs", folder.labelled / "labelsTs", folder.predictions)
    )
    dataset_json, plans = (shlex.quote(str(folder.model / name)) for name in ("dataset.json", "plans.json"))
    commands = [
        f"pgl_pretrain -d {UNLABELLED_ID} -o {RUN_NAME} {PRETRAIN_OPTIONS} -np 1 -seed {seed} -device {device}",
        f"nnUNetv2_plan_and_preprocess {data} -npfp 1 -np 1",
        f"nnUNetv2_train {LABELLED_ID} {CONFIGURATION} {FOLD} -tr {TRAINER} -device {device}",
        f"nnUNetv2_predict -i {images} -o {predictions} {data} {model} -device {device} --disable_tta -npp 1 -nps 1",
        f"nnUNetv2_evaluate_folder {truth} {predictions} -djfile {dataset_json} -pfile {plans} -np 1",
    ]
    return [shlex.split(command) for command in commands]


def read_results(summary: Path) -> pd.DataFrame:
    """Read a summary.json of nnUNetv2_evaluate_folder.

    Args:
        summary: The file.

    Returns:
        The Dice, a row for each case, the worst first, and a column for each organ and for the mean over them; nan
        where neither truth nor prediction has the organ, which the mean leaves out.
    """
    dice = {
        Path(case["prediction_file"]).name.removesuffix(FILE_ENDING): {
            organ: float(case["metrics"][str(label)]["Dice"]) for organ, label in LABELS.items()
        }
        for case in json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
    }
    results = pd.DataFrame.from_dict(dice, orient="index")
    return results.assign(mean=results.mean(axis=1)).sort_values("mean")


def dice_table(results: pd.DataFrame) -> str:
    """The Dice as text: one line for each organ with mean, worst and best case, and the mean over organs."""
    table = results.agg(["mean", "min", "max"]).T.rename(columns={"min": "worst", "max": "best"})
    table.index = [f"{name.replace('_', ' '):<14}" for name in table.index]
    text: str = table.to_string(float_format="%.3f")
    return text


def _draw_pictures(folder: DemoFolder, results: pd.DataFrame) -> list[Path]:
    """Draw the demo's own pictures; return them and those that the commands have drawn, in the demo's order."""
    phantom, predictions = (folder.root / "pictures" / name for name in ("phantom.png", "predictions.png"))
    images, labels = folder.labelled / "imagesTr", folder.labelled / "labelsTr"
    first = f"{LABELLED_NAME}_000"
    draw_phantom(
        read_volume(images / f"{first}_0000{FILE_ENDING}"), read_volume(labels / f"{first}{FILE_ENDING}"), phantom
    )
    cases = [
        PredictedCase(
            title=f"{which} case, {case}: mean Dice {results['mean'][case]:.3f}",
            image=read_volume(folder.labelled / "imagesTs" / f"{case}_0000{FILE_ENDING}"),
            truth=read_volume(folder.labelled / "labelsTs" / f"{case}{FILE_ENDING}"),
            prediction=read_volume(folder.predictions / f"{case}{FILE_ENDING}"),
        )
        for which, case in {"Worst": results.index[0], "Best": results.index[-1]}.items()
    ]
    draw_predictions(cases, predictions)
    pretraining = folder.results / "PGL" / RUN_NAME
    drawn = [pretraining / "views.png", pretraining / "progress.png", folder.model / f"fold_{FOLD}" / "progress.png"]
    return [phantom, *(picture for picture in drawn if picture.is_file()), predictions]
