"""CT phantoms of the torso with exact labels: the data of the demo and of the tests.

The anatomy is defined in mm, so any grid samples the same body. It is drawn first (``draw_anatomy``) and rendered
second; the same seed gives the same body on every grid, and the same voxels on the same grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pretraining.demo.anatomy import Anatomy, Scan
from pretraining.demo.canvas import Canvas, body_points
from pretraining.demo.drawing import draw_anatomy
from pretraining.demo.organs import LABELS, TorsoPainter
from pretraining.demo.shapes import FloatArray, Vector

__all__ = ["DEFAULT_SHAPE", "DEFAULT_SPACING", "LABELS", "Phantom", "make_phantom"]

DEFAULT_SHAPE = (28, 46, 58)
DEFAULT_SPACING = (10.0, 6.5, 6.5)

_TEXTURE_MM = 4.0  # correlation length of the tissues' own unevenness
_MIN_HU, _MAX_HU = -1024, 3071


@dataclass(frozen=True)
class Phantom:
    """A scan of the torso, upright in the array as nnU-Net reads a CT in LPS orientation.

    Attributes:
        image: HU, int16, (z, y, x): z towards the head, y towards the back, x towards the patient's left.
        labels: uint8, (z, y, x); see ``LABELS``, 0 elsewhere.
        spacing: (z, y, x) in mm.
    """

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: Vector


def make_phantom(seed: int, shape: tuple[int, int, int] = DEFAULT_SHAPE, spacing: Vector = DEFAULT_SPACING) -> Phantom:
    """A random torso on a grid whose centre lies below the domes of the diaphragm.

    Args:
        seed: Sets body, pose, contrast phase, noise.
        shape: Voxels (z, y, x); what lies outside the grid is not seen.
        spacing: In mm.

    Raises:
        ValueError: A length is not positive.
    """
    if min(shape) < 1 or min(spacing) <= 0:
        raise ValueError(f"a phantom needs positive lengths, got shape {shape} and spacing {spacing}")
    return _render(draw_anatomy(np.random.default_rng(seed)), shape, spacing)


def _render(anatomy: Anatomy, shape: tuple[int, int, int], spacing: Vector) -> Phantom:
    scan = anatomy.scan
    rng = np.random.default_rng(scan.noise_seed)
    points = body_points(shape, spacing, scan.degrees, scan.shift)
    canvas = Canvas(points, spacing, anatomy.body_warp, anatomy.organ_warp)
    texture = _smooth_noise(rng, shape, tuple(_TEXTURE_MM / mm for mm in spacing))
    TorsoPainter(anatomy, canvas, texture.ravel()).paint()
    image = _scan(canvas.image.reshape(shape), scan, spacing, rng)
    hu = np.clip(np.rint(image), _MIN_HU, _MAX_HU).astype(np.int16)
    return Phantom(hu, canvas.labels.reshape(shape), spacing)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: tuple[float, ...]) -> FloatArray:
    """Gaussian noise of unit variance, smoothed with ``sigma`` voxels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return noise / np.float32(noise.std() + 1e-6)


def _scan(image: FloatArray, scan: Scan, spacing: Vector, rng: np.random.Generator) -> FloatArray:
    """Blur by the kernel and by the part of the slice thickness that reaches into the neighbours; add noise."""
    z_sigma = 0.29 * np.sqrt(scan.slice_overlap**2 - 1)  # of a box of that width, less the voxel's own
    blurred: FloatArray = gaussian_filter(image, (z_sigma, scan.blur / spacing[1], scan.blur / spacing[2]))
    noise = _smooth_noise(rng, image.shape, (0.2, scan.grain, scan.grain))
    return blurred + np.float32(scan.noise) * noise
