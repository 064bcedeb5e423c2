"""benchmarks.anatomy_figures: encoders whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import anatomy_figures
from benchmarks.anatomy import table
from benchmarks.anatomy_figures import Pairs, measure, noise_match, smooth_noise
from benchmarks.held_out_labels import LabelledVolume
from benchmarks.plain_features import patches
from nnunetv2_pgl.networks import FeatureGrid, PlannedEncoder
from pretraining.settings.config import PretrainConfig
from pretraining.views import IntensityRanges, ViewSettings
from tests.known_encoders import Constant, CoordinateScan, PlaceInScan, PlaceInView, RandomFeatures
from tests.planned_networks import small_network

UNCHANGED = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)
KNOWN = PretrainConfig(
    datasets=("a",),
    views=ViewSettings(size=(16, 20, 16), intensity=UNCHANGED, channels="joint"),
    strides=(4, 4, 4),
    in_channels=4,
)
SIZE, CELLS = (18, 25, 18), 4 * 5 * 4
SCANS = [CoordinateScan(SIZE, sign) for sign in (1, -1) * 3]


def halves() -> list[LabelledVolume]:
    """Left and right of the scans, and what there is not."""
    shares = torch.zeros(3, *SIZE)
    shares[0, ..., : SIZE[2] // 2], shares[1, ..., SIZE[2] // 2 :] = 1, 1
    return [LabelledVolume(("left", "right", "none"), shares)] * len(SCANS)


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    """Figures of encoders that know one thing each; labels where they tell something."""
    stride = (4, 4, 4)
    volumes: Any = SCANS
    perfect = measure(PlaceInScan(stride), RandomFeatures(stride), volumes, KNOWN, 16, halves())
    others = measure(Constant(stride), PlaceInView(stride), volumes, KNOWN, 16)
    return {"scan": perfect, "constant": others, "view": others["beside"]["random weights"]}


def test_the_perfect_code(known: dict[str, dict[str, Any]]) -> None:
    figures = known["scan"]
    assert (figures["flipped_right"], figures["unflipped_right"]) == pytest.approx((1, 1), abs=0.02)
    assert figures["flipped_right"] <= figures["ceiling"] + 0.02
    assert figures["decoy"] < 0.01
    assert figures["noise_match"] < 0.05
    for axis in "zyx":
        assert figures["axes"][axis]["right"] > 0.97
        assert figures["axes"][axis]["mirrored"] < 0.03
    for flips in ("flips", "no_flips"):
        for kind in ("knn5", "probe"):
            shares = figures[flips][kind]
            assert shares["left"] == pytest.approx(shares["right"], abs=0.05)
            assert shares["none"] is None
            assert shares["mean"] == pytest.approx((shares["left"] + shares["right"]) / 2)
    assert figures["flips"]["knn5"]["mean"] > 0.85


def test_the_place_in_the_view(known: dict[str, dict[str, Any]]) -> None:
    """Seen through by the decoys and by the noise; without flips it passes for knowledge, and by its labels."""
    figures = known["view"]
    assert figures["decoy"] > 0.98
    assert figures["noise_match"] == 1
    assert figures["flipped_right"] == pytest.approx(figures["position_code"], abs=0.02)
    assert figures["unflipped_right"] == pytest.approx(figures["unflipped_position_code"], abs=0.02)
    assert figures["unflipped_right"] > 0.8
    for axis in "zyx":
        assert figures["axes"][axis]["right"] < 0.03
        assert figures["axes"][axis]["mirrored"] > 0.97


def test_a_constant_is_at_chance(known: dict[str, dict[str, Any]]) -> None:
    figures = known["constant"]
    assert figures["chance"] == pytest.approx(1 / CELLS)
    assert (figures["flipped_right"], figures["noise_match"]) == pytest.approx((1 / CELLS, 1 / CELLS), abs=0.01)


def test_what_stands_beside(known: dict[str, dict[str, Any]]) -> None:
    beside = known["scan"]["beside"]
    assert beside.keys() == {"random weights", "raw patch", "code of the place in the view"}
    code, patch = beside["code of the place in the view"], beside["raw patch"]
    assert code["decoy"] > 0.95
    assert code["noise_match"] == 1
    assert code["flipped_right"] == pytest.approx(code["position_code"], abs=0.03)
    assert code["flips"]["knn20"]["mean"] < 0.4
    assert code["no_flips"]["knn20"]["mean"] > 0.8
    assert beside["random weights"]["flipped_right"] < 0.05
    assert patch["noise_match"] < 0.05
    for figures in (*beside.values(), known["view"]):
        for name in ("position_code", "unflipped_position_code", "ceiling", "unflipped_ceiling", "chance"):
            assert figures[name] == known["scan"][name]  # of the same pairs


def test_the_table_has_every_figure(known: dict[str, dict[str, Any]]) -> None:
    text = table(known["scan"])
    header, checkpoint = text.splitlines()[1:3]
    assert header.split()[:4] == ["flipped_right", "unflipped_right", "decoy", "noise_match"]
    assert checkpoint.split()[0] == "checkpoint"
    assert checkpoint.split()[1] == f"{known['scan']['flipped_right']:.3f}"
    for name in (
        "random weights",
        "raw patch",
        "code of the place in the view",
        "knn5 no_flips",
        "noise_match by chance",
    ):
        assert name in text
    assert text.count("mirrored") == 3
    assert f"perfect code of the place in the scan {known['scan']['unflipped_ceiling']:.3f}" in text


def test_noise_is_unrelated_smooth_and_the_same_everywhere() -> None:
    """Smoothing must not tell the border of a view, or noise would give the place away."""
    noise = smooth_noise(64, 1, (8, 20, 20), torch.Generator().manual_seed(0))
    assert tuple(noise.shape) == (64, 1, 8, 20, 20)
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    spread = noise.std(dim=(0, 1))
    assert float(spread[:, 0].mean()) == pytest.approx(float(spread[:, 10].mean()), rel=0.1)
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean())
    assert 0.7 < neighbours < 0.95
    assert abs(float((noise[:32] * noise[32:]).mean())) < 0.05


@pytest.mark.parametrize(("padding", "low", "high"), [("zeros", 0.1, 1), ("replicate", 0, 0.08)])
def test_padding_with_zeros_tells_the_place(padding: Any, low: float, high: float) -> None:
    """The finding that all this is for, on random weights (27 and 0.9 % at full width)."""
    torch.manual_seed(0)
    encoder = PlannedEncoder(small_network("plain", (8, 16, 16, 16)), 1, padding).eval()
    config = replace(KNOWN, in_channels=1)
    found = noise_match(lambda views: encoder(views)[-1].detach(), config)["noise_match"]
    assert low <= found <= high


def test_a_patch_lies_where_the_cell_does() -> None:
    """Also where an encoder's cells lie at the edge: pairs of patches without intensity changes find each other."""
    volumes: Any = [CoordinateScan(SIZE, channels=1)]
    config = replace(KNOWN, in_channels=1)
    pairs = Pairs.draw(volumes, config, 8)
    for offset in (2.0, 0.5):
        grid = FeatureGrid((16, 20, 16), (4.0, 4.0, 4.0), (offset,) * 3)
        (batch,) = pairs.batches
        middle = patches_mean(batch.render(grid.view_size, changes_intensity=False), grid)
        cells = torch.arange(4) * 4 + offset
        in_view = torch.where(batch.flips[:, :1], 16 - cells, cells)
        in_scan = batch.starts[:, :1] + in_view * batch.sizes[:, :1] / 16 - SIZE[0] / 2
        inner = slice(1, 3)
        assert torch.allclose(middle[:, 0, inner, 2, 2], in_scan[:, inner].float(), atol=0.8)


def patches_mean(views: Tensor, grid: FeatureGrid) -> Tensor:
    """Mean of each patch; patches come without it, so a channel of ones keeps them in place."""
    wide = torch.cat((views, torch.zeros_like(views)), dim=1)
    found = patches(grid)(wide)
    half = found.shape[1] // 2
    return 2 * found[:, :half].mean(dim=1, keepdim=True)


def test_each_view_belongs_to_the_scan_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a scan has views of one value only, and the next one is shown instead."""
    empty = replace(SCANS[0], channels=1)
    volumes: Any = [replace(SCANS[1], channels=1), empty, replace(SCANS[2], channels=1)]
    read = CoordinateScan.read

    def nothing(self: CoordinateScan, channel: int, start: Sequence[int], stop: Sequence[int]) -> Any:
        return read(self, channel, start, stop) * (self is not empty)

    monkeypatch.setattr(CoordinateScan, "read", nothing)
    (batch,) = Pairs.draw(volumes, replace(KNOWN, in_channels=1), 8).scans
    assert batch.tolist() == [0, 0, 2, 2, 2, 2, 0, 0] * 2


def test_batch_norms_of_random_weights_have_seen_images() -> None:
    volumes: Any = [CoordinateScan(SIZE, channels=1)]
    untrained = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4))
    config = replace(KNOWN, in_channels=1)
    anatomy_figures._calibrate(untrained, Pairs.draw(volumes, config, 8), (16, 20, 16))  # type: ignore[arg-type]
    views = torch.cat([b.render((16, 20, 16)) for b in Pairs.draw(volumes, config, 8).batches])
    seen = untrained.eval()(views)
    assert torch.allclose(seen.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=0.02)
    assert torch.allclose(seen.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=0.02)
