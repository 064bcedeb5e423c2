"""Labels of stored scans against the scans themselves, and their shares in cells against scipy's interpolation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.held_out_labels import LabelledVolume, label_fractions, labels_of
from benchmarks.plain_features import cell_voxels, cells_of, patches
from nnunetv2_pgl.networks import FeatureGrid, ResNet50Encoder
from pretraining.data import DataError, PlannedPreprocessing, Volume
from pretraining.settings.config import PretrainConfig
from pretraining.training.pool import prepare_volumes
from pretraining.views import GeometryBatch, ViewGeometry, ViewSettings

CONFIG = PretrainConfig(datasets=("Dataset021_Organs",), views=ViewSettings(size=(8, 8, 8)), spacing=(2.0, 1.3, 1.1))
LABELS = {"background": 0, "whole": [1, 2], "inner": 2, "other": 3, "ignore": 4}


def organs(seed: int) -> NDArray[np.uint8]:
    """Smooth regions, no two axes alike."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(18, 26, 34)), 3)
    return np.digitize(noise, np.quantile(noise, [0.5, 0.75, 0.9])).astype(np.uint8)


def write(raw: Path, name: str, labels: dict[str, Any], scans: int = 1) -> Path:
    """Scans that show their labels, with a margin of zeros that is cropped off."""
    folder = raw / name
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    described = {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nrrd", "numTraining": scans}
    (folder / "dataset.json").write_text(json.dumps(described))
    for scan in range(scans):
        label = organs(scan)
        for part, values, margin in (("imagesTr", 10.0 + label, 0.0), ("labelsTr", label, 4)):
            image = sitk.GetImageFromArray(np.pad(values, ((2, 1), (0, 3), (4, 0)), constant_values=margin))
            image.SetSpacing((1.0, 1.5, 2.0))
            sitk.WriteImage(image, str(folder / part / f"scan.{scan}{'_0000' if part == 'imagesTr' else ''}.nrrd"))
    return folder


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


def planned(axes: Sequence[int]) -> dict[str, Any]:
    return PlannedPreprocessing(
        *("Dataset021_Organs", "nnUNetPlans", "3d_fullres", (1.2, 1.4, 1.6), tuple(axes)),  # type: ignore[arg-type]
        *(("ZScoreNormalization",), (False,), {"0": {}}),
        *("resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
    ).to_dict()


@pytest.mark.parametrize("preprocessing", [None, planned((0, 1, 2)), planned((2, 0, 1))])
def test_labels_lie_where_the_scan_shows_them(raw: Path, preprocessing: dict[str, Any] | None) -> None:
    write(raw, "Dataset021_Organs", LABELS, 2)
    config = replace(CONFIG, preprocessing=preprocessing)
    volumes, _ = prepare_volumes(config, 1, progress=False)
    for volume, labelled in zip(volumes, labels_of(volumes, config), strict=True):
        assert labelled.names == ("whole", "inner", "other")
        assert labelled.shares.shape[1:] == volume.shape[1:]
        whole, inner, other = labelled.shares.numpy()
        shown = volume.read(0, (0, 0, 0), volume.shape[1:]).astype(np.float64)
        assert np.corrcoef(shown.ravel(), (whole + inner + 3 * other).ravel())[0, 1] > 0.98
        assert (inner <= whole).all()
        assert 0 <= labelled.shares.min() < labelled.shares.max() <= 1


def test_scans_without_labels_are_named(raw: Path, tmp_path: Path) -> None:
    folder = write(raw, "Dataset021_Organs", LABELS)
    volumes, _ = prepare_volumes(CONFIG, 1, progress=False)
    (folder / "labelsTr" / "scan.0.nrrd").unlink()
    with pytest.raises(DataError, match=r"--labels: .*labelsTr/scan\.0\.nrrd is missing; leave .* out by -only"):
        labels_of(volumes, CONFIG)
    shutil.copytree(folder / "imagesTr", tmp_path / "plain")
    config = replace(CONFIG, datasets=(str(tmp_path / "plain"),), modality="mr")
    volumes, _ = prepare_volumes(config, 1, progress=False)
    with pytest.raises(DataError, match=r"--labels: .* is not a dataset in nnUNet_raw"):
        labels_of(volumes, config)


def test_data_sets_with_other_labels_are_not_mixed(raw: Path) -> None:
    write(raw, "Dataset021_Organs", LABELS)
    write(raw, "Dataset022_More", {"background": 0, "whole": 1, "inner": 2, "third": 3})
    config = replace(CONFIG, datasets=("Dataset021_Organs", "Dataset022_More"))
    volumes: list[Volume]
    volumes, _ = prepare_volumes(config, 1, progress=False)
    with pytest.raises(DataError, match="Dataset021_Organs and Dataset022_More have other labels"):
        labels_of(volumes, config)


SHARES = torch.from_numpy(
    np.stack([gaussian_filter(np.random.default_rng(n).uniform(size=(20, 24, 28)), 1.5) for n in range(3)])
).float()
GEOMETRIES = (
    ViewGeometry((0.0, 0.0, 0.0), (16.0, 12.0, 20.0), (False, False, False)),
    ViewGeometry((1.3, 2.0, 7.5), (18.2, 15.5, 20.5), (True, False, True)),
    ViewGeometry((4.0, 11.25, 3.0), (16.0, 12.75, 22.0), (False, True, False)),
)


@pytest.mark.parametrize(
    "grid",
    [
        FeatureGrid((16, 12, 20), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0)),
        FeatureGrid((16, 12, 20), (8.0, 4.0, 8.0), (4.0, 2.0, 4.0)),  # the last cell along x is cut off
        FeatureGrid((16, 12, 20), (4.0, 3.0, 1.0), (0.5, 0.5, 0.5)),  # as nnU-Net's encoders have it
        ResNet50Encoder(strides=(4, 8, 8), norm="instance").feature_grid((16, 12, 20)),
    ],
)
def test_shares_of_cells_one_by_one(grid: FeatureGrid) -> None:
    found = label_fractions(
        [LabelledVolume(("a", "b", "c"), SHARES)] * 3, GeometryBatch.from_geometries(GEOMETRIES), grid
    )
    cells = [-(-n // int(s)) for n, s in zip(grid.view_size, grid.stride, strict=True)]
    assert tuple(found.shape) == (3, 3, *cells)
    for number, geometry in enumerate(GEOMETRIES):
        lines = []
        for axis, (size, flip) in enumerate(zip(grid.view_size, geometry.flip, strict=True)):
            voxels = (np.arange(size) + 0.5) * geometry.size[axis] / size + geometry.start[axis] - 0.5
            lines.append(voxels[::-1] if flip else voxels)
        places = np.stack(np.meshgrid(*lines, indexing="ij"))
        for label in range(3):
            view = map_coordinates(SHARES[label].numpy(), places, order=1, mode="nearest")
            for cell in np.ndindex(*cells):
                inside = []
                for axis, index in enumerate(cell):
                    middle = grid.offset[axis] + grid.stride[axis] * index
                    first = round(middle - grid.stride[axis] / 2)
                    around = np.arange(first, first + int(grid.stride[axis]))
                    inside.append(around.clip(0, grid.view_size[axis] - 1))
                assert found[number, label][cell] == pytest.approx(view[np.ix_(*inside)].mean(), abs=1e-5)


def test_a_label_that_fills_half_a_cell() -> None:
    """By hand: a view of the whole scan, of the same size, and its mirror image."""
    shares = torch.zeros(1, 4, 4, 8)
    shares[..., :2] = 1
    views = [ViewGeometry((0.0, 0.0, 0.0), (4.0, 4.0, 8.0), (False, False, flip)) for flip in (False, True)]
    grid = FeatureGrid((4, 4, 8), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0))
    found = label_fractions([LabelledVolume(("a",), shares)] * 2, GeometryBatch.from_geometries(views), grid)
    assert found.flatten().tolist() == [0.5, 0, 0, 0.5]


def test_a_patch_is_the_voxels_of_its_cell() -> None:
    views = torch.rand(2, 1, 8, 8, 10, generator=torch.Generator().manual_seed(0))
    grid = FeatureGrid((8, 8, 10), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0))
    found = patches(grid)(views)
    assert tuple(found.shape) == (2, 64, 2, 2, 3)
    expected = views[1, 0, 4:8, 0:4, 4:8].flatten()
    assert torch.allclose(found[1, :, 1, 0, 1], expected - expected.mean(), atol=1e-6)
    cut_off = views[0, 0, 0:4, 4:8][:, :, [8, 9, 9, 9]].flatten()
    assert torch.allclose(found[0, :, 0, 1, 2], cut_off - cut_off.mean(), atol=1e-6)


def test_cells_at_the_edge_stand_for_voxels_on_both_sides() -> None:
    grid = FeatureGrid((4, 8, 6), (1.0, 4.0, 3.0), (0.5, 0.5, 0.5))
    in_z, in_y, in_x = (voxels.tolist() for voxels in cell_voxels(grid))
    assert in_z == [[0], [1], [2], [3]]
    assert in_y == [[0, 0, 0, 1], [2, 3, 4, 5]]
    assert in_x == [[0, 0, 1], [2, 3, 4]]
    assert cells_of(grid) == (4, 2, 2)
