"""Draws an anatomy: every random number of a phantom, before any voxel.

Means are those of adults, in the frame of ``anatomy``; the spreads are wide enough that no two phantoms look alike and
narrow enough that the organs stay in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from pretraining.demo.anatomy import Anatomy, Contrast, Hollow, Organs, Scan, Torso
from pretraining.demo.shapes import Ellipsoid, Tube, Vector, Warp

# Typical HU without contrast, and in the arterial, the portal venous and the delayed phase.
_PHASE_HU = {
    "liver": (57, 72, 112, 92),
    "spleen": (48, 118, 122, 98),
    "kidney_cortex": (33, 175, 185, 150),
    "kidney_medulla": (31, 75, 160, 155),
    "aorta": (42, 300, 160, 112),
    "veins": (40, 85, 165, 110),
    "heart": (42, 230, 150, 108),
    "pancreas": (42, 98, 92, 72),
    "muscle": (52, 56, 64, 62),
}


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw all parameters of one phantom; rendering them needs no further randomness."""
    return Anatomy(
        torso=_draw_torso(rng),
        organs=_draw_organs(rng),
        contrast=_draw_contrast(rng),
        scan=_draw_scan(rng),
        body_warp=Warp.draw(rng, amplitude=4, wavelength=260),
        organ_warp=Warp.draw(rng, amplitude=3.5, wavelength=90),
    )


def _near(rng: np.random.Generator, mean: float, deviation: float) -> float:
    """A normal number cut off at two standard deviations, so that no phantom falls apart."""
    return mean + deviation * float(np.clip(rng.normal(), -2, 2))


def _vary(rng: np.random.Generator, values: Vector, deviation: float) -> Vector:
    z, y, x = (_near(rng, value, deviation) for value in values)
    return z, y, x


def _resize(rng: np.random.Generator, radii: Vector, deviation: float) -> Vector:
    """Radii scaled together by ``deviation`` and each alone by half of it, both relative."""
    size = _near(rng, 1, deviation)
    z, y, x = (radius * size * _near(rng, 1, deviation / 2) for radius in radii)
    return z, y, x


def _blob(rng: np.random.Generator, centre: Vector, radii: Vector, degrees: Vector = (0.0, 0.0, 0.0)) -> Ellipsoid:
    return Ellipsoid(_vary(rng, centre, 4), _resize(rng, radii, 0.1), _vary(rng, degrees, 5))


def _draw_contrast(rng: np.random.Generator) -> Contrast:
    """One time between 0 (no contrast) and 3 (delayed phase) sets all tissues; each then differs a little."""
    time = rng.uniform(0, 3)
    hu = {name: float(np.interp(time, range(4), values)) for name, values in _PHASE_HU.items()}
    return Contrast(**{field.name: hu[field.name] * _near(rng, 1, 0.04) for field in fields(Contrast)})


def _draw_torso(rng: np.random.Generator) -> Torso:
    size = _near(rng, 1, 0.05)
    return Torso(
        half_width=162 * size * _near(rng, 1, 0.025),
        half_depth=112 * size * _near(rng, 1, 0.04),
        waist=_near(rng, 0.05, 0.02),
        fat=rng.uniform(8, 22),
        muscle=_near(rng, 11, 1),
        rib_pitch=_near(rng, 30, 2),
        rib_phase=rng.uniform(0, 1),
        dome=_near(rng, 52, 8),
        bend=_near(rng, 6, 2),
        vertebra_pitch=_near(rng, 35, 2),
        vertebra_phase=rng.uniform(0, 1),
        marrow=_near(rng, 170, 30),
        table=bool(rng.random() < 0.5),
    )


def _draw_tree(
    rng: np.random.Generator, root: Vector, tips: Sequence[Vector], spread: float, radius: float
) -> tuple[Tube, ...]:
    """Vessels from ``root`` to near each of the ``tips``, which fork in two about half-way."""
    tubes = []
    for tip in tips:
        middle = _vary(rng, tuple((np.asarray(root) * 0.5 + np.asarray(tip) * 0.5).tolist()), spread / 3)
        tubes.append(Tube((root, middle, _vary(rng, tip, spread / 2)), (radius, radius * 0.75, radius * 0.4)))
        tubes.append(Tube((middle, _vary(rng, tip, spread)), (radius * 0.6, radius * 0.35)))
    return tuple(tubes)


def _draw_liver_veins(rng: np.random.Generator) -> tuple[Tube, ...]:
    portal = _draw_tree(rng, (-22, 5, -38), [(-45, 15, -105), (-5, -15, -115), (20, 20, -100), (10, -50, -15)], 18, 8)
    hepatic = _draw_tree(rng, (38, 28, -20), [(15, 20, -115), (5, -45, -70), (18, -50, 20)], 14, 7)
    return portal + hepatic


def _draw_lung_vessels(rng: np.random.Generator) -> tuple[Tube, ...]:
    tubes: tuple[Tube, ...] = ()
    for side in (-1, 1):
        tips = [
            (z, y, side * x) for z in (30, 60, 90, 115, 140) for y, x in ((-60, 80), (-35, 115), (5, 125), (45, 105))
        ]
        tubes += _draw_tree(rng, (88, 10, side * 40), tips, 22, 5.5)
    return tubes


def _draw_hollow(rng: np.random.Generator, centre: Vector, radii: Vector, degrees: Vector = (0, 0, 0)) -> Hollow:
    """Fluid, stool or oral contrast, and sometimes gas in front of it (the patient lies on the back)."""
    content = float(rng.choice([rng.uniform(5, 35), rng.uniform(-40, 60), rng.uniform(120, 300)], p=[0.5, 0.35, 0.15]))
    gas = float(rng.uniform(0.15, 0.6)) if rng.random() < 0.4 else 0.0
    return Hollow(_blob(rng, centre, radii, degrees), content, gas)


def _draw_bowel(rng: np.random.Generator) -> tuple[Hollow, ...]:
    colon = [_draw_hollow(rng, (z, 5, x), (30, 21, 20)) for x in (-112, 112) for z in (-150, -115, -80)]
    transverse = [_draw_hollow(rng, (-62 - abs(x) / 8, -62, x), (18, 20, 28)) for x in (-70, -25, 25, 70)]
    loops = [
        _draw_hollow(rng, (z, y, x), (13, 15, 24), (float(rng.uniform(-90, 90)), 0, float(rng.uniform(-40, 40))))
        for z in (-155, -128, -100, -75)
        for y, x in ((-52, -50), (-48, 5), (-50, 55), (-15, -62), (-18, 65), (-12, 10))
    ]
    return tuple(colon + transverse + loops)


def _draw_organs(rng: np.random.Generator) -> Organs:
    aorta_radius = _near(rng, 11.5, 1.2)
    aorta_path = ((200, 38, 26), (60, 34, 20), (-10, 26, 12), (-120, 18, 8), (-220, 20, 6))
    cava_path = ((40, 20, -22), (-10, 22, -24), (-120, 20, -20), (-220, 22, -18))
    return Organs(
        liver=(
            _blob(rng, (-12, 2, -88), (78, 84, 66), (0, 12, 0)),
            _blob(rng, (10, -48, -8), (34, 38, 78), (12, -10, 0)),
        ),
        liver_veins=_draw_liver_veins(rng),
        gallbladder=_blob(rng, (-52, -40, -52), (20, 22, 13), (0, 0, 20)),
        spleen=_blob(rng, (-14, 38, 92), (54, 46, 30), (28, -10, 0)),
        right_kidney=_blob(rng, (-70, 42, -62), (54, 29, 26), (-25, -8, 8)),
        left_kidney=_blob(rng, (-60, 42, 62), (55, 29, 26), (25, 8, 8)),
        heart=_blob(rng, (88, -34, 18), (48, 46, 56), (25, -25, 0)),
        stomach=_draw_hollow(rng, (0, -28, 70), (45, 40, 36), (-20, 20, 0)),
        bowel=_draw_bowel(rng),
        pancreas=Tube(
            tuple(_vary(rng, point, 4) for point in ((-52, -18, -28), (-36, -28, 8), (-25, -2, 52), (-12, 18, 82))),
            (13, 10, 9, 7),
        ),
        aorta=Tube(
            tuple(_vary(rng, point, 2) for point in aorta_path),
            tuple(aorta_radius * s for s in (1.1, 1.08, 1, 0.85, 0.8)),
        ),
        vena_cava=Tube(tuple(_vary(rng, point, 2) for point in cava_path), (13, 13, 11.5, 10.5)),
        lung_vessels=_draw_lung_vessels(rng),
    )


def _draw_scan(rng: np.random.Generator) -> Scan:
    return Scan(
        degrees=_vary(rng, (0, 0, 0), 3),
        shift=_vary(rng, (0, 0, 0), 6),
        blur=rng.uniform(0.6, 1.3),
        slice_overlap=rng.uniform(1.0, 1.35),
        noise=rng.uniform(6, 18),
        grain=rng.uniform(0.35, 0.7),
        noise_seed=int(rng.integers(2**31)),
    )
