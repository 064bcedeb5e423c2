"""The commands one after the other, as a user types them: pre-train, fine-tune, predict, hand on.

Each chapter is a fixture that runs once and builds on the chapters before it. A command that ends otherwise than
expected fails its chapter with the command's output, and with it all tests that come after.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.image import imread

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.demo.datasets import write_labelled_dataset, write_unlabelled_dataset

pytestmark = pytest.mark.slow

DATASET = "Dataset502_Torso"
TRAINER, SCRATCH = "nnUNetTrainerPGL_test", "nnUNetTrainerPGLScratch_test"
VIEWS = ("-patch", "6", "12", "16", "-np", "1")
SMALL_RUN = (*VIEWS, "-epochs", "1", "-b", "2", "-pairs", "2", "-optimizer", "adamw", "-lr", "1e-4")
CPU = ("-device", "cpu")


@dataclass(frozen=True)
class Shell:
    """nnU-Net's folders below a root, and a shell with the variables that the user has exported."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    def model(self, trainer: str = TRAINER, plans: str = "nnUNetPlans", configuration: str = "3d_fullres") -> Path:
        return self.results / DATASET / f"{trainer}__{plans}__{configuration}"

    def run(self, *command: str, exit_code: int | None = 0, **variables: str | None) -> str:
        """Runs a command and returns what it prints, both streams in one as on a terminal.

        Args:
            command: An installed console script, or "python", with its arguments.
            exit_code: What it must end with; None: anything but 0.
            variables: Added to the environment; None takes one out.
        """
        executable = Path(sys.executable).parent / command[0]
        given = {**self._variables(), **variables}
        environment = {name: value for name, value in {**os.environ, **given}.items() if value is not None}
        result = subprocess.run(
            [str(executable), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=self.root,
            check=False,
        )
        as_expected = result.returncode != 0 if exit_code is None else result.returncode == exit_code
        assert as_expected, f"{' '.join(command)} ended with exit code {result.returncode}:\n{result.stdout[-4000:]}"
        return result.stdout

    def _variables(self) -> dict[str, str | None]:
        folders = {folder.name: str(folder) for folder in (self.raw, self.preprocessed, self.results)}
        # One process each: starting them takes longer than the work.
        few = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_npp": "1", "nnUNet_nps": "1"}
        return {**folders, **few, "nnUNet_extTrainer": None, "PGL_CHECKPOINT": None, "PYTHONUNBUFFERED": None}


def trained(shell: Shell, fold: str, *options: str, **variables: str | None) -> str:
    return shell.run("nnUNetv2_train", "502", "3d_fullres", fold, "-tr", TRAINER, *options, *CPU, **variables)


def predicted(shell: Shell, output: Path, *command: str, **variables: str | None) -> dict[str, np.ndarray]:
    """Runs a command that predicts the test scans, and returns their probabilities."""
    images = shell.root / "imagesTs"
    shell.run(
        *command, "-i", str(images), "-o", str(output), "--save_probabilities", "--disable_tta", *CPU, **variables
    )
    probabilities = {}
    for image in sorted(images.iterdir()):
        case = image.name.removesuffix("_0000.nii.gz")
        probabilities[case] = np.load(output / f"{case}.npz")["probabilities"]
        segmentation = sitk.ReadImage(str(output / f"{case}.nii.gz"))
        assert segmentation.GetSize() == sitk.ReadImage(str(image)).GetSize()
        assert np.array_equal(sitk.GetArrayFromImage(segmentation), probabilities[case].argmax(0))
    return probabilities


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for case, probabilities in one.items():
        assert probabilities.std() > 1e-3, "constant: says nothing about equality"
        assert np.array_equal(probabilities, other[case]), case


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Data: an unlabelled dataset, a folder of scans of which one is damaged, and a labelled dataset."""
    root = tmp_path_factory.mktemp("end_to_end")
    shell = Shell(root)
    for folder in (shell.raw, shell.preprocessed, shell.results):
        folder.mkdir()
    coarse: dict[str, Any] = {"shape": (10, 20, 24), "spacing": (28, 16, 16)}
    write_unlabelled_dataset(shell.raw, 501, "Small", 2, 0, **coarse)
    write_unlabelled_dataset(root, 503, "Loose", 3, 0, **coarse)
    (root / "Dataset503_Loose" / "imagesTr").rename(root / "scans")
    damaged = sorted((root / "scans").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    # All that nnU-Net's five folds need, and no more: small scans of the whole body.
    labelled = write_labelled_dataset(shell.raw, 502, "Torso", 5, 1, 0, shape=(8, 12, 16), spacing=(36, 26, 24))
    shutil.copytree(labelled / "imagesTs", root / "imagesTs")
    yield shell
    shutil.rmtree(root)  # gigabytes of checkpoints


@pytest.fixture(scope="module")
def pretrained(shell: Shell) -> str:
    """Chapter 1; the output of pgl_pretrain on a dataset and a folder, pooled."""
    return shell.run("pgl_pretrain", "-d", "501", str(shell.root / "scans"), "-o", "pool", *SMALL_RUN, *CPU)


@pytest.fixture(scope="module")
def planned(shell: Shell) -> None:
    """Chapter 2."""
    options = ("-c", "3d_fullres", "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    shell.run("nnUNetv2_plan_and_preprocess", "-d", "502", *options, nnUNet_n_proc_DA="1")


@pytest.fixture(scope="module")
def trainers(shell: Shell) -> str:
    """nnUNet_extTrainer: the package's folder, and one of the user's own."""
    own = shell.root / "own_trainers"
    shutil.copytree(Path(__file__).parent / "end_to_end_trainer", own, ignore=shutil.ignore_patterns("__pycache__"))
    return os.pathsep.join([shell.run("pgl_extension").strip(), str(own)])


@pytest.fixture(scope="module")
def model(shell: Shell, pretrained: str, planned: None, trainers: str) -> list[str]:
    """Chapter 3; the outputs of training folds 0 and 1, the first one in two goes and without validation files."""
    first = trained(shell, "0", nnUNet_extTrainer=trainers)
    encoder = shell.results / "PGL"
    hidden = encoder.rename(shell.root / "PGL_out_of_sight")
    gone_on = trained(shell, "0", "--c", nnUNet_extTrainer=trainers, EPOCHS="2")
    validated = trained(shell, "0", "--val", "--npz", nnUNet_extTrainer=trainers)
    hidden.rename(encoder)
    second = trained(
        shell, "1", "--npz", nnUNet_extTrainer=trainers, PGL_CHECKPOINT=str(encoder / "pool" / "checkpoint_final.pth")
    )
    return [first, gone_on, validated, second]


@pytest.fixture(scope="module")
def probabilities(shell: Shell, model: list[str], trainers: str) -> dict[str, np.ndarray]:
    """Chapter 4; what both folds together predict."""
    command = ("nnUNetv2_predict", "-d", "502", "-c", "3d_fullres", "-f", "0", "1", "-tr", TRAINER)
    return predicted(shell, shell.root / "predicted", *command, nnUNet_extTrainer=trainers)


def test_pretraining_skips_the_damaged_scan_and_goes_on(shell: Shell, pretrained: str) -> None:
    checkpoint = load_checkpoint(shell.results / "PGL" / "pool" / "checkpoint_final.pth")
    assert checkpoint.pgl["num_scans"] == 4
    assert checkpoint.pgl["datasets"] == ["Dataset501_Small", "scans"]
    _, at_the_end = pretrained.split("skipped:\n")
    assert "Loose_001" in at_the_end
    assert "truncated" in at_the_end
    assert "Loose_000" not in at_the_end
    assert "nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL" in at_the_end


def test_a_finished_pretraining_is_not_run_again(shell: Shell, pretrained: str) -> None:
    final = shell.results / "PGL" / "pool" / "checkpoint_final.pth"
    before = load_checkpoint(final).encoder_weights
    output = shell.run("pgl_pretrain", "-o", "pool", "--c", *CPU)
    assert "Continuing after epoch 1 of 1" in output
    assert "train_loss" not in output
    assert all(torch.equal(value, before[key]) for key, value in load_checkpoint(final).encoder_weights.items())


def test_info(shell: Shell, pretrained: str) -> None:
    path = shell.results / "PGL" / "pool" / "checkpoint_final.pth"
    output = shell.run("pgl_info", str(path))
    for fact in ("46,155,072", "Dataset501_Small", "Xie, Y.", sha256_of(path)):
        assert fact in output


def test_preview(shell: Shell, pretrained: str) -> None:
    output = shell.run("pgl_preview", "-d", "501", *VIEWS, "-n", "2", "-o", "pairs.png")
    assert output.strip().endswith("pairs.png")
    assert imread(shell.root / "pairs.png").std() > 0.05


def test_training_starts_from_the_encoder(shell: Shell, model: list[str]) -> None:
    path = shell.results / "PGL" / "pool" / "checkpoint_final.pth"
    for output, fold, named_by in (
        (model[0], "fold_0", "the only run in $nnUNet_results/PGL"),
        (model[3], "fold_1", "PGL_CHECKPOINT"),
    ):
        assert f"Starting from the encoder {path} (named by {named_by}" in output
        record = json.loads((shell.model() / fold / "pgl_checkpoint.json").read_text())
        assert (record["path"], record["sha256"]) == (str(path), sha256_of(path))
        assert (shell.model() / fold / "progress.png").is_file()
        assert len(list((shell.model() / fold / "validation").glob("*.npz"))) == 1


def test_going_on_needs_no_encoder(model: list[str]) -> None:
    _, gone_on, validated, _ = model
    assert "Epoch 1" in gone_on
    assert "Epoch 0" not in gone_on
    assert "Epoch" not in validated
    assert "Mean Validation Dice" in validated
    assert "Starting from the encoder" not in gone_on + validated


def test_predicting_from_the_model_folder_is_the_same(
    shell: Shell, probabilities: dict[str, np.ndarray], trainers: str
) -> None:
    command = ("nnUNetv2_predict_from_modelfolder", "-m", str(shell.model()), "-f", "0", "1", "-npp", "1", "-nps", "1")
    assert_same(predicted(shell, shell.root / "from_folder", *command, nnUNet_extTrainer=trainers), probabilities)


def test_best_configuration(shell: Shell, model: list[str]) -> None:
    options = ("-c", "3d_fullres", "-tr", TRAINER, "-f", "0", "1", "--disable_ensembling")
    output = shell.run("nnUNetv2_find_best_configuration", "502", *options)
    assert f"-tr {TRAINER}" in output
    best = json.loads((shell.results / DATASET / "inference_information.json").read_text())
    (selected,) = best["best_model_or_ensemble"]["selected_model_or_models"]
    assert (selected["trainer"], selected["configuration"]) == (TRAINER, "3d_fullres")


def test_a_model_that_is_handed_on_predicts_the_same(
    shell: Shell, probabilities: dict[str, np.ndarray], trainers: str
) -> None:
    """The recipient has the zip and this package, no data and no encoder."""
    archive = shell.root / "model.zip"
    options = ("-c", "3d_fullres", "-tr", TRAINER, "-f", "0", "1")
    shell.run("nnUNetv2_export_model_to_zip", "-d", "502", "-o", str(archive), *options)
    elsewhere: dict[str, str | None] = {
        "nnUNet_raw": None,
        "nnUNet_preprocessed": None,
        "nnUNet_results": str(shell.root / "elsewhere"),
    }
    (shell.root / "elsewhere").mkdir()
    shell.run("nnUNetv2_install_pretrained_model_from_zip", str(archive), **elsewhere)
    command = ("nnUNetv2_predict", "-d", "502", *options)
    again = predicted(shell, shell.root / "predicted_elsewhere", *command, **elsewhere, nnUNet_extTrainer=trainers)
    assert_same(again, probabilities)


def test_without_the_variable(shell: Shell, planned: None) -> None:
    command = ("nnUNetv2_train", "502", "3d_fullres", "0", "-tr", "nnUNetTrainerPGL", *CPU)
    assert "nnUNet_extTrainer" in shell.run(*command, exit_code=None)
    assert 'export nnUNet_extTrainer="$(pgl_extension)"' in shell.run("pgl_extension", "--check", exit_code=1)


def test_with_the_variable(shell: Shell, trainers: str) -> None:
    assert "ready to train and to predict" in shell.run("pgl_extension", "--check", nnUNet_extTrainer=trainers)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.victim), "w"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("missing", "no such checkpoint"), ("truncated", "truncated"), ("hostile", "could run code")],
)
def test_a_bad_encoder_stops_the_training_in_one_line(
    shell: Shell, planned: None, trainers: str, kind: str, reason: str
) -> None:
    path, victim = shell.root / f"{kind}.pth", shell.root / "victim"
    if kind == "truncated":
        torch.save(ResNet50Encoder().conv.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "hostile":
        torch.save({"network_weights": {}, "pgl": Hostile(victim)}, path, pickle_module=pickle)
    command = ("nnUNetv2_train", "502", "3d_fullres", "0", "-tr", "nnUNetTrainerPGL", *CPU)
    output = shell.run(*command, exit_code=1, nnUNet_extTrainer=trainers, PGL_CHECKPOINT=str(path))
    last = output.strip().splitlines()[-1]
    assert str(path) in last
    assert reason in last
    assert "Traceback" not in output
    assert not victim.exists()


def test_torchrun_and_num_gpus_are_the_same_run(shell: Shell) -> None:
    settings = ("-d", "501", *SMALL_RUN, *CPU)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pretraining")
    # Where there are several processes torchrun gives each one thread; sums then round alike in both runs.
    shell.run("python", *launch, *settings, "-o", "by_torchrun", OMP_NUM_THREADS="1")
    shell.run("pgl_pretrain", *settings, "-o", "spawned", "-num_gpus", "2", OMP_NUM_THREADS="1")
    runs = [shell.results / "PGL" / name for name in ("by_torchrun", "spawned")]
    one, other = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    measured = ("epoch", "loss", "feature_std", "within_views", "learning_rate", "tau", "flipped_right")
    assert len(one) == 1
    assert [[record[key] for key in measured] for record in one] == [[r[key] for key in measured] for r in other]
    for run in runs:
        shutil.rmtree(run)  # the training looks for the only run


@pytest.fixture(scope="module")
def cascade(shell: Shell, planned: None) -> str:
    """Plans with the two stages that nnU-Net makes for large images, as its planner writes them; their name."""
    name = "CascadePlans"
    folder = shell.preprocessed / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    full = plans["configurations"]["3d_fullres"]
    low = {
        "data_identifier": f"{name}_3d_lowres",
        "spacing": [1.5 * spacing for spacing in full["spacing"]],
        "median_image_size_in_voxels": [size / 1.5 for size in full["median_image_size_in_voxels"]],
        "next_stage": "3d_cascade_fullres",
    }
    plans["plans_name"] = name
    plans["configurations"]["3d_lowres"] = {**full, **low}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (folder / f"{name}.json").write_text(json.dumps(plans))
    shell.run("nnUNetv2_preprocess", "-d", "502", "-plans_name", name, "-c", "3d_lowres", "-np", "1")
    return name


def test_cascade_of_the_control(shell: Shell, cascade: str, trainers: str) -> None:
    """Both stages train and predict; the control needs no encoder, whatever lies around."""
    low, full = shell.root / "predicted_low", shell.root / "predicted_full"
    stages = {"3d_lowres": (low,), "3d_cascade_fullres": (full, "-prev_stage_predictions", str(low))}
    for configuration, (output, *previous) in stages.items():
        # Fold all: its validation predicts every case for the next stage.
        command = ("502", configuration, "all", "-tr", SCRATCH, "-p", cascade)
        log = shell.run("nnUNetv2_train", *command, *CPU, nnUNet_extTrainer=trainers)
        assert "Starting from the encoder" not in log
        assert not (shell.model(SCRATCH, cascade, configuration) / "fold_all" / "pgl_checkpoint.json").exists()
        predict = ("nnUNetv2_predict", "-d", "502", "-c", configuration, "-f", "all", "-tr", SCRATCH, "-p", cascade)
        predicted(shell, output, *predict, *previous, nnUNet_extTrainer=trainers)
    handed_over = shell.model(SCRATCH, cascade, "3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(handed_over.glob("*.b2nd"))) == 5
