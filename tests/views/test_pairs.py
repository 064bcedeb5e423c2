from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import DataLoader

from pretraining.data import DataError
from pretraining.views import (
    IntensityRanges,
    ViewPairBatch,
    ViewPairDataset,
    ViewSettings,
    apply_intensity,
    sample_view_pair,
)
from pretraining.views.intensity import draw_intensity

VIEW = (8, 24, 16)
NO_CHANGES = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)


@dataclass(frozen=True)
class Scan:
    """A scan in memory."""

    voxels: np.ndarray
    mean: tuple[float, ...] = (-200.0, 100.0)
    std: tuple[float, ...] = (300.0, 20.0)
    lateral_axis: int | None = None
    is_ct: tuple[bool, ...] = (False,)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        c, d, h, w = self.voxels.shape
        return (c, d, h, w)

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        z, y, x = (slice(low, high) for low, high in zip(start, stop, strict=True))
        return self.voxels[channel, z, y, x].copy()


def pool(*dtypes: str) -> list[Scan]:
    rng = np.random.default_rng(0)
    return [Scan(rng.integers(-1024, 326, (2, 20 + i, 60, 40)).astype(dtype)) for i, dtype in enumerate(dtypes)]


def fields_of(batch: ViewPairBatch) -> dict[str, torch.Tensor]:
    fields = dict(vars(batch))
    return fields | fields.pop("drawn")


def draw_more(view_size: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As a method might."""
    return {"map": rng.integers(0, 100, tuple(view_size), dtype=np.int8), "whether": np.array(rng.random() < 0.5)}


def test_first_views_come_first_and_padding_is_zero() -> None:
    dataset = ViewPairDataset(pool("int16", "int16"), ViewSettings(VIEW), seed=3)
    samples = [dataset[5, 0], dataset[6, 1]]
    batch = ViewPairBatch.collate(samples)
    assert batch.crops.dtype == torch.int16
    for number, (view, pair) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        (crop,) = samples[pair]["crops"][view]
        d, h, w = crop.shape
        assert batch.extents[number].tolist() == [d, h, w]
        assert np.array_equal(batch.crops[number, 0, :d, :h, :w].numpy(), crop)
        assert int(batch.crops[number].count_nonzero()) == np.count_nonzero(crop)


def test_loading_process_hands_over_the_same_batch_in_shared_memory() -> None:
    dataset = ViewPairDataset(pool("int16", "int16"), ViewSettings(VIEW), seed=3)
    batches = [[(0, 0), (1, 1)], [(2, 0), (3, 1)]]
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=ViewPairBatch.collate, num_workers=1)
    for keys, loaded in zip(batches, loader, strict=True):
        assert loaded.crops.is_shared()
        for name, value in fields_of(ViewPairBatch.collate([dataset[key] for key in keys])).items():
            assert torch.equal(getattr(loaded, name), value), name


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of a machine, or a job, with one core
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_a_method_draws_comes_along_whoever_reads(workers: int) -> None:
    """After all other draws of the pair, which stay as they were; each view its own."""
    scans = pool("int16", "int16")
    drawing, plain = (ViewPairDataset(scans, ViewSettings(VIEW), 3, draw) for draw in (draw_more, None))
    keys = [[(0, 0), (1, 1), (2, 0)], [(3, 1), (4, 0), (5, 1)]]
    loader = DataLoader(drawing, batch_sampler=keys, collate_fn=ViewPairBatch.collate, num_workers=workers)
    seen = []
    for part, batch in zip(keys, loader, strict=True):
        without = ViewPairBatch.collate([plain[key] for key in part])
        assert without.drawn == {}
        assert all(torch.equal(getattr(batch, name), value) for name, value in fields_of(without).items())
        for view, (draw, scan) in enumerate(part * 2):
            rng = np.random.default_rng((3, draw))
            pair = sample_view_pair(scans[scan].shape[1:], VIEW, rng)
            assert np.array_equal(batch.starts[view], pair[view // 3].start)
            rng.integers(2)
            draw_intensity(2, IntensityRanges(), rng)
            expected = [draw_more(VIEW, rng) for _ in range(2)][view // 3]
            assert {name: values[view].tolist() for name, values in batch.drawn.items()} == {
                name: values.tolist() for name, values in expected.items()
            }
        seen += list(batch.drawn["map"])
    assert len({tuple(of_view.flatten().tolist()) for of_view in seen}) == 12


def test_all_but_the_intensity_goes_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ViewPairDataset(pool("int16"), ViewSettings(VIEW), 3, draw_more)
    batch = ViewPairBatch.collate([dataset[0, 0]])
    there = fields_of(batch.to(torch.device("meta")))
    assert {name for name, value in there.items() if value.device.type == "cpu"} == {"intensity"}
    assert {"map", "whether"} < there.keys()
    seen: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: seen.append(id(tensor)) or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: seen.append(id(tensor)))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert fields_of(batch.pin_memory()).keys() == there.keys()
    batch.record_stream(None)  # type: ignore[arg-type]
    assert sorted(seen) == sorted(2 * [id(value) for value in fields_of(batch).values()])


def test_stored_types_are_joined_as_float32() -> None:
    scans = pool("int16", "float16")
    dataset = ViewPairDataset(scans, ViewSettings(VIEW), seed=0)
    for keys in ([(0, 0), (1, 1), (2, 0)], [(1, 1), (0, 0), (2, 0)]):
        samples = [dataset[key] for key in keys]
        joined = ViewPairBatch.collate(samples)
        assert joined.crops.dtype == torch.float32
        alone = torch.stack([ViewPairBatch.collate([sample]).crops.float() for sample in samples], dim=1)
        assert torch.equal(joined.crops, alone.flatten(0, 1))


def test_views_are_those_of_the_z_scored_scan() -> None:
    """Against `F.grid_sample` on the whole scan, z-scored before, in float64."""
    scans = pool("int16", "int16")
    dataset = ViewPairDataset(scans, ViewSettings(VIEW, intensity=NO_CHANGES), seed=1)
    for draw in range(8):
        sample = dataset[draw, draw % 2]
        index, channel = sample["index"]
        views = ViewPairBatch.collate([sample]).render(VIEW)
        scan = scans[index]
        volume = torch.from_numpy((scan.voxels[channel] - scan.mean[channel]) / scan.std[channel])
        for view, start, size, flip in zip(views, sample["starts"], sample["sizes"], sample["flips"], strict=True):
            axes = []
            for axis, bins in enumerate(VIEW):
                places = start[axis] + (torch.arange(bins, dtype=torch.float64) + 0.5) / bins * size[axis]
                axes.append(2 * (places.flip(0) if flip[axis] else places) / volume.shape[axis] - 1)
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
            expected = F.grid_sample(volume[None, None], grid[None], padding_mode="border", align_corners=False)[0]
            torch.testing.assert_close(view.double(), expected, rtol=1e-5, atol=1e-5)


def test_intensity_is_that_of_the_rendered_views_even_under_autocast() -> None:
    dataset = ViewPairDataset(pool("int16", "int16"), ViewSettings(VIEW), seed=1)
    batch = ViewPairBatch.collate([dataset[draw, draw % 2] for draw in range(6)])
    plain = replace(batch, intensity=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(12, 1, 4)).render(VIEW)
    expected = apply_intensity(plain, batch.intensity[:, 0], torch.Generator().manual_seed(2))
    assert not torch.equal(plain, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = batch.render(VIEW, torch.Generator().manual_seed(2))
    assert views.dtype == torch.float32
    torch.testing.assert_close(views, expected)


def test_joint_views_are_the_channels_views_side_by_side() -> None:
    """Geometry is shared; each channel is z-scored and changed alone. The reference renders channel by channel."""
    scans = pool("int16", "float16")
    settings = ViewSettings(VIEW, channels="joint", intensity=replace(IntensityRanges(), noise_probability=0))
    dataset = ViewPairDataset(scans, settings, seed=1)
    batch = ViewPairBatch.collate([dataset[draw, draw % 2] for draw in range(6)])
    assert batch.crops.shape[:2] == (12, 2)
    assert batch.mean.shape == batch.std.shape == (12, 2)
    views = batch.render(VIEW)
    assert views.shape == (12, 2, *VIEW)
    for channel in (0, 1):
        alone = replace(
            batch,
            **{
                name: fields_of(batch)[name][:, channel : channel + 1] for name in ("crops", "mean", "std", "intensity")
            },
        )
        assert torch.equal(views[:, channel], alone.render(VIEW)[:, 0])
    assert not torch.equal(batch.intensity[:, 0], batch.intensity[:, 1])
    for number, (view, pair) in enumerate((view, pair) for view in (0, 1) for pair in range(6)):
        start = dataset[pair, pair % 2]["origins"][view].astype(int)
        first = scans[pair % 2].voxels[:, start[0], start[1], start[2]]
        assert np.array_equal(batch.crops[number, :, 0, 0, 0].numpy(), first.astype(np.float32))


def test_joint_noise_is_white_across_channels() -> None:
    settings = ViewSettings(VIEW, channels="joint", intensity=replace(NO_CHANGES, noise_probability=1))
    dataset = ViewPairDataset(pool("int16"), settings, seed=1)
    batch = ViewPairBatch.collate([dataset[0, 0]])
    noise = batch.render(VIEW, torch.Generator().manual_seed(0)) - batch.render(VIEW, changes_intensity=False)
    std = noise.std(dim=(2, 3, 4))
    torch.testing.assert_close(std, batch.intensity[..., 0], rtol=0.1, atol=0)
    assert abs(float(torch.corrcoef(noise[0].flatten(1))[0, 1])) < 0.1


def test_single_channel_scans_are_drawn_alike_in_both_ways() -> None:
    scans = [replace(scan, voxels=scan.voxels[:1]) for scan in pool("int16", "int16")]
    each, joint = (ViewPairDataset(scans, ViewSettings(VIEW, channels=how), seed=2) for how in ("each", "joint"))
    for draw in range(4):
        one, other = (dataset[draw, draw % 2] for dataset in (each, joint))
        assert np.array_equal(one["starts"], other["starts"])
        assert np.array_equal(one["crops"][0][0], other["crops"][0][0])


def test_the_lateral_axis_of_each_scan_is_left_out_and_nothing_else_changes() -> None:
    """Flips of 60 pairs of a scan: at a probability of one half, an axis that may flip does in some."""
    scans = [replace(pool("int16")[0], lateral_axis=axis) for axis in (0, 1, 2, None)]
    with_all = ViewPairDataset(scans, ViewSettings(VIEW), seed=4)
    without = ViewPairDataset(scans, ViewSettings(VIEW, no_flip="lateral"), seed=4)
    for index, scan in enumerate(scans):
        pairs = [(with_all[draw, index], without[draw, index]) for draw in range(60)]
        flips = np.concatenate([pair["flips"] for _, pair in pairs])
        assert flips.any(axis=0).tolist() == [axis != scan.lateral_axis for axis in range(3)]
        for one, other in pairs:
            assert np.array_equal(one["starts"], other["starts"])
            assert np.array_equal(one["intensity"], other["intensity"])
            kept = [axis for axis in range(3) if axis != scan.lateral_axis]
            assert np.array_equal(one["flips"][:, kept], other["flips"][:, kept])


def test_the_default_leaves_it_out_in_ct_only() -> None:
    ct, mr = (replace(pool("int16")[0], lateral_axis=1, is_ct=(is_ct,)) for is_ct in (True, False))
    settings = ViewSettings(VIEW, no_flip="lateral_in_ct")
    assert settings.flip_probability_of(ct) == (0.5, 0.0, 0.5)
    assert settings.flip_probability_of(mr) == 0.5
    assert ViewSettings(VIEW, no_flip="lateral").flip_probability_of(mr) == (0.5, 0.0, 0.5)


def test_three_probabilities_and_the_lateral_axis_go_together() -> None:
    scan = replace(pool("int16")[0], lateral_axis=1)
    settings = ViewSettings(VIEW, flip_probability=(1.0, 1.0, 0.0), no_flip="lateral")
    dataset = ViewPairDataset([scan], settings, seed=4)
    assert all(dataset[draw, 0]["flips"].tolist() == [[True, False, False]] * 2 for draw in range(20))


def dull_scan(*filled: slice) -> Scan:
    """One value, and another at random in a box."""
    voxels = np.full((1, 24, 80, 60), -1024, dtype=np.int16)
    voxels[(0, *filled)] += np.random.default_rng(0).integers(0, 2, voxels[(0, *filled)].shape, dtype=np.int16) * 900
    return Scan(voxels, mean=(-1000.0,), std=(50.0,))


def test_views_of_one_value_are_drawn_again_and_other_draws_stay_as_they_were() -> None:
    """As they were: everything drawn once, in this order."""
    scan, settings = dull_scan(slice(0, 24), slice(0, 40), slice(0, 60)), ViewSettings(VIEW, channels="each")
    dataset = ViewPairDataset([scan], settings, seed=6)
    again = 0
    for draw in range(60):
        sample = dataset[draw, 0]
        assert contrast(sample) > 0.001 * 50
        rng = np.random.default_rng((6, draw))
        pair = sample_view_pair(scan.shape[1:], VIEW, rng)
        channel = int(rng.integers(1))
        changes = draw_intensity(2, settings.intensity, rng).reshape(2, 1, -1)
        deviations = [box_of(scan, view.start, view.end).std() for view in pair]
        if min(deviations) > 0.05 * 50:
            assert np.array_equal(sample["starts"], [view.start for view in pair])
            assert np.array_equal(sample["flips"], [view.flip for view in pair])
            assert np.array_equal(sample["intensity"], changes)
            assert sample["index"].tolist() == [0, channel]
        if min(deviations) == 0:
            again += 1
            assert not np.array_equal(sample["starts"], [view.start for view in pair])
    assert 5 < again < 55


def contrast(sample: dict[str, Any]) -> float:
    """Standard deviation of the duller view as rendered, in stored values."""
    batch = ViewPairBatch.collate([sample])
    views = batch.render(VIEW, changes_intensity=False)
    return float((views.flatten(1).std(dim=1) * batch.std[:, 0]).min())


@pytest.mark.parametrize("filled", [slice(39, 80), slice(40, 80), slice(60, 80)])
def test_voxels_at_the_edge_of_a_box_are_no_contrast(filled: slice) -> None:
    """Half a voxel from the edge of a box is the first that a view shows: the box may hold values that no view has."""
    scan = dull_scan(slice(0, 24), filled, slice(0, 60))
    dataset = ViewPairDataset([scan], ViewSettings(VIEW), seed=2)
    seen = [contrast(dataset[draw, 0]) for draw in range(150)]
    assert min(seen) > 0.001 * 50


def test_noise_that_bfloat16_does_not_see_is_no_contrast() -> None:
    """A thousandth of the scan's standard deviation around one value."""
    voxels = np.full((1, 24, 80, 60), 100.0, dtype=np.float32)
    voxels[0, :, :40] += np.random.default_rng(0).normal(0, 50, (24, 40, 60)).astype(np.float32)
    voxels[0, :, 40:] += np.random.default_rng(1).normal(0, 0.05, (24, 40, 60)).astype(np.float32)
    dataset = ViewPairDataset([Scan(voxels, mean=(100.0,), std=(50.0,))], ViewSettings(VIEW), seed=3)
    assert min(contrast(dataset[draw, 0]) for draw in range(60)) > 0.005 * 50


def box_of(scan: Scan, start: Sequence[float], end: Sequence[float]) -> np.ndarray:
    return scan.voxels[0][tuple(slice(int(np.floor(a)), int(np.ceil(b))) for a, b in zip(start, end, strict=True))]


def test_thin_scans_are_looked_at_to_their_ends() -> None:
    """The voxels around a view are left out, but at the end of the scan there are none."""
    voxels = np.zeros((1, 3, 40, 30), dtype=np.int16)
    voxels[0, 0] = np.arange(30)
    dataset = ViewPairDataset([Scan(voxels, (0.0,), (1.0,))], ViewSettings((3, 24, 16), scale=(1, 1)), seed=0)
    assert dataset[0, 0]["index"].tolist() == [0, 0]


@pytest.mark.parametrize("channels", ["each", "joint"])
def test_the_next_scan_is_shown_for_one_of_one_value(channels: Any, caplog: pytest.LogCaptureFixture) -> None:
    full, dull = replace(pool("int16")[0], voxels=pool("int16")[0].voxels[:1]), dull_scan(*[slice(0, 1)] * 3)
    dataset = ViewPairDataset([full, dull, dull], ViewSettings(VIEW, channels=channels), seed=1)
    for draw in range(3):
        sample = dataset[draw, 1]
        assert sample["index"][0] == 0
        assert (sample["mean"] == full.mean[0]).all()
    assert dataset[0, 0]["index"][0] == 0
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once of each scan"
    assert all("is nearly constant" in line and "-exclude" in line for line in told)
    assert "scan 1" in told[0]
    assert "scan 2" in told[1]
    with pytest.raises(DataError, match="every pair drawn from the pool had a nearly constant view"):
        ViewPairDataset([dull], ViewSettings(VIEW), seed=1)[0, 0]


def test_one_channel_that_shows_something_is_enough() -> None:
    voxels = pool("int16")[0].voxels.copy()
    voxels[1] = 7
    scan = replace(pool("int16")[0], voxels=voxels)
    joint, each = (ViewPairDataset([scan], ViewSettings(VIEW, channels=how), seed=1) for how in ("joint", "each"))
    assert np.array_equal(joint[0, 0]["starts"], ViewPairDataset(pool("int16"), joint.settings, seed=1)[0, 0]["starts"])
    assert {int(each[draw, 0]["index"][1]) for draw in range(8)} == {0}
