"""Our resampling in parts against nnU-Net's function on the whole scan."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_spacing

from pretraining.data.resampling import resampled, resampled_shape

Triple = tuple[float, float, float]


def joined(scan: np.ndarray, old: Triple, new: Triple, **options: tuple[float, float]) -> np.ndarray:
    """The blocks put together; each place is written once."""
    out = np.full(resampled_shape(scan.shape, old, new), np.nan, np.float32)
    for where, block in resampled(scan, old, new, **options):
        assert np.isnan(out[where]).all()
        out[where] = block
    return out


@pytest.mark.parametrize(
    ("shape", "old", "new"),
    [
        ((90, 40, 50), (1.0, 0.8, 0.8), (1.2, 1.0, 0.7)),  # several bands along z
        ((20, 110, 30), (1.0, 1.0, 1.0), (1.7, 0.6, 1.0)),  # along y, and x as it is
        ((20, 30, 110), (1.0, 1.0, 1.0), (1.0, 1.0, 2.9)),  # along x alone
        ((30, 64, 50), (5.0, 1.0, 1.0), (3.0, 0.8, 1.1)),  # thick slices in z
        ((40, 30, 50), (1.0, 5.0, 1.0), (1.5, 2.5, 1.5)),  # in y
        ((40, 30, 12), (1.0, 1.0, 1.0), (0.9, 1.0, 4.0)),  # become thick, in x
        ((12, 30, 20), (5.0, 1.0, 1.0), (2.0, 1.0, 1.0)),  # repeated slices, otherwise unchanged
        ((2, 3, 7), (1.0, 1.0, 1.0), (0.4, 2.0, 1.3)),  # shorter than any band
        ((12, 30, 20), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_values_are_nnunets(shape: tuple[int, int, int], old: Triple, new: Triple) -> None:
    rng = np.random.default_rng(0)
    scan = (rng.integers(-1024, 326, shape) + 0.4 * rng.random(shape)).astype(np.float32)
    reference = resample_data_or_seg_to_spacing(scan[None], old, new, order=3, order_z=0, force_separate_z=None)[0]
    values = joined(scan, old, new)
    assert values.shape == reference.shape
    # Both compute in float64 and round to float32, so they may differ by one of its steps, hardly anywhere.
    np.testing.assert_allclose(values, reference, rtol=2e-7, atol=1e-6)
    assert np.sum(values != reference) <= max(2, 1e-3 * values.size)


def test_overshoot_is_clipped_as_by_nnunet() -> None:
    """To the range of the scan; with thick slices to that of each slice."""
    scan = np.where(np.indices((36, 40, 44)).sum(0) % 8 < 4, -1000, 300).astype(np.float32)
    scan[::2] += 20
    for old, new in (((1.0, 1.0, 1.0), (0.7, 0.8, 0.9)), ((4.0, 1.0, 1.0), (4.0, 0.8, 0.9))):
        reference = resample_data_or_seg_to_spacing(scan[None], old, new, order=3, order_z=0, force_separate_z=None)[0]
        values = joined(scan, old, new)
        assert (values == scan.max()).any()
        np.testing.assert_array_equal(values, reference)


@pytest.mark.parametrize(("old", "new"), [((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (0.8, 1, 1.3)), ((4, 1, 1), (4, 2, 1))])
def test_limits_clip_before_resampling(old: Triple, new: Triple) -> None:
    scan = np.random.default_rng(0).normal(-300, 900, (20, 24, 28)).astype(np.float32)
    expected = joined(np.clip(scan, -1024, 325), old, new)
    np.testing.assert_array_equal(joined(scan, old, new, limits=(-1024, 325)), expected)
