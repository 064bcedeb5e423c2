"""Ellipsoids, which the phantoms are made of: points are arrays (3, z, y, x) that hold (z, y, x) in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float32]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid; with one very long radius, a cylinder.

    Attributes:
        centre: (z, y, x) in mm.
        radii: Half axes (z, y, x) in mm, before the rotation.
        degrees: Rotation about z, then y, then x.
        power: 2; more makes it fuller, a superellipsoid.
    """

    centre: Sequence[float]
    radii: Sequence[float]
    degrees: Sequence[float] = (0.0, 0.0, 0.0)
    power: float = 2.0

    def depth(self, points: FloatArray) -> FloatArray:
        """Distance to the surface, positive inside, to first order near it: (3, ...) points in mm -> (...) mm."""
        column = (3,) + (1,) * (points.ndim - 1)
        local = points - np.reshape(self.centre, column).astype(np.float32)
        if any(self.degrees):
            local = np.tensordot(rotation_matrix(self.degrees).T, local, axes=1)
        radii = np.reshape(self.radii, column).astype(np.float32)
        local = np.abs(local / radii) + np.float32(1e-6)
        radius = (local**self.power).sum(axis=0) ** (1 / self.power)
        slope = np.sqrt((((local / radius) ** (self.power - 1) / radii) ** 2).sum(axis=0))
        depth: FloatArray = (1 - radius) / slope
        return depth


def rotation_matrix(degrees: Sequence[float]) -> FloatArray:
    """The matrix (3, 3) that turns (z, y, x) columns about the z, then the y, then the x axis."""
    # What scipy calls x, y and z are here the first, second and third axis.
    matrix: FloatArray = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().astype(np.float32)
    return matrix
