"""The scripts of docs/features.md run as written, on real scans."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.networks import PlannedEncoder
from tests.planned_networks import small_architecture, small_network

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
DATA = Path(os.environ.get("PGL_TEST_DATA", "/nowhere"), "OpenKBP", "Dataset601_OpenKBP")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page names: four patients with labels, and an encoder with random weights."""
    if not DATA.is_dir():
        pytest.skip("PGL_TEST_DATA is not set: no real CT")
    folder = tmp_path_factory.mktemp("page")
    images = sorted((DATA / "imagesTr").glob("*.nii.gz"))[:4]
    for letter, image in zip("abcd", images, strict=True):
        (folder / f"patient_{letter}.nii.gz").symlink_to(image)
        label = DATA / "labelsTr" / image.name.replace("_0000", "")
        (folder / f"patient_{letter}_labels.nii.gz").symlink_to(label)
    network = small_network()
    described = {
        "method": "pgl_nce",
        "architecture": small_architecture(network),
        "config": {"spacing": "median"},
        "intensity": {"modality": "ct", "clip": [-1024.0, 325.0], "normalisation": "z-score per scan"},
        "spacing": [8.0, 8.0, 8.0],
        "view_size": [32, 32, 32],
    }
    save_checkpoint(
        EncoderCheckpoint(PlannedEncoder(network).state_dict(), described, {}), folder / "checkpoint_final.pth"
    )
    return folder


def run(script: str, folder: Path) -> str:
    environment = {**os.environ, "PGL_CHECKPOINT": str(folder / "checkpoint_final.pth")}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_page_has_the_scripts_that_are_tested() -> None:
    assert len(SCRIPTS) == 4


def test_loading(folder: Path) -> None:
    first, second = run(SCRIPTS[0], folder).splitlines()
    assert re.fullmatch(r"torch\.Size\(\[1, 1, \d+, \d+, \d+\]\)", first)
    assert re.fullmatch(r"torch\.Size\(\[1, 8, \d+, \d+, \d+\]\)", second)


def test_dense_features(folder: Path) -> None:
    run(SCRIPTS[1], folder)
    scan, overlay = (sitk.ReadImage(str(folder / name)) for name in ("patient_a.nii.gz", "features.nii.gz"))
    assert overlay.GetSize() == scan.GetSize()
    assert overlay.GetNumberOfComponentsPerPixel() == 3
    assert overlay.GetSpacing() == pytest.approx(scan.GetSpacing())
    assert sitk.GetArrayViewFromImage(overlay).std() > 20


def test_the_same_place_in_another_patient(folder: Path) -> None:
    lines = run(SCRIPTS[2], folder).splitlines()
    assert len(lines) == 3
    for letter, line in zip("bcd", lines, strict=True):
        found = re.fullmatch(rf"patient_{letter}\.nii\.gz: voxel z (\d+), y (\d+), x (\d+), at .* cosine (\S+)", line)
        assert found
        width, height, depth = sitk.ReadImage(str(folder / f"patient_{letter}.nii.gz")).GetSize()
        z, y, x = map(int, found.groups()[:3])
        assert (0 <= z < depth, 0 <= y < height, 0 <= x < width) == (True, True, True)
        assert -1 <= float(found[4]) <= 1


def test_a_linear_probe(folder: Path) -> None:
    found = re.fullmatch(r"balanced accuracy over the labels: (\d\.\d\d)\n", run(SCRIPTS[3], folder))
    assert found
    assert 0.2 < float(found[1]) <= 1  # a guess has 0.25
