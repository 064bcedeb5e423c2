import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.distance import cdist

from pretraining.comparison.metrics import measure_case

SPACING = (3.0, 0.8, 1.1)  # z, y, x


def write(labels: np.ndarray, path: Path, spacing: tuple[float, ...] = SPACING) -> Path:
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


def measure(
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: dict[str, Any] | None = None,
    tolerance: float = 1.0,
    spacing: tuple[float, ...] = SPACING,
) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = [write(a, Path(folder) / f"{i}.mha", spacing) for i, a in enumerate((truth, prediction))]
        return list(measure_case(files[0], files[1], classes or {"it": 1}, tolerance).itertuples())


def box(
    start: tuple[int, int, int], size: tuple[int, int, int], shape: tuple[int, int, int] = (14, 30, 30)
) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = 1
    return mask


def plain_surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with a face neighbour outside, one by one."""
    points = []
    for index in itertools.product(*map(range, mask.shape)):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(index)
            other[axis] += step
            outside = not 0 <= other[axis] < mask.shape[axis]
            if mask[index] and (outside or not mask[tuple(other)]):
                points.append(index)
                break
    return np.array(points)


def plain_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    between = cdist(plain_surface(truth) * spacing, plain_surface(prediction) * spacing)
    return between.min(axis=1), between.min(axis=0)


@given(
    arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 1)),
    arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 1)),
    st.tuples(*3 * (st.sampled_from([0.37, 1.0, 2.5]),)),
    st.sampled_from([0.5, 1.0, 2.51]),
)
@settings(max_examples=150, deadline=None)
def test_brute_force_agrees(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> None:
    [found] = measure(truth, prediction, tolerance=tolerance, spacing=spacing)
    assert (found.truth_voxels, found.predicted_voxels) == (truth.sum(), prediction.sum())
    if not truth.any() or not prediction.any():
        return
    there, back = plain_distances(truth, prediction, spacing)
    assert found.dice == pytest.approx(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))
    assert found.iou == pytest.approx((truth & prediction).sum() / (truth | prediction).sum())
    assert found.hd == pytest.approx(max(there.max(), back.max()))
    assert found.hd95 == pytest.approx(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))
    within = np.concatenate([there, back]) <= tolerance + 1e-7
    assert found.surface_dice == pytest.approx(within.mean())


@pytest.mark.parametrize(("shift", "distance"), [((2, 0, 0), 6.0), ((0, 5, 0), 4.0), ((0, 0, 3), 3.3)])
def test_a_shifted_box_is_that_far(shift: tuple[int, int, int], distance: float) -> None:
    truth, moved = box((3, 6, 6), (6, 12, 12)), box(tuple(np.add((3, 6, 6), shift)), (6, 12, 12))
    [found] = measure(truth, moved)
    assert found.hd == pytest.approx(distance)
    assert found.hd95 == pytest.approx(distance)  # a face is more than 5 % of the surface
    assert not found.missed


def test_tolerance_is_included_and_in_mm() -> None:
    # Single voxels: both surfaces are one voxel, 0.8 mm apart.
    truth, moved = box((5, 9, 9), (1, 1, 1)), box((5, 10, 9), (1, 1, 1))
    assert measure(truth, moved, tolerance=0.8)[0].surface_dice == 1
    assert measure(truth, moved, tolerance=0.79)[0].surface_dice == 0


def test_a_tolerance_of_one_voxel_survives_the_rounding_of_nifti(tmp_path: Path) -> None:
    truth, moved = box((5, 9, 9), (1, 1, 1)), box((5, 9, 10), (1, 1, 1))
    files = [write(a, tmp_path / f"{i}.nii.gz") for i, a in enumerate((truth, moved))]
    assert measure_case(files[0], files[1], {"it": 1}, 1.1)["surface_dice"].tolist() == [1]


def test_concentric_spheres_differ_by_their_radii() -> None:
    spacing = (1.5, 0.7, 0.9)
    points = np.stack(np.meshgrid(*[np.arange(n) for n in (34, 64, 52)], indexing="ij"), -1) * spacing
    radius = np.linalg.norm(points - points[17, 32, 26], axis=-1)
    [found] = measure(radius < 15, radius < 19, tolerance=2.0, spacing=spacing)
    # Surface voxels lie within a voxel's diagonal inside of their sphere.
    diagonal = float(np.linalg.norm(spacing))
    assert abs(found.hd - 4) < diagonal
    assert abs(found.hd95 - 4) < diagonal
    assert found.surface_dice < 0.1
    volumes = 15**3, 19**3
    assert found.dice == pytest.approx(2 * volumes[0] / sum(volumes), abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_simpleitk_agrees_on_convex_shapes(seed: int) -> None:
    # Boxes that overlap in part: the farthest voxel of one lies outside the other, as SimpleITK's filter wants it.
    rng = np.random.default_rng(seed)
    truth = box((3, 5, 5), tuple(rng.integers(4, 7, 3)))
    prediction = box(tuple(np.add((3, 5, 5), rng.integers(1, 4, 3))), tuple(rng.integers(4, 9, 3)))
    images = []
    for labels in (truth, prediction):
        images.append(sitk.GetImageFromArray(labels))
        images[-1].SetSpacing(SPACING[::-1])
    reference = sitk.HausdorffDistanceImageFilter()
    reference.Execute(*images)
    assert measure(truth, prediction)[0].hd == pytest.approx(reference.GetHausdorffDistance(), rel=1e-5)


@pytest.mark.parametrize("ignore", [None, 2])
def test_nnunets_evaluation_has_the_same_dice(tmp_path: Path, ignore: int | None) -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 6, 7, 8))
    files = [write(a, tmp_path / f"{i}.nii.gz") for i, a in enumerate((truth, prediction))]
    classes = {"one": 1, "three": 3, "whole": (1, 2, 3)}
    theirs = compute_metrics(*map(str, files), SimpleITKIO(), list(classes.values()), ignore)["metrics"]
    found: list[Any] = list(measure_case(files[0], files[1], classes, 1.0, ignore).itertuples())
    assert [metrics.class_name for metrics in found] == list(classes)
    for metrics in found:
        expected = theirs[classes[metrics.class_name]]
        assert (metrics.dice, metrics.iou) == pytest.approx((expected["Dice"], expected["IoU"]))
        assert (metrics.truth_voxels, metrics.predicted_voxels) == (expected["n_ref"], expected["n_pred"])


def test_a_missed_structure_costs_the_diagonal() -> None:
    [found] = measure(box((3, 6, 6), (2, 2, 2)), np.zeros((14, 30, 30)))
    assert found.missed
    assert (found.dice, found.iou, found.surface_dice, found.predicted_voxels) == (0, 0, 0, 0)
    assert found.hd == found.hd95 == pytest.approx(np.sqrt(42.0**2 + 24.0**2 + 33.0**2))


@pytest.mark.parametrize("predicted", [0, 8])
def test_an_empty_truth_defines_nothing(predicted: int) -> None:
    [found] = measure(np.zeros((14, 30, 30)), box((3, 6, 6), (2, 2, 2)) * (predicted > 0))
    assert all(np.isnan([found.dice, found.iou, found.hd, found.hd95, found.surface_dice]))
    assert not found.missed
    assert (found.truth_voxels, found.predicted_voxels) == (0, predicted)


def test_planes_are_measured_too() -> None:
    truth, prediction = np.zeros((2, 9, 9), np.uint8)
    truth[2:5, 2:5], prediction[2:5, 3:6] = 1, 1
    assert measure(truth, prediction, spacing=(2.0, 0.5))[0].hd == pytest.approx(0.5)


def test_other_grids_and_files_are_refused(tmp_path: Path) -> None:
    truth = write(box((3, 6, 6), (2, 2, 2)), tmp_path / "truth.mha")
    smaller = write(np.ones((13, 30, 30)), tmp_path / "smaller.mha")
    coarser = write(np.ones((14, 30, 30)), tmp_path / "coarser.mha", (3.0, 0.8, 1.102))
    nearly = write(np.ones((14, 30, 30)), tmp_path / "nearly.mha", (3.0, 0.8, 1.1005))
    with pytest.raises(ValueError, match=r"truth\.mha has .*smaller\.mha .* the same grid"):
        measure_case(truth, smaller, {"it": 1}, 1.0)
    with pytest.raises(ValueError, match=r"truth\.mha has .* of \(1\.1, .* mm, .*coarser\.mha .* of \(1\.102"):
        measure_case(truth, coarser, {"it": 1}, 1.0)
    measure_case(truth, nearly, {"it": 1}, 1.0)
    with pytest.raises(ValueError, match=r"absent\.mha: does not exist"):
        measure_case(truth, tmp_path / "absent.mha", {"it": 1}, 1.0)
    (tmp_path / "text.mha").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.mha: cannot be read"):
        measure_case(tmp_path / "text.mha", truth, {"it": 1}, 1.0)
