"""CT phantoms of the torso with exact labels: the data of the demo, of tests and of benchmarks.

A torso is built from ellipsoids in mm, so any grid samples the same body. The same seed gives the same body on every
grid, and the same voxels on the same grid.

The frame is fixed to the body: z upwards with 0 below the domes of the diaphragm, y towards the back, x towards the
patient's left, the origin in the middle of the torso. Points are arrays (3, z, y, x) that hold (z, y, x) in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pretraining.demo.ellipsoids import Ellipsoid, FloatArray, Vector, rotation_matrix

LABELS = {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "aorta": 5, "spine": 6, "lungs": 7}
DEFAULT_SHAPE = (28, 46, 58)
DEFAULT_SPACING = (10.0, 6.5, 6.5)

_AIR_HU, _FAT_HU, _LUNG_HU, _GAS_HU, _BONE_HU = -1000.0, -103.0, -840.0, -950.0, 300.0
_MIN_HU, _MAX_HU = -1024, 3071
_LONG = 900.0  # mm; makes a cylinder of an ellipsoid
# Typical HU without contrast agent, and in the arterial, the portal venous and the delayed phase.
_PHASES_HU = {
    "muscle": (52, 56, 64, 62),
    "liver": (57, 72, 112, 92),
    "spleen": (48, 118, 122, 98),
    "cortex": (33, 175, 185, 150),
    "medulla": (31, 75, 160, 155),
    "aorta": (42, 300, 160, 112),
    "veins": (40, 85, 165, 110),
    "heart": (42, 230, 150, 108),
}


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
    # The body has a generator to itself: the number of voxels must not change what is drawn for it.
    body, voxels = (np.random.default_rng(key) for key in np.random.SeedSequence(seed).spawn(2))
    scan = _Scan(body, voxels, shape, spacing)
    _paint_torso(_Patient(body), scan)
    return Phantom(scan.image(body.uniform(6, 18), voxels), scan.labels, spacing)


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: Sequence[float]) -> FloatArray:
    """Gaussian noise of unit variance, smoothed with ``sigma`` voxels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return noise / np.float32(noise.std() + 1e-6)


class _Patient:
    """Draws what differs between two bodies; the spreads keep the organs in their places."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        phase = rng.uniform(0, 3)  # one time after the injection sets all tissues
        self.hu = {name: float(np.interp(phase, range(4), hu) * self.near(1, 0.04)) for name, hu in _PHASES_HU.items()}

    def near(self, mean: float, deviation: float) -> float:
        """A normal number, cut off at two standard deviations."""
        return mean + deviation * float(np.clip(self.rng.normal(), -2, 2))

    def organ(self, centre: Vector, radii: Vector, degrees: Vector = (0.0, 0.0, 0.0)) -> Ellipsoid:
        """An ellipsoid near the one that is given."""
        size = self.near(1, 0.1)
        return Ellipsoid(
            [self.near(value, 4) for value in centre],
            [value * size * self.near(1, 0.05) for value in radii],
            [self.near(value, 5) for value in degrees],
        )

    def vessels(self, n: int, low: Vector, high: Vector) -> list[Ellipsoid]:
        """Thin ellipsoids in any direction, their centres in a box."""
        rng = self.rng
        radii = rng.uniform((20, 3, 3), (45, 5.5, 5.5), size=(n, 3))
        return [
            Ellipsoid(rng.uniform(low, high).tolist(), radii[i].tolist(), rng.uniform(-90, 90, size=3).tolist())
            for i in range(n)
        ]


class _Scan:
    """Image and labels that are painted over one structure after the other.

    A later structure hides an earlier one in the image and in the labels alike, so the labels are exact: a voxel has
    the label of the last structure with a label that fills at least half of it.
    """

    def __init__(
        self, body: np.random.Generator, voxels: np.random.Generator, shape: tuple[int, int, int], spacing: Vector
    ) -> None:
        """Start from air; the patient lies a little askew, and a smooth warp bends everything."""
        axes = [(np.arange(n) + 0.5 - n / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        points -= body.uniform(-10, 10, size=(3, 1, 1, 1)).astype(np.float32)
        points = np.tensordot(rotation_matrix(body.uniform(-5, 5, size=3).tolist()).T, points, axes=1)
        waves = body.normal(size=(3, 4, 3)) * 2 * np.pi / 250  # per mm; four sine waves for each axis
        for axis, phases in enumerate(body.uniform(0, 2 * np.pi, size=(3, 4))):
            for wave, phase in zip(waves[axis].astype(np.float32), phases, strict=True):
                points[axis] += np.float32(3) * np.sin(np.tensordot(wave, points, axes=1) + np.float32(phase))
        self.points = points
        self.spacing = spacing
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.texture = _noise(voxels, shape, [4.0 / mm for mm in spacing])  # the unevenness of tissues
        self._hu = np.full(shape, _AIR_HU, dtype=np.float32)

    def depth(self, *parts: Ellipsoid) -> FloatArray:
        """Depth in the union of ellipsoids."""
        return np.maximum.reduce([part.depth(self.points) for part in parts])

    def paint(
        self, depth: FloatArray, hu: float | FloatArray, unevenness: float = 0.0, label: int | None = None
    ) -> None:
        """Cover the inside of a structure, with partial volume at its surface; without a label, labels stay."""
        weight = np.clip(depth / np.float32(np.mean(self.spacing)) + np.float32(0.5), 0, 1)
        self._hu += weight * (hu + np.float32(unevenness) * self.texture - self._hu)
        if label is not None:
            self.labels[weight >= 0.5] = label

    def image(self, noise_hu: float, rng: np.random.Generator) -> NDArray[np.int16]:
        """What the scanner makes of it: blurred by its kernel, with noise."""
        image = gaussian_filter(self._hu, [0.15, *(0.9 / mm for mm in self.spacing[1:])])
        image += np.float32(noise_hu) * _noise(rng, image.shape, (0.2, 0.5, 0.5))
        return np.clip(np.rint(image), _MIN_HU, _MAX_HU).astype(np.int16)


def _paint_torso(patient: _Patient, scan: _Scan) -> None:
    """Paint the wall of the body and then its organs, those that lie on top of others later."""
    rng, hu = patient.rng, patient.hu
    skin = scan.depth(Ellipsoid((0, 0, 0), (_LONG, patient.near(114, 6), patient.near(164, 8)), power=2.6))
    muscle = skin - np.float32(rng.uniform(6, 18))
    cavity = muscle - np.float32(10)
    scan.paint(skin, _FAT_HU, 5)
    scan.paint(muscle, hu["muscle"], 12)
    scan.paint(cavity, _FAT_HU, 14)
    z, y, x = scan.points
    pitch = np.float32(patient.near(30, 2))
    share = ((z - 0.55 * y) / pitch + np.float32(rng.uniform())) % 1 - 0.5  # ribs fall towards the front
    cage = np.minimum(4.5 - np.abs(cavity + 5), z + 72 - 1.1 * np.maximum(-y, 0))
    ribs = np.minimum(6 - pitch * np.abs(share), np.minimum(cage, np.abs(x) - 22))
    sternum = np.minimum(np.minimum(cage, 17 - np.abs(x)), -y)
    scan.paint(np.maximum(ribs, sternum), 360, 60)
    _paint_chest(patient, scan, cavity)
    _paint_bowel(patient, scan, cavity)
    for side in (-1, 1):  # of the back, and the psoas
        along_spine = (Ellipsoid((0, 72, side * 33), (_LONG, 19, 28)), Ellipsoid((-190, 44, side * 42), (145, 22, 21)))
        scan.paint(np.minimum(scan.depth(*along_spine), muscle), hu["muscle"], 14, 0)
    _paint_liver_and_spleen(patient, scan, cavity)
    _paint_kidneys(patient, scan)
    scan.paint(scan.depth(Ellipsoid((0, 22, -22), (_LONG, 13, 13))), hu["veins"], label=0)
    radius = patient.near(12, 1.2)
    aorta = Ellipsoid((0, 28, 13), (_LONG, radius, radius), (0, -2.5, 2.5))
    scan.paint(scan.depth(aorta), hu["aorta"], label=LABELS["aorta"])
    _paint_spine(patient, scan)


def _paint_chest(patient: _Patient, scan: _Scan, cavity: FloatArray) -> None:
    lungs = np.minimum(scan.depth(*(patient.organ((132, 0, side * 82), (98, 105, 72)) for side in (-1, 1))), cavity - 1)
    scan.paint(lungs, _LUNG_HU, 28, LABELS["lungs"])
    vessels = [v for x in (-80, 80) for v in patient.vessels(16, (50, -50, x - 40), (140, 50, x + 40))]
    scan.paint(np.minimum(scan.depth(*vessels), lungs), patient.hu["heart"])
    heart = np.minimum(scan.depth(patient.organ((92, -30, 18), (48, 46, 54), (25, 25, 0))), cavity)
    scan.paint(heart, patient.hu["heart"], label=0)


def _paint_bowel(patient: _Patient, scan: _Scan, cavity: FloatArray) -> None:
    """Stomach, colon and small bowel: a wall around fluid or contrast agent, some with gas in front of it."""
    rng = patient.rng
    hollow = [patient.organ((0, -28, 70), (45, 40, 36), (-20, -20, 0))]
    hollow += [patient.organ((z, 5, x), (28, 21, 20)) for x in (-110, 110) for z in (-150, -112, -75)]
    loops = [(z, y, x) for z in (-145, -110, -75) for y in (-55, -20) for x in (-60, 0, 60)]
    hollow += [patient.organ(centre, (15, 16, 24), (90 * rng.uniform(), 0, 0)) for centre in loops]
    for part in hollow:
        depth = np.minimum(scan.depth(part), cavity - 4)
        scan.paint(depth, 55, label=0)
        scan.paint(depth - 3, rng.uniform(0, 40) if rng.random() < 0.8 else rng.uniform(120, 300), 15)
        if rng.random() < 0.3:
            scan.paint(np.minimum(depth - 3, np.float32(part.centre[1] - 5) - scan.points[1]), _GAS_HU)


def _paint_liver_and_spleen(patient: _Patient, scan: _Scan, cavity: FloatArray) -> None:
    right_lobe = patient.organ((-14, 0, -86), (76, 84, 66), (0, -12, 0))
    left_lobe = patient.organ((10, -46, -10), (34, 38, 74), (12, 10, 0))
    liver = np.minimum(scan.depth(right_lobe, left_lobe), cavity - 3)
    scan.paint(liver, patient.hu["liver"], 5, LABELS["liver"])
    veins = scan.depth(*patient.vessels(8, (-60, -50, -130), (40, 50, -20)))
    scan.paint(np.minimum(veins, liver - 3), patient.hu["veins"])
    spleen = np.minimum(scan.depth(patient.organ((-14, 36, 92), (54, 46, 30), (28, 10, 0))), cavity - 3)
    scan.paint(spleen, patient.hu["spleen"], 6, LABELS["spleen"])


def _paint_kidneys(patient: _Patient, scan: _Scan) -> None:
    """Cortex and medulla in a capsule of fat, which also fills the sinus on the side of the spine."""
    for name, side in (("right_kidney", -1), ("left_kidney", 1)):
        kidney = patient.organ((-66, 42, side * 62), (54, 29, 26), (side * 25, -side * 8, 8))
        z, y, x = kidney.centre
        sinus = scan.depth(Ellipsoid((z, y - 7, x - side * 20), (19, 12, 16)))
        depth = scan.depth(kidney)
        scan.paint(depth + 7, _FAT_HU, 8, 0)
        scan.paint(np.minimum(depth, -sinus), patient.hu["cortex"], 6, LABELS[name])
        scan.paint(np.minimum(depth - 8, -sinus - 4), patient.hu["medulla"])


def _paint_spine(patient: _Patient, scan: _Scan) -> None:
    """Vertebrae and discs at equal distances; the spinal canal has no label."""
    pitch = patient.near(35, 2)
    share = (scan.points[0] / np.float32(pitch) + np.float32(patient.rng.uniform())) % 1 - np.float32(0.5)
    end_plates = pitch / 2 - 4.5 - pitch * np.abs(share)
    arches = scan.depth(Ellipsoid((0, 81, 0), (_LONG, 14, 20)), Ellipsoid((0, 97, 0), (_LONG, 16, 6)))
    scan.paint(np.minimum(arches, end_plates), _BONE_HU, 60, LABELS["spine"])
    column = scan.depth(Ellipsoid((0, 55, 0), (_LONG, 17, 23)))
    scan.paint(column, 85, 10, LABELS["spine"])
    vertebrae = np.minimum(column, end_plates)
    scan.paint(vertebrae, 480)
    scan.paint(vertebrae - 3, patient.near(170, 30), 22)
    scan.paint(scan.depth(Ellipsoid((0, 80, 0), (_LONG, 8.5, 10.5))), 25, label=0)
