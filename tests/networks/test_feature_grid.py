from __future__ import annotations

import pytest

from nnunetv2_pgl.networks import FeatureGrid


def test_feature_grid_checks_its_values() -> None:
    with pytest.raises(ValueError, match="positive"):
        FeatureGrid((16, 96, 96), (8, 0, 16), (4, 8, 8))
    for view_size, stride in (((0, 96, 96), (8, 16, 16)), ((16, 96, 96), (-1, 16, 16))):
        with pytest.raises(ValueError, match="positive"):
            FeatureGrid(view_size, stride, (4, 8, 8))
    assert FeatureGrid((1, 96, 96), (0.5, 1, 16), (0, 0, 0)).stride == (0.5, 1, 16)
    with pytest.raises(ValueError, match="stride needs three values"):
        FeatureGrid((16, 96, 96), (8, 16), (4, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="offset needs three values"):
        FeatureGrid((16, 96, 96), (8, 16, 16), (4, 8, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="view_size needs three values"):
        FeatureGrid((16, 96), (8, 16, 16), (4, 8, 8))  # type: ignore[arg-type]
