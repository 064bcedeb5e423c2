"""Pairs to validate with, and what geometry alone says of them, held against all pairs of cells one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.networks import FeatureGrid
from pretraining.training.correspondence import (
    compare_maps,
)
from pretraining.training.geometry_baselines import (
    AlignedCells,
    expected_accuracy,
    geometry_of_pairs,
    position_warnings,
    validation_batches,
    validation_samples,
)
from pretraining.views import (
    GeometryBatch,
    ViewGeometry,
    overlap_fraction,
    sample_view_pair,
)
from tests.known_encoders import (
    CoordinateScan,
)
from tests.training.geometry_reference import (
    CASES,
    HIPPOCAMPUS,
    batches_of,
    expected,
    in_scan,
    in_view,
    maps_of,
    mirrored,
)

# What a code of the place in the view reaches without flips, and a perfect one of that in the scan with flips. The
# review that asked for these figures had 7, 97 and 16 %, and 65, 100 and 93 %: of codes with bumps about four voxels
# wide, which interpolation between cells blurs. A wider one reaches what is possible, which is meant here.
REACHED = {"paper": (0.09, 0.93), "hippocampus": (0.94, 1.00), "openkbp": (0.15, 0.99)}


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
