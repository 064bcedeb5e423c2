"""The commands one after the other on the device: pre-train, be stopped, go on, fine-tune, predict."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_pgl.extension_folder import extension_folder
from pretraining.demo.datasets import write_labelled_dataset, write_unlabelled_dataset
from pretraining.launching.errors import STOPPED_EXIT_CODE
from tests.devices import DEVICE, needs_device
from tests.machine import Machine, output_of, records, wait_for

pytestmark = [pytest.mark.gpu, needs_device]

EPOCHS = 40 if DEVICE.type == "cuda" else 4
PRETRAINING = (
    *("-d", "501", "-o", "run", "-patch", "6", "12", "16", "-strides", "4", "8", "8", "-np", "1", "-val_scans", "1"),
    *("-b", "2", "-pairs", "4", "-epochs", str(EPOCHS), "-lr", "1e-4", "-device", DEVICE.type),
)
MODEL = ("502", "3d_fullres")
TRAINER = ("-tr", "nnUNetTrainerPGL_test", "-device", DEVICE.type)
ONE_PROCESS = {"nnUNet_def_n_proc": "1", "nnUNet_npp": "1", "nnUNet_nps": "1", "nnUNet_compile": "f"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("commands")
    raw = root / "nnUNet_raw"
    raw.mkdir()
    write_unlabelled_dataset(raw, 501, "Small", 4, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
    write_labelled_dataset(raw, 502, "Torso", 5, 1, 0, shape=(8, 12, 16), spacing=(36, 26, 24))
    yield Machine(root)
    for file in root.rglob("*.pth"):
        file.unlink()


@pytest.fixture(scope="module")
def stopped(machine: Machine) -> str:
    """What a run with loading processes prints that is told to end after its first epoch, as Slurm tells it."""
    process = machine.start("pgl_pretrain", *PRETRAINING, nnUNet_n_proc_DA="2")
    wait_for(machine.run_folder("run") / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)
    return output_of(process, STOPPED_EXIT_CODE)


@pytest.fixture(scope="module")
def pretrained(machine: Machine, stopped: str) -> str:
    """What it prints that goes on to the end."""
    return output_of(machine.start("pgl_pretrain", "-o", "run", "--c", "-device", DEVICE.type, "-np", "1"), 0)


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    short_trainers = Path(__file__).parents[1] / "end_to_end_trainer"
    return {**ONE_PROCESS, "nnUNet_extTrainer": os.pathsep.join([str(extension_folder()), str(short_trainers)])}


@pytest.fixture(scope="module")
def trained(machine: Machine, pretrained: str, variables: dict[str, str]) -> str:
    """What two iterations of fine-tuning print."""
    plan = ("nnUNetv2_plan_and_preprocess", "-d", "502", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    output_of(machine.start(*plan, **ONE_PROCESS, nnUNet_n_proc_DA="1"), 0)
    return output_of(machine.start("nnUNetv2_train", *MODEL, "0", *TRAINER, **variables), 0)


def test_an_early_end_is_one_line(stopped: str) -> None:
    assert "Traceback" not in stopped
    assert "Exception" not in stopped
    assert stopped.splitlines()[-1].startswith("pgl_pretrain: stopped by SIGTERM after step")


def test_it_goes_on(machine: Machine, stopped: str, pretrained: str) -> None:
    assert "Continuing after" in pretrained
    assert [record["epoch"] for record in records(machine.run_folder("run"))] == list(range(EPOCHS))
    assert (machine.run_folder("run") / "checkpoint_final.pth").exists()


def test_fine_tuning_starts_from_it(machine: Machine, trained: str) -> None:
    assert f"Starting from the encoder {machine.run_folder('run') / 'checkpoint_final.pth'}" in trained
    assert "Mean Validation Dice" in trained


def test_the_model_predicts(machine: Machine, trained: str, variables: dict[str, str]) -> None:
    images, output = machine.root / "nnUNet_raw" / "Dataset502_Torso" / "imagesTs", machine.root / "predicted"
    command = ("nnUNetv2_predict", "-d", "502", "-c", "3d_fullres", "-f", "0", *TRAINER, "--save_probabilities")
    output_of(machine.start(*command, "-i", str(images), "-o", str(output), **variables), 0)
    (image,) = images.iterdir()
    case = image.name.removesuffix("_0000.nii.gz")
    probabilities = np.load(output / f"{case}.npz")["probabilities"]
    segmentation = sitk.ReadImage(str(output / f"{case}.nii.gz"))
    assert segmentation.GetSize() == sitk.ReadImage(str(image)).GetSize()
    assert np.isfinite(probabilities).all()
    assert probabilities.std() > 1e-3
    assert np.array_equal(sitk.GetArrayFromImage(segmentation), probabilities.argmax(0))
