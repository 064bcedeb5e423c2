"""The layers of the body wall and the rooms above and below the diaphragm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretraining.demo.anatomy import Torso
from pretraining.demo.shapes import FloatArray, smooth_union


class TorsoWall:
    """Depths of the layers of the body at all points of a canvas; lungs and abdominal organs fit into them.

    Attributes:
        skin: Depth below the skin.
        muscle: Depth below the outer side of the muscles.
        cavity: Depth below the inner side of the muscles.
        thorax: Depth in the room above the diaphragm.
    """

    def __init__(self, torso: Torso, points: FloatArray) -> None:
        """Compute the depths, all in mm, at points of shape (3, n)."""
        self.skin = self._skin_depth(torso, points)
        fat_share = 1 - 0.35 / (1 + np.exp(-(points[0] - 30) / 15))  # thinner at the chest
        self.muscle = self.skin - fat_share * np.float32(torso.fat)
        self.cavity = self.muscle - np.float32(torso.muscle)
        self.thorax = self._thorax_depth(torso, points)

    def abdomen(self, region: NDArray[np.intp]) -> FloatArray:
        """Depth in the room below the diaphragm at the points with the flat indices ``region``."""
        depth: FloatArray = np.minimum(self.cavity[region], -self.thorax[region])
        return depth

    @staticmethod
    def _skin_depth(torso: Torso, points: FloatArray) -> FloatArray:
        """Depth below a superellipse that narrows at the waist."""
        z, y, x = points
        waist = 1 - np.float32(torso.waist) * np.exp(-(((z + 70) / 55) ** 2))
        power = 2.5
        y_share, x_share = np.abs(y) / (torso.half_depth * waist), np.abs(x) / (torso.half_width * waist)
        radius = (y_share**power + x_share**power) ** (1 / power) + 1e-6
        y_slope = (y_share / radius) ** (power - 1) / (torso.half_depth * waist)
        x_slope = (x_share / radius) ** (power - 1) / (torso.half_width * waist)
        depth: FloatArray = ((1 - radius) / (np.hypot(y_slope, x_slope) + 1e-6)).astype(np.float32)
        return depth

    @staticmethod
    def _thorax_depth(torso: Torso, points: FloatArray) -> FloatArray:
        """Height above two domes, the left one lower, over the length of the slope."""
        z, y, x = points
        domes = []
        for side, dome in ((-1, torso.dome), (1, torso.dome - 10)):
            y_share, x_share = (y + 12) / 105, (x - side * 72) / 98
            height = dome - 78 * (y_share**2 + x_share**2)
            slope = 156 * np.hypot(y_share / 105, x_share / 98)
            domes.append((height - z) / np.sqrt(1 + slope**2))
        return (-smooth_union(domes[0], domes[1], 20)).astype(np.float32)
