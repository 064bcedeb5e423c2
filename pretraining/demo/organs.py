"""Paints an anatomy on a canvas, from the table up to the spine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pretraining.demo.anatomy import Anatomy, Contrast, Hollow
from pretraining.demo.canvas import Canvas
from pretraining.demo.shapes import Ellipsoid, FloatArray, Tube, smooth_union
from pretraining.demo.wall import TorsoWall

LABELS = {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "aorta": 5, "spine": 6, "lungs": 7}

_FAT_HU = -103.0
_LUNG_HU = -845.0
_GAS_HU = -950.0
_BONE_HU = 480.0
_LONG = 900.0  # mm; makes a cylinder of an ellipsoid


def _union(shapes: Iterable[Ellipsoid | Tube], points: FloatArray) -> FloatArray:
    depths = np.stack([shape.depth(points) for shape in shapes])
    union: FloatArray = depths.max(axis=0)
    return union


class TorsoPainter:
    """Paints one anatomy; each method paints one group of structures over those before it."""

    def __init__(self, anatomy: Anatomy, canvas: Canvas, texture: FloatArray) -> None:
        """Prepare.

        Args:
            anatomy: What to paint.
            canvas: Where to paint.
            texture: Smooth noise of unit variance, n values, for the tissues' own unevenness.
        """
        self._anatomy = anatomy
        self._canvas = canvas
        self._texture = texture
        self._wall = TorsoWall(anatomy.torso, canvas.points)

    def paint(self) -> None:
        """Paint everything."""
        self._paint_table()
        self._paint_wall()
        self._paint_chest()
        self._paint_bowel()
        self._paint_back_muscles()
        self._paint_pancreas()
        self._paint_liver()
        self._paint_spleen()
        self._paint_kidneys()
        self._paint_great_vessels()
        self._paint_spine()

    @property
    def _contrast(self) -> Contrast:
        return self._anatomy.contrast

    def _paint_table(self) -> None:
        if not self._anatomy.torso.table:
            return
        canvas, torso = self._canvas, self._anatomy.torso
        surface = torso.half_depth + 14 - 0.0009 * canvas.points[2] ** 2
        table = 7 - np.abs(canvas.points[1] - surface - 7)
        canvas.paint(canvas.everywhere, table, -180.0)
        canvas.paint(canvas.everywhere, table - 4, -860.0)

    def _paint_wall(self) -> None:
        """Fat, skin, muscles, ribs and the fat of the cavity."""
        canvas, wall, everywhere = self._canvas, self._wall, self._canvas.everywhere
        canvas.paint(everywhere, wall.skin, -10.0)
        canvas.paint(everywhere, wall.skin - 2, _FAT_HU + 5 * self._texture)
        canvas.paint(everywhere, wall.muscle, self._contrast.muscle + 12 * self._texture)
        canvas.paint(everywhere, wall.cavity, _FAT_HU + 14 * self._texture)
        canvas.paint(everywhere, self._rib_depth(), 360 + 60 * self._texture)

    def _rib_depth(self) -> FloatArray:
        """Stripes within the wall that fall towards the front, above the costal margin, and the sternum."""
        torso, wall = self._anatomy.torso, self._wall
        z, y, x = self._canvas.points
        along = (z - 0.55 * y) / torso.rib_pitch + torso.rib_phase
        stripe = (6.5 - np.abs(along % 1 - 0.5) * torso.rib_pitch) / 1.14
        shell = 4.5 - np.abs(wall.cavity + 5)
        margin = z + 72 - 1.1 * np.clip(-y, 0, None)
        ribs = np.minimum(np.minimum(stripe, shell), np.minimum(margin, np.abs(x) - 22))
        sternum = np.minimum(np.minimum(shell, 17 - np.abs(x)), np.minimum(z - 22, -y))
        return np.maximum(ribs, sternum).astype(np.float32)

    def _paint_chest(self) -> None:
        """Lungs with their vessels, then the heart."""
        canvas, wall, heart = self._canvas, self._wall, self._anatomy.organs.heart
        mediastinum = Ellipsoid((110, 5, 6), (_LONG, 92, 31)).depth(canvas.points)
        room = np.minimum(np.minimum(wall.cavity - 1, wall.thorax - 2), -mediastinum)
        region = np.flatnonzero(room > -10)
        points = canvas.organ_points[:, region]
        lungs = np.minimum(room[region], -heart.depth(points) - 4)
        gravity = 0.45 * points[1]  # the dependent parts hold more blood
        canvas.paint(region, lungs, _LUNG_HU + gravity + 28 * self._texture[region], LABELS["lungs"])
        vessels = np.minimum(_union(self._anatomy.organs.lung_vessels, points), lungs)
        canvas.paint(region, vessels, self._contrast.heart * 0.7)
        diaphragm = np.minimum(1.6 - np.abs(wall.thorax), wall.cavity)
        canvas.paint(canvas.everywhere, diaphragm.astype(np.float32), self._contrast.muscle)
        region = canvas.near(heart)
        depth = heart.depth(canvas.organ_points[:, region])
        muscle = 0.45 * self._contrast.heart + 40
        canvas.paint(region, np.minimum(depth, wall.thorax[region] - 2), muscle, 0)
        canvas.paint(region, np.minimum(depth - 11, wall.thorax[region] - 12), self._contrast.heart)

    def _paint_hollow(self, hollow: Hollow, wall_hu: float, thickness: float) -> None:
        canvas, shape = self._canvas, hollow.shape
        region = canvas.near(shape)
        points = canvas.organ_points[:, region]
        depth: FloatArray = np.minimum(shape.depth(points), self._wall.abdomen(region) - 4)
        canvas.paint(region, depth, wall_hu, 0)
        canvas.paint(region, depth - thickness, hollow.content + 15 * self._texture[region])
        if hollow.gas:
            level = shape.centre[1] + shape.reach[1] * (2 * hollow.gas - 1)
            canvas.paint(region, np.minimum(depth - thickness, np.float32(level) - points[1]), _GAS_HU)

    def _paint_bowel(self) -> None:
        for hollow in self._anatomy.organs.bowel:
            self._paint_hollow(hollow, 30 + 0.4 * self._contrast.pancreas, 2.5)
        self._paint_hollow(self._anatomy.organs.stomach, 25 + 0.5 * self._contrast.pancreas, 4)

    def _paint_back_muscles(self) -> None:
        """The erector spinae behind and the psoas beside the spine."""
        canvas = self._canvas
        for side in (-1, 1):
            back = Ellipsoid((0, 76, side * 33), (_LONG, 19, 28))
            psoas = Ellipsoid((-190, 44, side * 42), (145, 22, 21))
            for muscle in (back, psoas):
                region = canvas.near(muscle)
                depth = np.minimum(muscle.depth(canvas.points[:, region]), self._wall.muscle[region])
                canvas.paint(region, depth, self._contrast.muscle + 14 * self._texture[region], 0)

    def _paint_pancreas(self) -> None:
        canvas, contrast = self._canvas, self._contrast
        region = canvas.near(Ellipsoid((-30, 0, 30), (40, 50, 80)))
        depth = self._anatomy.organs.pancreas.depth(canvas.organ_points[:, region])
        canvas.paint(region, depth, contrast.pancreas + 18 * self._texture[region], 0)

    def _paint_liver(self) -> None:
        """Two lobes that fill the right dome of the diaphragm, their veins, and the gallbladder."""
        canvas, organs, contrast = self._canvas, self._anatomy.organs, self._contrast
        region = np.union1d(*(canvas.near(lobe) for lobe in organs.liver))
        points = canvas.organ_points[:, region]
        lobes = [lobe.depth(points) for lobe in organs.liver]
        liver = np.minimum(smooth_union(lobes[0], lobes[1], 25), self._wall.abdomen(region) - 3)
        canvas.paint(region, liver, contrast.liver + 5 * self._texture[region], LABELS["liver"])
        veins = np.minimum(_union(organs.liver_veins, points), liver - 3)
        canvas.paint(region, veins, contrast.veins)
        region = canvas.near(organs.gallbladder)
        depth = organs.gallbladder.depth(canvas.organ_points[:, region])
        canvas.paint(region, np.minimum(depth, self._wall.cavity[region] - 5), 8.0, 0)

    def _paint_spleen(self) -> None:
        canvas, contrast, shape = self._canvas, self._contrast, self._anatomy.organs.spleen
        region = canvas.near(shape)
        depth = shape.depth(canvas.organ_points[:, region])
        spleen = np.minimum(depth, self._wall.abdomen(region) - 3)
        mottled = 0.06 * contrast.spleen * self._texture[region]
        canvas.paint(region, spleen, contrast.spleen + mottled, LABELS["spleen"])

    def _paint_kidneys(self) -> None:
        """Cortex, pyramids and, open towards the middle, the fat of the sinus with the pelvis in it."""
        canvas, contrast, organs = self._canvas, self._contrast, self._anatomy.organs
        for name, side, kidney in (("right_kidney", -1, organs.right_kidney), ("left_kidney", 1, organs.left_kidney)):
            region = canvas.near(kidney)
            points = canvas.organ_points[:, region]
            z, y, x = kidney.centre
            sinus = Ellipsoid((z, y - 7, x - side * 20), (19, 12, 16)).depth(points)
            room = self._wall.abdomen(region) - 3
            capsule = np.minimum(np.maximum(kidney.depth(points) + 7, sinus), room)
            depth = np.minimum(capsule - 7, -sinus)
            canvas.paint(region, capsule, _FAT_HU + 8 * self._texture[region], 0)
            cortex = contrast.kidney_cortex + 6 * self._texture[region]
            canvas.paint(region, depth, cortex, LABELS[name])
            canvas.paint(region, depth - 7 - 1.5 * self._texture[region], contrast.kidney_medulla)
            pelvis = Ellipsoid((z, y - 7, x - side * 17), (8, 5, 12)).depth(points)
            canvas.paint(region, pelvis, 0.5 * contrast.kidney_medulla)

    def _paint_great_vessels(self) -> None:
        canvas, organs = self._canvas, self._anatomy.organs
        region = canvas.near(Ellipsoid((0, 28, 0), (_LONG, 32, 50)))
        points = canvas.points[:, region]
        canvas.paint(region, organs.vena_cava.depth(points), self._contrast.veins, 0)
        aorta = organs.aorta.depth(points)
        canvas.paint(region, aorta, 0.3 * self._contrast.aorta + 30, LABELS["aorta"])
        canvas.paint(region, aorta - 1.5, self._contrast.aorta)

    def _paint_spine(self) -> None:
        """Vertebrae and discs, repeated along a bent column; the spinal canal is left out of the label."""
        canvas, torso = self._canvas, self._anatomy.torso
        region = canvas.near(Ellipsoid((0, 68, 0), (_LONG, 52, 60)))
        z, y, x = canvas.points[:, region]
        bend = torso.bend * np.sin(z / 70 + 6 * torso.vertebra_phase)
        share = (z / torso.vertebra_pitch + torso.vertebra_phase) % 1 - 0.5
        folded = np.stack([share * torso.vertebra_pitch, y + bend, x]).astype(np.float32)  # z from mid-vertebra
        texture = self._texture[region]

        posterior = [Ellipsoid((0, 82, 0), (13, 13, 19)), Ellipsoid((-6, 98, 0), (10, 17, 5))]
        posterior += [Ellipsoid((0, 74, side * 26), (7, 7, 18), (side * 15, 0, 0)) for side in (-1, 1)]
        arches = np.minimum(_union(posterior, folded), self._wall.skin[region] - 6)
        canvas.paint(region, arches, 330 + 60 * texture, LABELS["spine"])

        body = Ellipsoid((0, 55, 0), (_LONG, 16.5, 22.5)).depth(folded)
        body = body - 2 * np.cos(2 * np.pi * share).astype(np.float32)  # the waist of a vertebra
        end_plate = (torso.vertebra_pitch / 2 - 4.5 - np.abs(folded[0])).astype(np.float32)
        canvas.paint(region, body, 85 + 10 * texture, LABELS["spine"])
        canvas.paint(region, np.minimum(body, end_plate), _BONE_HU, LABELS["spine"])
        marrow = np.minimum(body, end_plate) - 2.2
        canvas.paint(region, marrow, torso.marrow + 22 * texture, LABELS["spine"])
        canal = Ellipsoid((0, 79, 0), (_LONG, 8.5, 10.5)).depth(folded)
        canvas.paint(region, canal, 25.0, 0)
