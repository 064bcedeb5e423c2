"""The preprocessing of a checkpoint against what pre-training itself stores of the same files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.features import Preprocessing
from pretraining.data import PlannedPreprocessing, Scan, preprocess
from pretraining.settings.config import PretrainConfig
from pretraining.training.encoder_checkpoint import _intensity, recorded_preprocessing
from pretraining.views import ViewSettings
from tests.nnunet_models import nnunet_content, plans_of
from tests.planned_networks import small_network

SPACING = (3.0, 1.0, 1.5)
SHAPE = (14, 26, 22)


def write(folder: Path, values: np.ndarray, name: str = "scan") -> Path:
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing(SPACING[::-1])
    path = folder / f"{name}.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


def noise(seed: int = 0) -> np.ndarray:
    """Tissue with zeros around it, so that there is something to crop, and values beyond the CT window."""
    values = np.random.default_rng(seed).normal(-100, 600, SHAPE)
    values[:2] = values[:, 20:] = values[:, :, :3] = 0
    return values


def checkpoint(intensity: dict[str, Any], channels: int = 1, **pgl: Any) -> EncoderCheckpoint:
    architecture = {"name": "resnet50", "norm": "instance", "centred": True, "strides": [8, 8, 8]}
    described = {"architecture": {**architecture, "in_channels": channels}, "view_size": [8, 16, 16]}
    return EncoderCheckpoint({}, {**described, "intensity": intensity, **pgl}, {})


def stored(
    folder: Path, files: Sequence[Path], is_ct: bool, planned: PlannedPreprocessing | None = None, **settings: Any
) -> tuple[np.ndarray, tuple[float, ...]]:
    """What the encoder of a pre-training sees of a scan, and its spacing."""
    names = tuple(f"c{channel}" for channel in range(len(files)))
    scan = Scan("a", "a", "in", "in", tuple(map(str, files)), names, (is_ct,) * len(files))
    settings = {"spacing": "native", **settings}
    (volume,), _ = preprocess([scan], folder, crop_size=(8, 8, 8), processes=1, planned=planned, **settings)
    values = np.stack(
        [volume.read(channel, (0, 0, 0), volume.shape[1:]).astype(np.float64) for channel in range(len(files))]
    )
    mean, std = (np.array(of).reshape(-1, 1, 1, 1) for of in (volume.mean, volume.std))
    return (values - mean) / std, volume.spacing


@pytest.mark.parametrize("is_ct", [True, False])
@pytest.mark.parametrize("spacing", [(2.0, 1.3, 1.1), "native"])
def test_equals_what_a_pre_training_without_a_plan_stores(tmp_path: Path, is_ct: bool, spacing: Any) -> None:
    files = [write(tmp_path, noise(channel), f"c{channel}") for channel in range(1 if is_ct else 2)]
    expected, voxel = stored(tmp_path / "store", files, is_ct, spacing=spacing)
    recorded = checkpoint(_intensity(is_ct, None), len(files), spacing=[2.0, 1.3, 1.1], config={"spacing": spacing})
    image = Preprocessing.from_checkpoint(recorded, "a.pth")(files)
    assert image.values.shape == (1, *expected.shape)
    np.testing.assert_allclose(image.values[0].numpy(), expected, atol=2e-3)  # others than CT are stored in float16
    assert image.spacing == pytest.approx(voxel)


def test_equals_what_a_pre_training_by_a_plan_stores(tmp_path: Path) -> None:
    properties = {"mean": -30.0, "std": 210.5, "percentile_00_5": -900.25, "percentile_99_5": 250.75}
    planned = PlannedPreprocessing(
        "Dataset001_A",
        "nnUNetPlans",
        "3d_fullres",
        (1.5, 2.0, 1.2),
        (2, 0, 1),
        ("CTNormalization", "ZScoreNormalization"),
        (False, True),
        {"0": properties, "1": properties},
        "resample_data_or_seg_to_shape",
        {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    )
    files = [write(tmp_path, noise(channel), f"c{channel}") for channel in range(2)]
    expected, voxel = stored(tmp_path / "store", files, False, planned)
    config = {"preprocessing": planned.to_dict(), "spacing": "median"}
    recorded = checkpoint(_intensity(False, planned.to_dict()), 2, spacing=[1.5, 2.0, 1.2], config=config)
    image = Preprocessing.from_checkpoint(recorded, "a.pth")(files)
    np.testing.assert_allclose(image.values[0].numpy(), expected, atol=2e-3)
    assert image.spacing == pytest.approx(voxel)
    assert image.axes == (2, 0, 1)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_points_are_carried_there_and_back(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    """Images whose values are the places of their voxels say where a point has come from."""
    points = torch.tensor([[4.0, 7.0, 9.5], [8.3, 12.1, 15.0], [6.5, 9.5, 12.5]], dtype=torch.float64)
    for axis in range(3):
        places = np.indices(SHAPE)[axis] + 0.5
        places[:2] = places[:, 20:] = places[:, :, :3] = 0
        scheme = {"modality": "other", "normalisation": "", "normalization_schemes": ["NoNormalization"]}
        plan = {"transpose_forward": list(axes)}
        recorded = checkpoint(scheme, spacing=[1.4, 1.4, 1.4], config={"preprocessing": plan, "spacing": "median"})
        image = Preprocessing.from_checkpoint(recorded, "a.pth")(write(tmp_path, places))
        inside = image.from_original(points)
        torch.testing.assert_close(image.to_original(inside), points)
        line = 2 * inside / torch.tensor(image.values.shape[2:]) - 1  # as grid_sample wants it
        grid = line.flip(-1).reshape(1, 1, 1, -1, 3).float()
        sampled = torch.nn.functional.grid_sample(image.values, grid, align_corners=False)[0, 0, 0, 0]
        # Slices across a thick axis are repeated, not interpolated: up to half a slice off.
        torch.testing.assert_close(sampled.double(), points[:, axis], atol=0.51 if axis == 0 else 0.02, rtol=0)


def test_an_array_is_the_file_s_equal(tmp_path: Path) -> None:
    preprocess_image = Preprocessing.from_checkpoint(checkpoint(_intensity(True, None), spacing=[2, 2, 2]), "a.pth")
    values = noise()
    of_file = preprocess_image(write(tmp_path, values)).values
    torch.testing.assert_close(preprocess_image(values, SPACING).values, of_file, atol=1e-4, rtol=0)


def test_one_scheme_of_a_plan_serves_all_channels(tmp_path: Path) -> None:
    scheme = {"modality": "other", "normalisation": "", "normalization_schemes": ["ZScoreNormalization"]}
    image = Preprocessing.from_checkpoint(checkpoint(scheme, 2, spacing=[2, 2, 2]), "a.pth")(
        [write(tmp_path, noise(channel), f"c{channel}") for channel in range(2)]
    )
    assert image.values.shape[:2] == (1, 2)
    assert image.values.mean(dim=(0, 2, 3, 4)).abs().max() < 0.2


def test_the_deepest_trained_map_is_used() -> None:
    recorded = checkpoint(_intensity(True, None), spacing=[2, 2, 2], untrained_stages=["stages.4", "stages.5"])
    assert Preprocessing.from_checkpoint(recorded, "a.pth").stage == -3


@pytest.mark.parametrize(
    ("intensity", "pgl", "message"),
    [
        ({}, {}, "does not record how images were preprocessed"),
        (None, {}, "does not record how images were preprocessed"),
        ({"normalisation": "z-score"}, {"view_size": None}, "does not record how images were preprocessed"),
        ({"normalization_schemes": ["CTNormalization"]}, {}, "with which mean and standard deviation"),
    ],
)
def test_a_checkpoint_that_says_too_little(intensity: Any, pgl: dict[str, Any], message: str) -> None:
    with pytest.raises(PGLError, match=f"^a.pth: .*{message}"):
        Preprocessing.from_checkpoint(checkpoint(intensity, **pgl), "a.pth")


def test_images_that_do_not_suit(tmp_path: Path) -> None:
    preprocess_image = Preprocessing.from_checkpoint(checkpoint(_intensity(True, None), spacing=[2, 2, 2]), "a.pth")
    file = write(tmp_path, noise())
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(file.read_bytes()[:200])
    flat = write(tmp_path, np.full(SHAPE, 40.0), "flat")
    holes = noise()
    holes[5, 5, 5] = np.nan
    plain = tmp_path / "plain.nii"
    sitk.WriteImage(sitk.ReadImage(str(file)), str(plain))
    half, flat_header = tmp_path / "half.nii", tmp_path / "header.nii"
    half.write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    content = bytearray(plain.read_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1], which ITK would take for 1 mm
    flat_header.write_bytes(content)
    slab = tmp_path / "slice.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((20, 20), np.float32)), str(slab))
    for image, message in [
        (tmp_path / "none.nii.gz", "none.nii.gz: is no file"),
        (broken, "broken.nii.gz: is truncated or damaged"),
        ([file, file], "has 2 channels, the encoder takes 1"),
        (flat, "flat.nii.gz: a channel is constant"),
        (slab, "slice.nii.gz: is not a 3D image"),
        (write(tmp_path, holes, "holes"), "holes.nii.gz: holds NaN or infinite values"),
        (half, "half.nii: is truncated"),
        (flat_header, "header.nii: states the spacing"),
        ([], "no file is given"),
        (5, "not a int"),
        (noise(), "an array needs its spacing"),
    ]:
        with pytest.raises(PGLError, match=message) as caught:
            preprocess_image(image)
        assert "\n" not in str(caught.value)
    for array, spacing in [(noise(), (3.0, 0.0, 1.5)), (noise(), (3.0, float("nan"), 1.5)), (noise(), (1e-6,) * 3)]:
        with pytest.raises(PGLError, match=r"three positive numbers|would have .* voxels"):
            preprocess_image(array, spacing)
    for given in ("1 1 1", [[1, 1, 1]] * 3, (1, 1), None):
        with pytest.raises(PGLError, match="three positive numbers"):
            preprocess_image(noise(), given)
    of_tensor = preprocess_image(torch.from_numpy(noise()), torch.tensor(SPACING)).values
    torch.testing.assert_close(of_tensor, preprocess_image(noise(), SPACING).values)
    for array, message in [
        (holes, "holds NaN"),
        (np.ones((20, 20)), r"must be \(z, y, x\)"),
        (noise() + 1j, "must hold numbers"),
    ]:
        with pytest.raises(PGLError, match=message):
            preprocess_image(array, SPACING)


def test_the_target_spacing_is_the_pre_training_s_not_the_median_of_what_came_out() -> None:
    """Resampling to whole voxels leaves spacings beside the target; from their median others would follow."""
    recorded = {"preprocessing": {"target_spacing": [1.3, 1.3, 1.3], "is_ct": [False]}, "spacing": [1.3, 1.31, 1.28]}
    of_run = checkpoint(_intensity(False, None), config={"spacing": "median"}, **recorded)
    assert Preprocessing.from_checkpoint(of_run, "a.pth").spacing == (1.3, 1.3, 1.3)
    earlier = checkpoint(_intensity(False, None), config={"spacing": [1.3, 1.3, 1.3]}, spacing=[1.3, 1.31, 1.28])
    assert Preprocessing.from_checkpoint(earlier, "a.pth").spacing == (1.3, 1.3, 1.3)


def test_ct_among_other_channels_is_clipped_alone(tmp_path: Path) -> None:
    files = [write(tmp_path, noise(channel), f"c{channel}") for channel in range(2)]
    scan = Scan("a", "a", "in", "in", tuple(map(str, files)), ("CT", "MR"), (True, False))
    (volume,), _ = preprocess([scan], tmp_path / "store", crop_size=(8, 8, 8), processes=1, spacing=(2.0, 1.3, 1.1))
    config = PretrainConfig(("in",), spacing=(2.0, 1.3, 1.1), views=ViewSettings(channels="joint"))
    recorded = recorded_preprocessing([volume], config)
    assert recorded == {"target_spacing": [2.0, 1.3, 1.1], "is_ct": [True, False]}
    of_run = checkpoint(_intensity(False, None), 2, spacing=volume.spacing, preprocessing=recorded)
    image = Preprocessing.from_checkpoint(of_run, "a.pth")(files)
    for channel in range(2):
        values = volume.read(channel, (0, 0, 0), volume.shape[1:]).astype(np.float64)
        expected = (values - volume.mean[channel]) / volume.std[channel]
        np.testing.assert_allclose(image.values[0, channel].numpy(), expected, atol=2e-3)
    mixed = checkpoint(_intensity(False, None), preprocessing={"target_spacing": None, "is_ct": None})
    with pytest.raises(PGLError, match=r"a\.pth: was pre-trained on CT and on other scans"):
        Preprocessing.from_checkpoint(mixed, "a.pth")


def stock_model(path: Path, **resampling: Any) -> tuple[dict[str, Any], EncoderCheckpoint]:
    """A trained model of nnU-Net whose plans resample in a way of their own."""
    plans = plans_of(small_network("plain"), transpose_forward=[1, 0, 2], image_reader_writer="SimpleITKIO")
    values = {"is_seg": False, "order": 0, "order_z": 0, "force_separate_z": False}
    plans["configurations"]["3d_fullres"] |= {
        "preprocessor_name": "DefaultPreprocessor",
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": values,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**values, "is_seg": True},
        **resampling,
    }
    torch.save(nnunet_content(small_network("plain"), plans=plans), path)
    return plans, load_checkpoint(path)


def test_a_model_of_nnunet_preprocesses_as_its_plan_says(tmp_path: Path) -> None:
    plans, model = stock_model(tmp_path / "model.pth")
    manager = PlansManager(plans)
    file = str(write(tmp_path, noise()))
    configuration, dataset = manager.get_configuration("3d_fullres"), {"channel_names": {"0": "CT"}, "labels": {}}
    expected, _, _ = DefaultPreprocessor(verbose=False).run_case([file], None, manager, configuration, dataset)
    found = Preprocessing.from_checkpoint(model, "model.pth")(file).values[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "resampling",
    [
        {"resampling_fn_data": "resample_by_someone"},
        {"resampling_fn_data": "deepcopy", "resampling_fn_data_kwargs": {}},
        {"resampling_fn_data_kwargs": {"other": 3}},
        {"preprocessor_name": "Path"},
        {"preprocessor_name": 3},
    ],
)
def test_a_model_whose_preprocessing_is_not_here_is_refused(tmp_path: Path, resampling: dict[str, Any]) -> None:
    _, model = stock_model(tmp_path / "model.pth", **resampling)
    with pytest.raises(PGLError, match=r"^model\.pth: its plan preprocesses with .*load_encoder_network$"):
        Preprocessing.from_checkpoint(model, "model.pth")


@pytest.mark.parametrize("order", [9, "3"])
def test_values_that_nnunet_does_not_take_end_in_one_line(tmp_path: Path, order: Any) -> None:
    values = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": False}
    _, model = stock_model(tmp_path / "model.pth", resampling_fn_data_kwargs=values)
    with pytest.raises(PGLError, match=r"^the array: nnU-Net cannot preprocess it as planned \(.*\)$"):
        Preprocessing.from_checkpoint(model, "model.pth")(noise(), SPACING)
