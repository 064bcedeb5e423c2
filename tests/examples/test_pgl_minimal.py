"""The example runs as a stranger would run it, its loss is PGL's, and its encoder can be loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F  # noqa: N812

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.networks import ResNet50Encoder
from nnunetv2_pgl.transfer import load_encoder
from pretraining.data import find_scans, preprocess
from pretraining.objectives import PGL
from pretraining.views import (
    GeometryBatch,
    IntensityRanges,
    apply_intensity,
    draw_intensity,
    render_views,
    sample_view_pair,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "pgl_minimal.py"
VIEW = (16, 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans whose places look different."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, shape in enumerate([(24, 40, 36), (20, 36, 44)]):
        coarse = torch.randn(1, 1, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
        image = F.interpolate(coarse, shape, mode="trilinear")[0, 0].numpy()
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / f"scan_{seed}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What one step prints, and the checkpoint."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    command = [sys.executable, str(EXAMPLE), str(folder), "mr", str(path), "--steps", "1"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout, path


def first_step(folder: Path, store: Path) -> tuple[float, PGL]:
    """Loss of PGL's objective on the same draws, and its networks before the step."""
    volumes, _ = preprocess(find_scans([str(folder)], "mr")[0], store, crop_size=VIEW, processes=1)
    images = [volume.read(0, (0, 0, 0), volume.shape[1:]).astype(np.float32)[None] for volume in volumes]
    scans = [
        (torch.from_numpy(image) - volume.mean[0]) / volume.std[0]
        for image, volume in zip(images, volumes, strict=True)
    ]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    pgl = PGL(ResNet50Encoder(strides=(4, 8, 8), norm="instance", padding="replicate"), VIEW)
    chosen = [scans[index] for index in rng.integers(2, size=4)]
    pairs = [sample_view_pair(scan.shape[1:], VIEW, rng) for scan in chosen]
    shown = [(scan, pair[half]) for half in (0, 1) for scan, pair in zip(chosen, pairs, strict=True)]
    views = torch.cat([render_views(scan, [geometry], VIEW) for scan, geometry in shown])
    views = apply_intensity(views, torch.from_numpy(draw_intensity(8, IntensityRanges(), rng)))
    with torch.no_grad():
        loss = pgl(views, GeometryBatch.from_geometries([geometry for _, geometry in shown])).loss
    return float(loss), pgl


def test_its_step_is_that_of_pgl(run: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    printed, path = run
    (text,) = re.findall(r"loss ([\d.]+)", printed)
    loss, pgl = first_step(folder, tmp_path)
    assert float(text) == pytest.approx(loss, abs=2e-5)
    moved = load_checkpoint(path).encoder_weights
    assert all(not torch.equal(moved[name], weight) for name, weight in pgl.encoder.named_parameters())


def test_its_encoder_is_loaded_as_a_whole(run: tuple[str, Path]) -> None:
    printed, path = run
    assert f'export PGL_CHECKPOINT="{path}"' in printed
    checkpoint = load_checkpoint(path)
    architecture = checkpoint.architecture
    assert (architecture["name"], architecture["norm"], architecture["in_channels"]) == ("resnet50", "instance", 1)
    encoder = ResNet50Encoder(norm="instance", padding=architecture["padding"], centred=architecture["centred"])
    report = load_encoder(encoder, checkpoint.encoder_weights, str(path))
    assert report.share == 1
    assert not report.left_over


def test_it_is_one_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 100
