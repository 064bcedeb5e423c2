import numpy as np
import pytest
from scipy import ndimage

from pretraining.demo.ellipsoids import Ellipsoid, rotation_matrix
from pretraining.demo.phantoms import DEFAULT_SHAPE, LABELS, Phantom, make_phantom

# Millilitres, generous around adults' organs; the phantom's field of view cuts lungs and spine.
PLAUSIBLE_ML = {
    "liver": (700, 2600),
    "spleen": (60, 480),
    "right_kidney": (60, 330),
    "left_kidney": (60, 330),
    "aorta": (50, 260),
    "spine": (200, 1100),
    "lungs": (900, 5500),
}
SEEDS = range(8)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed) for seed in SEEDS]


def volume_ml(phantom: Phantom, organ: str) -> float:
    return float(np.count_nonzero(phantom.labels == LABELS[organ]) * np.prod(phantom.spacing) / 1000)


def centroid_mm(phantom: Phantom, organ: str) -> np.ndarray:
    """From the centre of the grid, half-pixel centres."""
    voxels = np.argwhere(phantom.labels == LABELS[organ]).mean(axis=0) + 0.5
    return (voxels - np.asarray(phantom.labels.shape) / 2) * np.asarray(phantom.spacing)


def mean_hu(phantom: Phantom, organ: str) -> float:
    return float(phantom.image[phantom.labels == LABELS[organ]].mean())


def test_types_and_shapes(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.shape == phantom.labels.shape == DEFAULT_SHAPE
        assert (phantom.image.dtype, phantom.labels.dtype) == (np.int16, np.uint8)
        assert phantom.image.min() >= -1024
        assert set(np.unique(phantom.labels)) == {0, *LABELS.values()}


def test_the_seed_decides() -> None:
    first, again, other = (make_phantom(seed, (10, 16, 20), (28, 19, 19)) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("organ", LABELS)
def test_volumes_are_plausible_and_vary(phantoms: list[Phantom], organ: str) -> None:
    volumes = [volume_ml(phantom, organ) for phantom in phantoms]
    low, high = PLAUSIBLE_ML[organ]
    assert low < min(volumes)
    assert max(volumes) < high
    assert np.std(volumes) / np.mean(volumes) > 0.03


def test_organs_lie_where_they_belong(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        at = {organ: centroid_mm(phantom, organ) for organ in LABELS}
        assert at["liver"][2] < -20  # x grows towards the patient's left
        assert at["spleen"][2] > 50
        assert at["right_kidney"][2] < at["spine"][2] < at["left_kidney"][2]
        assert at["spine"][1] > at["aorta"][1]  # y grows towards the back
        assert at["lungs"][0] > at["liver"][0] > at["right_kidney"][0]  # z grows towards the head


def test_organs_are_in_one_piece(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for organ in ("liver", "spleen", "right_kidney", "left_kidney", "aorta", "spine"):
            pieces, _ = ndimage.label(phantom.labels == LABELS[organ], structure=np.ones((3, 3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            assert sizes.max() > 0.95 * sizes.sum(), organ


def test_hounsfield_units(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert -930 < mean_hu(phantom, "lungs") < -700
        assert 40 < mean_hu(phantom, "liver") < 140
        assert 30 < mean_hu(phantom, "spleen") < 160
        assert 120 < mean_hu(phantom, "spine") < 500
        assert np.median(phantom.image[:, :2, :2]) < -950  # air around the patient


def test_labels_match_the_image(phantoms: list[Phantom]) -> None:
    """Air inside the body, found by threshold and flood fill, is lung where it is large."""
    for phantom in phantoms:
        pieces, _ = ndimage.label(phantom.image < -480)
        touches_side = np.unique(np.concatenate([pieces[:, 0].ravel(), pieces[:, -1].ravel()]))
        inner = np.where(np.isin(pieces, touches_side), 0, pieces)
        sizes = np.bincount(inner.ravel())
        sizes[0] = 0
        air = np.isin(inner, np.flatnonzero(sizes > 400))
        lungs = phantom.labels == LABELS["lungs"]
        assert 2 * np.count_nonzero(air & lungs) / (air.sum() + lungs.sum()) > 0.93


def test_contrast_phase_moves_organs_together() -> None:
    phantoms = [make_phantom(seed, (14, 24, 30), (18, 12, 13)) for seed in range(40)]
    kidney = [mean_hu(phantom, "left_kidney") for phantom in phantoms]
    spleen = [mean_hu(phantom, "spleen") for phantom in phantoms]
    assert max(kidney) - min(kidney) > 80
    assert np.corrcoef(kidney, spleen)[0, 1] > 0.5


@pytest.mark.parametrize("seed", [1, 2])
def test_any_grid_samples_the_same_body(seed: int) -> None:
    """A half-voxel mistake would move the centroid by 1.9 mm in z and 1.2 mm in plane."""
    coarse = make_phantom(seed, (37, 60, 76), (7.5, 5.0, 5.0))
    fine = make_phantom(seed, (74, 120, 152), (3.75, 2.5, 2.5))
    for organ in LABELS:
        assert volume_ml(coarse, organ) == pytest.approx(volume_ml(fine, organ), rel=0.08)
        moved = np.abs(centroid_mm(coarse, organ) - centroid_mm(fine, organ))
        assert np.all(moved < (1.4, 0.8, 0.8)), organ


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (9, 16, 17)])
def test_small_grids_work(shape: tuple[int, int, int]) -> None:
    assert make_phantom(0, shape, (30.0, 20.0, 20.0)).image.shape == shape


@pytest.mark.parametrize(("shape", "spacing"), [((0, 4, 4), (1, 1, 1)), ((4, 4, 4), (1, 0, 1))])
def test_lengths_must_be_positive(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        make_phantom(0, shape, spacing)


def test_sphere_depth_is_the_distance() -> None:
    points = np.random.default_rng(0).uniform(-50, 50, (3, 500)).astype(np.float32)
    centre = np.asarray((3.0, -4.0, 5.0))
    expected = 20 - np.linalg.norm(points.T - centre, axis=1)
    depth = Ellipsoid((3, -4, 5), (20, 20, 20), (10, 20, 30)).depth(points)
    assert np.allclose(depth, expected, atol=1e-3)


def test_ellipsoid_depth_to_first_order() -> None:
    rng = np.random.default_rng(1)
    degrees, radii, centre = (25, -40, 15), np.asarray((40.0, 25.0, 12.0)), np.asarray((5.0, 6.0, -7.0))
    on_sphere = rng.normal(size=(3, 4000))
    on_sphere /= np.linalg.norm(on_sphere, axis=0)
    rotation = rotation_matrix(degrees).astype(float)
    surface = rotation @ (on_sphere * radii[:, None]) + centre[:, None]
    normal = rotation @ (on_sphere / radii[:, None])
    normal /= np.linalg.norm(normal, axis=0)
    shape = Ellipsoid(tuple(centre), tuple(radii), degrees)
    for distance in (-0.5, 0.0, 0.5):  # outwards
        depth = shape.depth((surface + distance * normal).astype(np.float32))
        assert np.abs(depth + distance).max() < 0.08
