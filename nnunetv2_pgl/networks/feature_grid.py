"""Where the cells of a feature map lie in the view they were computed from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureGrid:
    """Places of feature cells, per axis (z, y, x).

    Cell ``i`` is centred at ``offset + stride * i`` voxels of the view, with voxel edges at the integers: the centre of
    the first voxel is 0.5. Average pooling has ``offset = stride / 2``; a chain of strided convolutions with symmetric
    padding has ``offset = 0.5``.

    Attributes:
        view_size: Size of the view in voxels.
        stride: Distance between neighbouring cells in voxels.
        offset: Place of cell 0 in voxels.
    """

    view_size: tuple[int, int, int]
    stride: tuple[float, float, float]
    offset: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("view_size", "stride", "offset"):
            values = getattr(self, name)
            if len(values) != 3:
                raise ValueError(f"{name} needs three values (z, y, x), got {values}")
        if min(self.view_size) < 1 or min(self.stride) <= 0:
            raise ValueError(f"view_size and stride must be positive, got {self.view_size} and {self.stride}")
