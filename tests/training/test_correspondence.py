"""The label-free validation, held against what all pairs of cells say, worked out one by one in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnunetv2_pgl.networks import FeatureGrid, PlannedEncoder
from pretraining.training.correspondence import (
    Correspondence,
    compare_maps,
    measure_correspondence,
    nearest,
)
from pretraining.training.geometry_baselines import (
    AlignedCells,
    expected_accuracy,
    geometry_of_pairs,
    position_warnings,
    validation_batches,
    validation_samples,
)
from pretraining.training.progress import correspondence_lines
from pretraining.views import (
    GeometryBatch,
    IntensityRanges,
    ViewGeometry,
    ViewSettings,
    overlap_fraction,
    sample_view_pair,
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

Code = Callable[[NDArray[Any], NDArray[Any], int], NDArray[Any]]  # place in the view, place in the scan, axis

UNCHANGED = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)


@dataclass(frozen=True)
class Case:
    """Views of scans, and where cells lie in them."""

    view: tuple[int, int, int]
    scan: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: tuple[float, float, float]

    @property
    def cells(self) -> tuple[int, int, int]:
        z, y, x = (n // s for n, s in zip(self.view, self.stride, strict=True))
        return z, y, x

    @property
    def grid(self) -> FeatureGrid:
        z, y, x = self.stride
        return FeatureGrid(self.view, (float(z), float(y), float(x)), self.offset)

    @property
    def settings(self) -> ViewSettings:
        return ViewSettings(size=self.view, intensity=UNCHANGED, channels="joint")


CASES = {
    "paper": Case((16, 96, 96), (120, 400, 400), (8, 16, 16), (4, 8, 8)),
    "hippocampus": Case((32, 40, 32), (36, 50, 35), (8, 8, 8), (4, 4, 4)),
    "openkbp": Case((32, 48, 48), (110, 65, 105), (8, 8, 8), (4, 4, 4)),
    "cells at the edge": Case((32, 40, 32), (36, 50, 35), (8, 8, 8), (0.5, 0.5, 0.5)),  # as in nnU-Net's encoders
}
# What a code of the place in the view reaches without flips, and a perfect one of that in the scan with flips. The
# review that asked for these figures had 7, 97 and 16 %, and 65, 100 and 93 %: of codes with bumps about four voxels
# wide, which interpolation between cells blurs. A wider one reaches what is possible, which is meant here.
REACHED = {"paper": (0.09, 0.93), "hippocampus": (0.94, 1.00), "openkbp": (0.15, 0.99)}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict[str, Any]]]:
    """Validation pairs of each case; of one channel, which is all that their geometry needs."""
    return {
        name: validation_samples([CoordinateScan(case.scan, channels=1)], case.settings, 0, 32)
        for name, case in CASES.items()
    }


def batches_of(samples: Sequence[dict[str, Any]], size: int = 8) -> list[GeometryBatch]:
    """First views, then second views."""
    batches = []
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        columns = [
            np.concatenate([[s[key][half] for s in part] for half in (0, 1)]) for key in ("starts", "sizes", "flips")
        ]
        batches.append(GeometryBatch(*map(torch.from_numpy, columns)))
    return batches


def along(sample: dict[str, Any], half: int, axis: int, case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places of a view's cells along an axis: in cells, at the shared points, and where the cells are in the scan."""
    start, size, flip = (sample[key][half][axis] for key in ("starts", "sizes", "flips"))
    low = max(view[axis] for view in sample["starts"])
    high = min(a[axis] + b[axis] for a, b in zip(sample["starts"], sample["sizes"], strict=True))
    count, length = case.cells[axis], case.view[axis]
    points = low + (np.arange(count) + 0.5) * (high - low) / count
    in_view = (points - start) * length / size
    in_view = length - in_view if flip else in_view
    centres = case.offset[axis] + case.stride[axis] * np.arange(count)
    in_scan = start + (length - centres if flip else centres) * size / length
    return (in_view - case.offset[axis]) / case.stride[axis], in_scan


def codes(sample: dict[str, Any], half: int, case: Case, code: Code) -> NDArray[Any]:
    """Of each shared point a code for each axis, interpolated between cells, (cells, 3)."""
    lines = []
    for axis, count in enumerate(case.cells):
        at, in_scan = along(sample, half, axis, case)
        lines.append(np.interp(at, np.arange(count), code(np.arange(count), in_scan - case.scan[axis] / 2, axis)))
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)


def in_view(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return cells


def in_scan(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return places


def mirrored(cells: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.abs(places)


def near(sample: dict[str, Any], case: Case, code: Code) -> NDArray[Any]:
    """Of all pairs of shared points, which of the second view are nearest to each of the first, (cells, cells)."""
    first, second = (codes(sample, half, case, code) for half in (0, 1))
    apart = np.linalg.norm(first[:, None] - second[None], axis=2)
    return apart <= apart.min(axis=1, keepdims=True) + 1e-6


def expected(samples: Sequence[dict[str, Any]], case: Case, code: Code) -> dict[str, float]:
    """Shares that a code gets: with and without flip, decoys, and of each axis right and mirrored ones."""
    found: dict[str, list[NDArray[Any]]] = {}
    indices = np.stack(np.unravel_index(np.arange(np.prod(case.cells)), case.cells), axis=1)
    for sample in samples:
        chosen, decoys = near(sample, case, code), near(sample, case, in_view)
        chances = chosen / chosen.sum(axis=1, keepdims=True)
        flips = sample["flips"][0] != sample["flips"][1]
        found.setdefault("flipped_right" if flips.any() else "unflipped_right", []).append(np.diag(chances))
        if flips.any():
            found.setdefault("decoy", []).append((chances * decoys).sum(axis=1)[~np.diag(decoys)])
        for axis in np.flatnonzero(flips):
            at = [along(sample, half, axis, case)[0].clip(0, case.cells[axis] - 1) for half in (0, 1)]
            apart = np.abs(at[0][:, None] - at[1][None])
            same_of_view = (apart <= apart.min(axis=1, keepdims=True) + 1e-6)[indices[:, None, axis], indices[:, axis]]
            tells = ~np.diag(same_of_view)
            same = indices[:, None, axis] == indices[None, :, axis]
            found.setdefault(f"right {axis}", []).append((chances * same).sum(axis=1)[tells])
            found.setdefault(f"mirrored {axis}", []).append((chances * same_of_view).sum(axis=1)[tells])
    return {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}


def maps_of(samples: Sequence[dict[str, Any]], case: Case, code: Code) -> list[tuple[torch.Tensor, GeometryBatch]]:
    """Maps that hold a code of each cell; a large constant, of either sign by turns, makes cosines tell distances."""
    maps = []
    for at, batch in zip(range(0, len(samples), 8), batches_of(samples), strict=True):
        views = []
        for half in (0, 1):
            for number, sample in enumerate(samples[at : at + 8]):
                lines = [
                    code(np.arange(n), along(sample, half, axis, case)[1] - case.scan[axis] / 2, axis)
                    for axis, n in enumerate(case.cells)
                ]
                code_and_far = [*np.meshgrid(*lines, indexing="ij"), np.full(case.cells, 1e4)]
                views.append(np.stack(code_and_far) * (1 if number // 2 % 2 else -1))
        maps.append((torch.from_numpy(np.stack(views)), batch))
    return maps


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


@pytest.mark.parametrize("name", CASES)
def test_what_codes_reach_by_geometry(drawn: dict[str, list[dict[str, Any]]], name: str) -> None:
    case, samples = CASES[name], drawn[name]
    by_view, by_scan = expected(samples, case, in_view), expected(samples, case, in_scan)
    found = geometry_of_pairs(batches_of(samples), case.grid, case.cells)
    assert vars(found) == pytest.approx(
        {
            "position_code": by_view["flipped_right"],
            "unflipped_position_code": by_view["unflipped_right"],
            "ceiling": by_scan["flipped_right"],
            "unflipped_ceiling": by_scan["unflipped_right"],
        }
    )
    beside = compare_maps(maps_of(samples, case, mirrored), case.grid)
    assert {key: getattr(beside, key) for key in vars(found)} == vars(found)


@pytest.mark.parametrize(("name", "reached"), REACHED.items())
def test_the_geometries_of_the_paper_and_of_our_comparisons(name: str, reached: tuple[float, float]) -> None:
    case, rng = CASES[name], np.random.default_rng(0)
    found = []
    for flip_probability in (0.0, 0.5):
        settings = {"flip_probability": flip_probability, "min_overlap": 0.3}
        pairs = [sample_view_pair(case.scan, case.view, rng, **settings) for _ in range(300)]
        views = GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in pairs])
        found.append(geometry_of_pairs([views], case.grid, case.cells))
    assert (found[0].unflipped_position_code, found[1].ceiling) == pytest.approx(reached, abs=0.03)
    assert found[0].position_code is None
    assert found[1].position_code is not None
    assert found[1].position_code < 0.05


HIPPOCAMPUS = CASES["hippocampus"]


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


def test_misses_are_told_by_how_far_they_are_off() -> None:
    """Four cells along x, six voxels apart, of which each finds its neighbour, and the last one the first."""
    geometry = GeometryBatch(
        torch.zeros(2, 3, dtype=torch.float64),
        torch.tensor([[4.0, 4, 24], [4, 4, 24]], dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.bool),
    )
    grid = FeatureGrid((4, 4, 32), (4.0, 4.0, 8.0), (2.0, 2.0, 4.0))
    maps = torch.stack((torch.eye(4), torch.eye(4).roll(1, dims=1))).view(2, 4, 1, 1, 4)
    found = compare_maps([(maps, geometry)], grid)
    assert (found.unflipped_right, found.miss_distance) == (0, pytest.approx(6 * (1 + 1 + 1 + 3) / 4))


def test_half_of_the_pairs_have_a_relative_flip(drawn: dict[str, list[dict[str, Any]]]) -> None:
    flips = np.stack([sample["flips"] for sample in drawn["hippocampus"]])
    relative = (flips[:, 0] != flips[:, 1]).any(axis=1)
    assert relative.tolist() == [False, True] * 16
    assert flips[::2].any()  # both views flipped alike
    assert not flips[::2].all()


def test_pairs_overlap_by_three_tenths_or_more_where_views_do() -> None:
    """In the scans of the paper's size, where training's pairs hardly do."""
    case = CASES["paper"]
    scans = [CoordinateScan(case.scan, channels=1)]
    smallest = []
    for min_overlap in (0.1, 0.5):
        samples = validation_samples(scans, replace(case.settings, min_overlap=min_overlap), 0, 24)
        pairs = [[ViewGeometry(s["starts"][i], s["sizes"][i], s["flips"][i]) for i in (0, 1)] for s in samples]
        smallest.append(min(overlap_fraction(*pair) for pair in pairs))
    assert 0.3 - 1e-9 <= smallest[0] < 0.4
    assert smallest[1] >= 0.5 - 1e-9


def test_the_batches_hold_all_pairs_in_order() -> None:
    scans = [CoordinateScan(HIPPOCAMPUS.scan, channels=1)]
    samples, batches = (draw(scans, HIPPOCAMPUS.settings, 0) for draw in (validation_samples, validation_batches))
    assert [len(batch.geometries.starts) for batch in batches] == [2 * 8] * 8
    for of_all, of_batches in zip(batches_of(samples), batches, strict=True):
        assert torch.equal(of_all.starts, of_batches.geometries.starts)
    uneven = validation_batches(scans, HIPPOCAMPUS.settings, 0, pairs=10, batch_size=4)
    assert [len(batch.geometries.starts) for batch in uneven] == [8, 8, 4]


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


def test_pairs_have_the_flips_that_the_settings_have() -> None:
    """Rare ones, none, and none along an axis that a scan names; and all show the scan whose turn it is."""
    rare, none, lateral = (
        replace(HIPPOCAMPUS.settings, flip_probability=(0.01, 0.0, 0.01)),
        replace(HIPPOCAMPUS.settings, flip_probability=0.0),
        replace(HIPPOCAMPUS.settings, no_flip="lateral"),
    )
    scans = [CoordinateScan(HIPPOCAMPUS.scan, lateral_axis=axis, channels=1) for axis in (0, 2)]
    of_rare, of_none, of_lateral = (validation_samples(scans, views, 0, 16) for views in (rare, none, lateral))
    assert [bool((s["flips"][0] != s["flips"][1]).any()) for s in of_rare] == [False, True] * 8
    assert not any(s["flips"].any() for s in of_none)
    assert [bool((s["flips"][0] != s["flips"][1]).any()) for s in of_lateral] == [False, True] * 8
    for sample in of_lateral:
        assert not sample["flips"][:, (0, 2)[sample["index"][0]]].any()
    assert [int(sample["index"][0]) for sample in of_lateral] == [0, 0, 1, 1] * 4


def test_pairs_without_flips_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no flip can be drawn, looking for one must not read a scan again and again."""
    reads = []
    read = CoordinateScan.read
    monkeypatch.setattr(CoordinateScan, "read", lambda self, *box: reads.append(1) or read(self, *box))
    settings = replace(HIPPOCAMPUS.settings, flip_probability=0.0)
    validation_samples([CoordinateScan(HIPPOCAMPUS.scan, channels=1)], settings, 0, 8)
    assert len(reads) == 16


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


def test_the_place_in_the_view_is_warned_of_where_it_tells(drawn: dict[str, list[dict[str, Any]]]) -> None:
    for name, warned in (("hippocampus", True), ("openkbp", False)):
        case = CASES[name]
        found = geometry_of_pairs(batches_of(drawn[name]), case.grid, case.cells)
        (*_, last) = found.lines()
        assert last.startswith("WARNING: the scans are little larger than the views") == warned
        assert position_warnings(found.__dict__) == found.lines()[2:]
    assert position_warnings({}) == []
    assert position_warnings({"unflipped_position_code": 0.5}) == []
    assert len(position_warnings({"unflipped_position_code": 0.51})) == 1
    assert position_warnings({"unflipped_position_code": None}) == []


def test_shares_and_steps_by_hand() -> None:
    """Boxes that share z 2 to 6, y 3 to 8 and x 10 to 22; of two cells, the first has two nearest points."""
    one, two = (
        GeometryBatch(*(torch.tensor([values], dtype=torch.float64) for values in (start, size)), torch.zeros(1, 3) > 0)
        for start, size in (((0.0, 3, 10), (6.0, 6, 12)), ((2.0, 1, 4), (6.0, 7, 24)))
    )
    cells = AlignedCells.from_geometries(one, two, FeatureGrid((4, 4, 16), (4.0, 4.0, 8.0), (2.0, 2.0, 4.0)), (1, 1, 2))
    assert cells.steps.tolist() == [[4, 5, 6]]
    near = torch.tensor([[[True, True], [False, True]]])
    assert expected_accuracy([near, torch.ones(1, 1, 1) > 0, near]).tolist() == [0.75**2]


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
