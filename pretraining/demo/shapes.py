"""Smooth shapes in millimetres, described by how deep a point lies inside them.

Points are arrays of shape (3, ...) that hold (z, y, x) in mm. A depth is the signed distance to the surface in mm,
positive inside, to first order near the surface. So an intersection is a minimum and a union is a maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Vector = tuple[float, float, float]

_TINY = np.float32(1e-6)


def rotation_matrix(degrees: Vector) -> FloatArray:
    """Rotation about the z, then the y, then the x axis.

    Args:
        degrees: The three angles, in the order (z, y, x).

    Returns:
        A matrix of shape (3, 3) that acts on (z, y, x) columns.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix.astype(np.float32)


def _column(values: Vector, ndim: int) -> FloatArray:
    """The three values as an array that broadcasts against points with ``ndim`` dimensions."""
    return np.asarray(values, dtype=np.float32).reshape((3,) + (1,) * (ndim - 1))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid; with one very long radius, a cylinder.

    Attributes:
        centre: (z, y, x) in mm.
        radii: Half axes (z, y, x) in mm, before the rotation.
        degrees: Rotation about z, y and x.
    """

    centre: Vector
    radii: Vector
    degrees: Vector = (0.0, 0.0, 0.0)

    @property
    def reach(self) -> Vector:
        """Half the edges (z, y, x) in mm of the axis-parallel box around the ellipsoid."""
        z, y, x = np.sqrt(((rotation_matrix(self.degrees) * np.asarray(self.radii)) ** 2).sum(axis=1))
        return float(z), float(y), float(x)

    def depth(self, points: FloatArray) -> FloatArray:
        """Signed distance to the surface, positive inside: (3, ...) points in mm -> (...) mm."""
        local = points - _column(self.centre, points.ndim)
        if any(self.degrees):
            local = np.tensordot(rotation_matrix(self.degrees).T, local, axes=1)
        radii = _column(self.radii, points.ndim)
        local /= radii
        radius = np.sqrt((local**2).sum(axis=0)) + _TINY
        slope = np.sqrt(((local / radii) ** 2).sum(axis=0)) + _TINY
        return (1 - radius) * radius / slope


@dataclass(frozen=True)
class Tube:
    """A bent tube: straight pieces of changing radius with round ends.

    Attributes:
        path: Two or more points (z, y, x) in mm.
        radii: The radius in mm at each of them.
    """

    path: tuple[Vector, ...]
    radii: tuple[float, ...]

    def depth(self, points: FloatArray) -> FloatArray:
        """Signed distance to the surface, positive inside: (3, ...) points in mm -> (...) mm."""
        result = np.full(points.shape[1:], -np.inf, dtype=np.float32)
        path = [_column(point, points.ndim) for point in self.path]
        for start, end, radius, end_radius in zip(path, path[1:], self.radii, self.radii[1:], strict=False):
            axis = end - start
            along = ((points - start) * axis).sum(axis=0) / ((axis**2).sum() + _TINY)
            along = np.clip(along, 0, 1)
            distance = np.sqrt(((points - start - along * axis) ** 2).sum(axis=0))
            np.maximum(result, radius + along * (end_radius - radius) - distance, out=result)
        return result


@dataclass(frozen=True)
class Warp:
    """A smooth displacement: a few sine waves along each axis.

    Attributes:
        waves: Shape (3, n, 3); the wave vectors, in radians per mm, of the n waves that move points along each axis.
        phases: Shape (3, n); in radians.
        amplitude: Standard deviation of the displacement along each axis, in mm.
    """

    waves: FloatArray
    phases: FloatArray
    amplitude: float

    @classmethod
    def draw(cls, rng: np.random.Generator, amplitude: float, wavelength: float, n_waves: int = 4) -> Warp:
        """Draw a warp whose wavelengths, in mm, lie within a factor of 1.5 of ``wavelength``."""
        directions = rng.normal(size=(3, n_waves, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        lengths = wavelength * np.exp(rng.uniform(-np.log(1.5), np.log(1.5), size=(3, n_waves, 1)))
        phases = rng.uniform(0, 2 * np.pi, size=(3, n_waves))
        return cls((2 * np.pi * directions / lengths).astype(np.float32), phases.astype(np.float32), amplitude)

    def __call__(self, points: FloatArray) -> FloatArray:
        """Displace points: (3, ...) mm -> (3, ...) mm."""
        moved = points.copy()
        scale = np.float32(self.amplitude * np.sqrt(2 / self.waves.shape[1]))
        for axis in range(3):
            for wave, phase in zip(self.waves[axis], self.phases[axis], strict=True):
                moved[axis] += scale * np.sin(np.tensordot(wave, points, axes=1) + phase)
        return moved


def smooth_union(first: FloatArray, second: FloatArray, blend: float) -> FloatArray:
    """The union of two depths with the crease between them filled over about ``blend`` mm."""
    overlap = np.clip(blend - np.abs(first - second), 0, None) / np.float32(blend)
    return np.maximum(first, second) + overlap**2 * np.float32(blend / 4)
