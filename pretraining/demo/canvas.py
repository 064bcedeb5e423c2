"""A voxel grid that shapes are painted on, in HU and as labels, with partial volume at their surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretraining.demo.shapes import Ellipsoid, FloatArray, Vector, Warp, rotation_matrix

AIR_HU = -1000.0


def body_points(shape: tuple[int, int, int], spacing: Vector, degrees: Vector, shift: Vector) -> FloatArray:
    """Where the voxel centres of a scan lie in the frame of the body.

    Args:
        shape: Voxels (z, y, x).
        spacing: In mm.
        degrees: Rotation of the body about z, y and x.
        shift: Distance in mm of the body's origin from the centre of the field of view.

    Returns:
        Points in mm, shape (3, z, y, x).
    """
    centres = [(np.arange(n) + 0.5 - n / 2) * mm - move for n, mm, move in zip(shape, spacing, shift, strict=True)]
    points = np.stack(np.meshgrid(*centres, indexing="ij")).astype(np.float32)
    turned: FloatArray = np.tensordot(rotation_matrix(degrees).T, points, axes=1)
    return turned


class Canvas:
    """Image and labels that are painted over one structure after the other.

    A structure is painted on a region: the flat indices of some voxels. A later structure hides an earlier one in the
    image and in the labels alike, so that the labels are exact: a voxel has the label of the last labelled structure
    that fills at least half of it.

    Attributes:
        image: HU, flat.
        labels: Flat.
        points: Voxel centres in mm in the frame of the body, warped as the whole body is; shape (3, n).
        organ_points: The same with the finer warp of the organs.
    """

    def __init__(self, points: FloatArray, spacing: Vector, body_warp: Warp, organ_warp: Warp) -> None:
        """Start from air.

        Args:
            points: Voxel centres, shape (3, z, y, x).
            spacing: In mm.
            body_warp: Moves everything.
            organ_warp: Moves the organs on top of that.
        """
        self.shape = points.shape[1:]
        self.points = body_warp(points.reshape(3, -1))
        self.organ_points = organ_warp(self.points)
        self.image = np.full(self.points.shape[1], AIR_HU, dtype=np.float32)
        self.labels = np.zeros(self.points.shape[1], dtype=np.uint8)
        self.everywhere = np.arange(self.points.shape[1])
        self._edge = np.float32(np.mean(spacing))

    def near(self, shape: Ellipsoid, margin: float = 10.0) -> NDArray[np.intp]:
        """The region around an ellipsoid, in flat indices; it holds all points within ``margin`` mm of its box."""
        inside = np.ones(self.points.shape[1], dtype=bool)
        for axis in range(3):
            distance = np.abs(self.organ_points[axis] - np.float32(shape.centre[axis]))
            inside &= distance < shape.reach[axis] + margin
        return np.flatnonzero(inside)

    def paint(
        self, region: NDArray[np.intp], depth: FloatArray, hu: float | FloatArray, label: int | None = None
    ) -> None:
        """Cover the inside of a structure.

        Args:
            region: Flat indices, n of them.
            depth: Signed distance to the surface in mm, positive inside; n values.
            hu: One value or n values.
            label: The structure's label, 0 to erase the labels below it, None to leave them.
        """
        weight = np.clip(depth / self._edge + np.float32(0.5), 0, 1)
        before = self.image[region]
        self.image[region] = before + weight * (np.asarray(hu, dtype=np.float32) - before)
        if label is not None:
            self.labels[region[weight >= 0.5]] = label
