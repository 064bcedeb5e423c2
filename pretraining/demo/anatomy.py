"""What differs between two phantoms: the parameters of the body and of the scan.

The frame is in mm and fixed to the body: z upwards from the pelvis to the chest with 0 below the domes of the
diaphragm, y towards the back, x towards the patient's left, the origin in the middle of the torso.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretraining.demo.shapes import Ellipsoid, Tube, Vector, Warp


@dataclass(frozen=True)
class Contrast:
    """HU of the tissues that take up contrast; all follow from one time after the injection."""

    liver: float
    spleen: float
    kidney_cortex: float
    kidney_medulla: float
    aorta: float
    veins: float
    heart: float
    pancreas: float
    muscle: float


@dataclass(frozen=True)
class Torso:
    """The wall of the body. Lengths in mm.

    Attributes:
        half_width: From the middle to the skin, towards the sides.
        half_depth: The same towards front and back.
        waist: Share of the width that is missing at the waist.
        fat: Thickness of the subcutaneous fat.
        muscle: Thickness of the muscle below it.
        rib_pitch: Distance of the ribs.
        rib_phase: Where the first rib sits, as a share of the pitch.
        dome: Height of the right dome of the diaphragm; the left one is a little lower.
        bend: How far the spine sways to and fro.
        vertebra_pitch: Height of a vertebra with its disc.
        vertebra_phase: Where the first disc sits, as a share of the pitch.
        marrow: HU of the cancellous bone.
        table: Whether a piece of the table is in the field of view.
    """

    half_width: float
    half_depth: float
    waist: float
    fat: float
    muscle: float
    rib_pitch: float
    rib_phase: float
    dome: float
    bend: float
    vertebra_pitch: float
    vertebra_phase: float
    marrow: float
    table: bool


@dataclass(frozen=True)
class Hollow:
    """A piece of the digestive tract.

    Attributes:
        shape: Its outer surface.
        content: HU of what is in it.
        gas: The share of its depth, from the front, that is filled with gas.
    """

    shape: Ellipsoid
    content: float
    gas: float


@dataclass(frozen=True)
class Organs:
    """The organs, before the warps. Unions of ellipsoids for solid organs, tubes for vessels."""

    liver: tuple[Ellipsoid, Ellipsoid]
    liver_veins: tuple[Tube, ...]
    gallbladder: Ellipsoid
    spleen: Ellipsoid
    right_kidney: Ellipsoid
    left_kidney: Ellipsoid
    heart: Ellipsoid
    stomach: Hollow
    bowel: tuple[Hollow, ...]
    pancreas: Tube
    aorta: Tube
    vena_cava: Tube
    lung_vessels: tuple[Tube, ...]


@dataclass(frozen=True)
class Scan:
    """How the scanner sees the body.

    Attributes:
        degrees: Rotation of the patient about z, y and x.
        shift: Distance (z, y, x) in mm of the body's origin from the centre of the field of view.
        blur: Standard deviation in mm of the reconstruction kernel within a slice.
        slice_overlap: Slice thickness over slice distance.
        noise: Standard deviation in HU.
        grain: Correlation length of the noise within a slice, in voxels.
        noise_seed: Seed of the noise and of the texture of the tissues.
    """

    degrees: Vector
    shift: Vector
    blur: float
    slice_overlap: float
    noise: float
    grain: float
    noise_seed: int


@dataclass(frozen=True)
class Anatomy:
    """All parameters of one phantom."""

    torso: Torso
    organs: Organs
    contrast: Contrast
    scan: Scan
    body_warp: Warp
    organ_warp: Warp
