"""The label-free validation, held against what all pairs of cells say, worked out one by one in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.networks import FeatureGrid, PlannedEncoder
from pretraining.training.correspondence import (
    Correspondence,
    calibrate_norms,
    compare_maps,
    measure_correspondence,
    nearest,
)
from pretraining.training.geometry_baselines import (
    validation_batches,
)
from pretraining.training.progress import correspondence_lines
from pretraining.views import (
    GeometryBatch,
    ViewSettings,
)
from tests.known_encoders import (
    Constant,
    CoordinateScan,
    KnownEncoder,
    MirroredPlaceInScan,
    PlaceInScan,
    PlaceInView,
    RandomFeatures,
)
from tests.planned_networks import small_network
from tests.precision import note_types
from tests.training.geometry_reference import (
    CASES,
    HIPPOCAMPUS,
    UNCHANGED,
    Code,
    expected,
    in_scan,
    in_view,
    maps_of,
    mirrored,
)


def measured(found: Correspondence) -> dict[str, float | None]:
    shares: dict[str, float | None] = {
        name: getattr(found, name) for name in ("flipped_right", "unflipped_right", "decoy")
    }
    for axis, of_axis in enumerate(found.axes):
        if of_axis is not None:
            shares |= {f"right {axis}": of_axis.right, f"mirrored {axis}": of_axis.mirrored}
    return shares


@pytest.mark.parametrize("code", [in_view, in_scan, mirrored])
@pytest.mark.parametrize("name", CASES)
def test_codes_of_places_find_what_geometry_says(drawn: dict[str, list[dict[str, Any]]], name: str, code: Code) -> None:
    case, samples = CASES[name], drawn[name]
    found = compare_maps(maps_of(samples, case, code), case.grid)
    assert measured(found) == pytest.approx(expected(samples, case, code), abs=0.01)
    assert found.cells == 32 * np.prod(case.cells)


def measure(encoder: KnownEncoder, settings: ViewSettings = HIPPOCAMPUS.settings, pairs: int = 32) -> Correspondence:
    """Scans that tell where their voxels are, rendered, through an encoder, to the end."""
    scans = [CoordinateScan(HIPPOCAMPUS.scan, sign) for sign in (1, -1)]
    batches = validation_batches(scans, settings, 0, pairs)
    return measure_correspondence(encoder, batches, settings.size, torch.device("cpu"))


@pytest.mark.parametrize(
    ("encoder", "code", "off"),
    [(PlaceInScan, in_scan, 0.02), (PlaceInView, in_view, 0.02), (MirroredPlaceInScan, mirrored, 0.15)],
)
def test_encoders_find_what_geometry_says(
    drawn: dict[str, list[dict[str, Any]]], encoder: type[KnownEncoder], code: Code, off: float
) -> None:
    """Views repeat the outermost half voxel of a scan, which tells where a code has many cells nearly at one place."""
    found = measured(measure(encoder(HIPPOCAMPUS.stride)))
    assert found == pytest.approx(expected(drawn["hippocampus"], HIPPOCAMPUS, code), abs=off)


def test_only_what_is_there_finds_flipped_places() -> None:
    """What the figures are for: each encoder is seen through by one of them."""
    perfect, by_view = (measure(encoder(HIPPOCAMPUS.stride)) for encoder in (PlaceInScan, PlaceInView))
    assert (perfect.flipped_right, perfect.decoy, perfect.unflipped_right) == pytest.approx((1, 0, 1), abs=0.02)
    assert perfect.ceiling == pytest.approx(1, abs=0.01)
    assert (by_view.flipped_right, by_view.decoy) == pytest.approx((by_view.position_code, 1), abs=0.02)
    assert by_view.unflipped_right == pytest.approx(by_view.unflipped_position_code, abs=0.02)
    for axis in range(3):
        right, mirrored_there = perfect.axes[axis], by_view.axes[axis]
        assert right is not None
        assert mirrored_there is not None
        assert (right.right, right.mirrored) == pytest.approx((1, 0), abs=0.02)
        assert (mirrored_there.right, mirrored_there.mirrored) == pytest.approx((0, 1), abs=0.02)


def test_constant_and_random_features_are_at_chance() -> None:
    chance = 1 / np.prod(HIPPOCAMPUS.cells)
    constant, random = measure(Constant((8, 8, 8))), measure(RandomFeatures((8, 8, 8)))
    assert (constant.flipped_right, constant.unflipped_right) == pytest.approx((chance, chance), abs=0.003)
    assert (random.flipped_right, random.unflipped_right) == pytest.approx((chance, chance), abs=0.012)
    assert random.decoy == pytest.approx(chance, abs=0.02)
    assert (constant.position_code, constant.ceiling) == (random.position_code, random.ceiling)


def test_what_all_features_have_in_common_does_not_matter(drawn: dict[str, list[dict[str, Any]]]) -> None:
    """Features after a ReLU do: every cosine would be close to one."""
    case = CASES["hippocampus"]
    maps = maps_of(drawn["hippocampus"][:16], case, in_scan)
    common = torch.tensor([3e9, 1e9, 0, 2e9], dtype=torch.float64).view(-1, 1, 1, 1)
    found = compare_maps([(features + common, batch) for features, batch in maps], case.grid)
    assert measured(found) == pytest.approx(measured(compare_maps(maps, case.grid)), abs=0.01)


def test_misses_are_told_in_voxels_of_the_scan() -> None:
    """Two cells along x, of which the wrong one is always found: half the overlap away."""
    geometry = GeometryBatch(
        torch.zeros(2, 3, dtype=torch.float64),
        torch.tensor([[4.0, 4, 24], [4, 4, 24]], dtype=torch.float64),
        torch.tensor([[False] * 3, [False, False, True]]),
    )
    grid = FeatureGrid((4, 4, 16), (4.0, 4.0, 8.0), (2.0, 2.0, 4.0))
    found = compare_maps([(torch.tensor([-1.0, 1.0]).expand(2, 1, 1, 1, 2), geometry)], grid)
    assert (found.flipped_right, found.decoy, found.miss_distance) == (0, 1, pytest.approx(12))
    assert found.axes[:2] == (None, None)


@pytest.mark.parametrize(
    ("order", "right", "distance"), [((1, 2, 3, 0), 0, 6 * (1 + 1 + 1 + 3) / 4), ((1, 0, 2, 3), 0.5, 6)]
)
def test_misses_are_measured_by_how_far_they_are_off(order: tuple[int, ...], right: float, distance: float) -> None:
    """Four cells along x, six voxels apart: each finds its neighbour, and the last one the first; or two are right."""
    geometry = GeometryBatch(
        torch.zeros(2, 3, dtype=torch.float64),
        torch.tensor([[4.0, 4, 24], [4, 4, 24]], dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.bool),
    )
    grid = FeatureGrid((4, 4, 32), (4.0, 4.0, 8.0), (2.0, 2.0, 4.0))
    maps = torch.stack((torch.eye(4), torch.eye(4)[:, torch.tensor(order).argsort()])).view(2, 4, 1, 1, 4)
    found = compare_maps([(maps, geometry)], grid)
    assert (found.unflipped_right, found.miss_distance) == (right, pytest.approx(distance))


def test_decoys_are_those_of_flipped_pairs(drawn: dict[str, list[dict[str, Any]]]) -> None:
    """Flipped pairs hold a code of the position in the view, the others one of the location in the scan."""
    case, samples = CASES["openkbp"], drawn["openkbp"]
    maps = []
    for (by_view, batch), (by_scan, _) in zip(
        maps_of(samples, case, in_view), maps_of(samples, case, in_scan), strict=True
    ):
        is_flipped = (torch.arange(len(by_view)) % 2 == 1).view(-1, 1, 1, 1, 1)
        maps.append((torch.where(is_flipped, by_view, by_scan), batch))
    found = compare_maps(maps, case.grid)
    assert found.decoy == pytest.approx(expected(samples, case, in_view)["decoy"], abs=0.01)
    assert found.unflipped_right == pytest.approx(expected(samples, case, in_scan)["unflipped_right"], abs=0.01)


def test_the_same_noise_each_time() -> None:
    """Else the figure would change although the encoder does not."""
    noisy = replace(HIPPOCAMPUS.settings, intensity=replace(UNCHANGED, noise_variance=(900, 900), noise_probability=1))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(measure(PlaceInScan((8, 8, 8)), noisy, 8))
    assert found[0] == found[1]
    assert found[0] != measure(PlaceInScan((8, 8, 8)), pairs=8)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_any_map_and_precision(precision: torch.dtype | None) -> None:
    """Against the maps themselves, and by the type in which the convolutions compute."""
    encoder = PlannedEncoder(small_network(features=(4, 8, 8)))
    types = note_types(encoder)
    scans = [CoordinateScan((24, 32, 32), channels=1)]
    settings = ViewSettings(size=(8, 16, 16), intensity=UNCHANGED)
    batches = validation_batches(scans, settings, 0, 8)
    found = measure_correspondence(encoder, batches, settings.size, torch.device("cpu"), precision, 1)
    assert types == {precision or torch.float32}
    assert encoder.training
    if precision is None:
        encoder.eval()
        with torch.no_grad():
            maps = [(encoder(batch.render(settings.size))[1], batch.geometries) for batch in batches]
        assert found == compare_maps(maps, encoder.feature_grid(settings.size, 1))


def test_the_encoder_gets_no_more_views_at_once_than_a_step() -> None:
    encoder = PlannedEncoder(small_network(features=(4, 8, 8)))
    settings = ViewSettings(size=(8, 16, 16), intensity=UNCHANGED)
    batches = validation_batches([CoordinateScan((24, 32, 32), channels=1)], settings, 0, 8)
    sizes: list[int] = []
    encoder.stages[0].register_forward_hook(lambda module, inputs, result: sizes.append(len(result)))
    of_run = (settings.size, torch.device("cpu"), None, -1)
    whole, parts = (measure_correspondence(encoder, batches, *of_run, at_once) for at_once in (None, 6))
    assert sizes == [16, 6, 6, 4]
    assert parts.flipped_right == pytest.approx(whole.flipped_right, abs=0.05)  # rounding may decide between two cells
    assert parts.ceiling == whole.ceiling


def test_without_flips_there_are_no_flipped_figures() -> None:
    found = measure(PlaceInScan((8, 8, 8)), replace(HIPPOCAMPUS.settings, flip_probability=0.0), 8)
    assert (found.flipped_right, found.decoy, found.position_code, found.ceiling) == (None,) * 4
    assert found.axes == (None,) * 3
    record = found.to_record()
    assert record.keys() == {"unflipped_right", "unflipped_position_code", "unflipped_ceiling", "miss_distance"}
    (line,) = correspondence_lines(record)
    assert line.startswith("pairs without a flip: 100.0% ")


def test_a_record_in_words() -> None:
    found = measure(PlaceInView((8, 8, 8)), pairs=8)
    record = found.to_record()
    assert record == {key: value for key, value in vars(found).items() if key not in ("axes", "cells")}
    flipped, unflipped = correspondence_lines(record)
    for value in ("flipped_right", "position_code", "ceiling", "decoy"):
        assert f"{record[value]:.1%}" in flipped
    for value in ("unflipped_right", "unflipped_position_code", "unflipped_ceiling"):
        assert f"{record[value]:.1%}" in unflipped
    assert correspondence_lines({"correspondence": 0.2, "chance": 0.01, "miss_distance": 3.0}) == []  # of version 0.1.0


def test_a_single_cell() -> None:
    settings = ViewSettings(size=(8, 8, 8), intensity=UNCHANGED, channels="joint")
    found = measure(PlaceInScan((8, 8, 8)), settings, 8)
    assert (found.flipped_right, found.unflipped_right, found.decoy, found.miss_distance) == (1, 1, 0, 0)
    assert found.axes == (None,) * 3
    assert (found.position_code, found.ceiling) == (1, 1)


def test_nearest_by_hand() -> None:
    """Cell i of the first map holds the unit vector e_i; in the second, cells 0 and 3 have changed places."""
    first = torch.eye(8).reshape(1, 8, 2, 2, 2)
    second = 7 * torch.eye(8)[:, [3, 1, 2, 0, 4, 5, 6, 7]].reshape(1, 8, 2, 2, 2)
    expected_cells = [[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert nearest(first, second).tolist() == [expected_cells]


class Normalising(torch.nn.Module):
    """An encoder that is one norm, and notes what it is shown."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.shown: list[torch.Tensor] = []
        self.types: list[torch.dtype] = []

    def forward(self, views: torch.Tensor) -> list[torch.Tensor]:
        self.shown.append(views)
        self.types.append(torch.nn.functional.conv3d(views, torch.ones(1, 4, 1, 1, 1)).dtype)
        return [self.norm(views)]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_running_statistics_are_of_two_views_at_a_time_from_four_batches(precision: torch.dtype | None) -> None:
    settings = HIPPOCAMPUS.settings
    scans = [CoordinateScan(HIPPOCAMPUS.scan, sign) for sign in (1, -1)]
    batches = validation_batches(scans, settings, 0, 48)
    assert len(batches) > 4
    encoder = Normalising(torch.nn.BatchNorm3d(4))
    calibrate_norms(encoder, batches, settings.size, torch.device("cpu"), precision)  # type: ignore[arg-type]
    views = torch.cat([batch.render(settings.size) for batch in batches[:4]])
    assert torch.equal(torch.cat(encoder.shown), views)
    mean = torch.zeros(4)
    for pair in views.split(2):
        mean = 0.9 * mean + 0.1 * pair.mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(encoder.norm.running_mean, mean)
    assert set(encoder.types) == {precision or torch.float32}


def test_norms_without_running_statistics_are_shown_nothing() -> None:
    encoder = Normalising(torch.nn.InstanceNorm3d(4))
    batches = validation_batches([CoordinateScan(HIPPOCAMPUS.scan, 1)], HIPPOCAMPUS.settings, 0, 2)
    calibrate_norms(encoder, batches, HIPPOCAMPUS.settings.size, torch.device("cpu"), None)  # type: ignore[arg-type]
    assert encoder.shown == []
