from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import DataLoader

from pretraining.views import IntensityRanges, ViewPairBatch, ViewPairDataset, ViewSettings, apply_intensity

VIEW = (8, 24, 16)
NO_CHANGES = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)


@dataclass(frozen=True)
class Scan:
    """A scan in memory."""

    voxels: np.ndarray
    mean: tuple[float, ...] = (-200.0, 100.0)
    std: tuple[float, ...] = (300.0, 20.0)
    lateral_axis: int | None = None

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
    return vars(batch)


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


def test_three_probabilities_and_the_lateral_axis_go_together() -> None:
    scan = replace(pool("int16")[0], lateral_axis=1)
    settings = ViewSettings(VIEW, flip_probability=(1.0, 1.0, 0.0), no_flip="lateral")
    dataset = ViewPairDataset([scan], settings, seed=4)
    assert all(dataset[draw, 0]["flips"].tolist() == [[True, False, False]] * 2 for draw in range(20))
