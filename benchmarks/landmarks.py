"""How far from a structure in one patient does its place in another patient lead? And a picture of one place.

python -m benchmarks.landmarks CHECKPOINT -d 601 -only cases.txt --picture same_place.png --json landmarks.json

Landmarks are the centres of the connected parts of the labels (in OpenKBP: brainstem, spinal cord, and a parotid gland
on either side). For every ordered pair of patients, the place of the landmark in the first is looked up in the second
by the features alone, and the distance to the second's own landmark is measured in mm, beside what the same network
with random weights finds, and the same place of the image, relative to its size. Labels only measure: nothing is
trained on them. ``--field 0.7`` crops every scan to a random box of 0.7 of each axis that has all of its landmarks, as
scanners cover different parts of the body.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

from nnunetv2_pgl.checkpoint import load_checkpoint, untrained_encoder
from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.features import DenseFeatures, corresponding_points, dense_features, load_encoder
from nnunetv2_pgl.files import load_json, replacing, write_text
from pretraining.settings.values import names_in

_MIN_PART = 0.2  # of the largest connected part of a label; smaller ones are specks
_WINDOW = (-300, 400)  # HU shown of CT; of other images all but the darkest and brightest 1 %
_WAYS = ("pre-trained", "random weights", "relative place")


@dataclass(frozen=True)
class Patient:
    """A scan with landmarks: points (z, y, x) in voxels, by name."""

    name: str
    scan: sitk.Image
    landmarks: Mapping[str, np.ndarray]

    @property
    def spacing(self) -> np.ndarray:
        """(z, y, x) in mm."""
        return np.array(self.scan.GetSpacing()[::-1])


def read_patient(folder: Path, case: str, described: Mapping[str, Any]) -> Patient:
    """A case of a dataset in nnU-Net's raw format with one channel."""
    file = folder / "imagesTr" / f"{case}_0000{described['file_ending']}"
    label = folder / "labelsTr" / f"{case}{described['file_ending']}"
    for path in (file, label):
        if not path.is_file():
            raise PGLError(f"{path} does not exist")
    labels = sitk.ReadImage(str(label), sitk.sitkUInt8)
    landmarks = {}
    for name, value in described["labels"].items():
        if name != "background":
            landmarks |= _landmarks(name, labels == int(value))
    return Patient(case, sitk.ReadImage(str(file)), landmarks)


def _landmarks(name: str, mask: sitk.Image) -> dict[str, np.ndarray]:
    """The centre of the largest part, or of the two largest where these are of similar size, as paired organs are."""
    parts = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(mask)))
    sizes = np.bincount(parts.ravel())[1:]
    kept = [index + 1 for index in range(min(2, len(sizes))) if sizes[index] >= _MIN_PART * sizes[0]]
    centres = [np.argwhere(parts == part).mean(axis=0) + 0.5 for part in kept]
    if len(centres) < 2:
        return dict(zip([name], centres, strict=False))
    axis = int(np.abs(centres[0] - centres[1]).argmax())  # from side to side, whichever axis of the file that is
    low, high = sorted(centres, key=lambda centre: float(centre[axis]))
    return {f"{name}, lower {'zyx'[axis]}": low, f"{name}, higher {'zyx'[axis]}": high}


def cropped(patient: Patient, share: float, generator: np.random.Generator) -> Patient:
    """The scan in a random box that has this share of each axis, or more if its landmarks are further apart."""
    shape = np.array(patient.scan.GetSize()[::-1])
    points = np.stack(list(patient.landmarks.values()))
    first, last = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
    size = np.minimum(np.maximum(np.ceil(share * shape).astype(int), last - first), shape)
    start = generator.integers(np.maximum(last - size, 0), np.minimum(first, shape - size) + 1)
    z, y, x = (slice(int(begin), int(begin + length)) for begin, length in zip(start, size, strict=True))
    return Patient(patient.name, patient.scan[x, y, z], {name: p - start for name, p in patient.landmarks.items()})


def distances(
    patients: Sequence[Patient], features: Mapping[str, Sequence[DenseFeatures]]
) -> dict[str, dict[str, list[float]]]:
    """Distances in mm over ordered pairs of patients: landmark -> way -> distances."""
    found: dict[str, dict[str, list[float]]] = {}
    for a, source in enumerate(patients):
        for b, target in enumerate(patients):
            names = [name for name in source.landmarks if name in target.landmarks and a != b]
            if not names:
                continue
            points = np.stack([source.landmarks[name] for name in names])
            relative = points / source.scan.GetSize()[::-1] * np.array(target.scan.GetSize()[::-1])
            places = {way: corresponding_points(f[a], points, f[b])[0].numpy() for way, f in features.items()}
            for way, where in {**places, "relative place": relative}.items():
                for name, place in zip(names, where, strict=True):
                    off = np.linalg.norm((place - target.landmarks[name]) * target.spacing)
                    found.setdefault(name, {}).setdefault(way, []).append(float(off))
    return found


def draw(
    patients: Sequence[Patient], features: Sequence[DenseFeatures], landmark: str, is_ct: bool, path: Path
) -> None:
    """The landmark in the first patient, and where it is found in the others: three planes each."""
    others = [corresponding_points(features[0], [patients[0].landmarks[landmark]], f) for f in features[1:]]
    points = [patients[0].landmarks[landmark], *(place[0].numpy() for place, _ in others)]
    figure = Figure(figsize=(3 * len(patients), 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (patient, point) in enumerate(zip(patients, points, strict=True)):
        voxels, spacing, truth = sitk.GetArrayViewFromImage(patient.scan), patient.spacing, patient.landmarks[landmark]
        off = np.linalg.norm((point - truth) * spacing)
        low, high = _WINDOW if is_ct else np.percentile(voxels, (1, 99))
        title = "the point" if column == 0 else f"found, {off:.0f} mm off"
        for row, axis in enumerate((0, 1, 2)):  # axial, coronal, sagittal
            axes = figure.add_subplot(3, len(patients), row * len(patients) + column + 1)
            index = min(int(point[axis]), voxels.shape[axis] - 1)
            down, across = (other for other in range(3) if other != axis)
            axes.imshow(
                np.take(voxels, index, axis),
                cmap="gray",
                vmin=low,
                vmax=high,
                aspect=spacing[down] / spacing[across],
            )
            axes.plot(point[across] - 0.5, point[down] - 0.5, "+", color="tab:red", markersize=16, markeredgewidth=2)
            if column:
                axes.plot(
                    truth[across] - 0.5, truth[down] - 0.5, "o", color="tab:green", markersize=9, fillstyle="none"
                )
            if row == 0:
                axes.set_title(f"{patient.name}: {title}", fontsize=10)
            axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: median and quartiles of the distances, in mm."""
    lines = [f"| landmark | {' | '.join(_WAYS)} |", "|---" * (len(_WAYS) + 1) + "|"]
    for name, ways in found.items():
        cells = []
        for way in _WAYS:
            low, middle, high = np.percentile(ways[way], (25, 50, 75))
            cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.landmarks", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("-d", required=True, type=int, help="dataset with labels, in nnUNet_raw")
    parser.add_argument("-only", required=True, type=Path, help="names of the patients, one a line")
    parser.add_argument("--field", type=float, default=1.0, help="crop each scan to this share of its axes")
    parser.add_argument("--landmark", help="of the picture (default: the first)")
    parser.add_argument("--picture", type=Path, help="PNG of the first four patients")
    parser.add_argument("--json", type=Path, help="all distances")
    arguments = parser.parse_args()
    try:
        folder = Path(nnUNet_raw) / convert_id_to_dataset_name(arguments.d)
        described = load_json(folder / "dataset.json")
        patients = [read_patient(folder, case, described) for case in names_in(arguments.only, "-only")]
        if not 0 < arguments.field <= 1:
            raise PGLError(f"--field {arguments.field:g}: a share of each axis, more than 0 and at most 1")
        if arguments.field < 1:
            generator = np.random.default_rng(0)
            patients = [cropped(patient, arguments.field, generator) for patient in patients if patient.landmarks]
        encoder, preprocess = load_encoder(arguments.checkpoint)
        torch.manual_seed(0)  # of the random weights
        untrained = untrained_encoder(load_checkpoint(arguments.checkpoint), arguments.checkpoint).eval()
        features: dict[str, list[DenseFeatures]] = {"pre-trained": [], "random weights": []}
        for patient in patients:
            image = preprocess(sitk.GetArrayFromImage(patient.scan), patient.spacing)
            features["pre-trained"].append(dense_features(encoder, image))
            features["random weights"].append(dense_features(untrained, image))
            print(patient.name, flush=True)
        found = distances(patients, features)
        print(f"\n{len(patients)} patients, distances in mm: median (quartiles) over ordered pairs\n\n{table(found)}")
        if arguments.json is not None:
            write_text(arguments.json, json.dumps(found, indent=1) + "\n")
        if arguments.picture is not None:
            is_ct = set(described["channel_names"].values()) == {"CT"}
            landmark = arguments.landmark or next(iter(found))
            draw(patients[:4], features["pre-trained"][:4], landmark, is_ct, arguments.picture)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"benchmarks.landmarks: {error}"))


if __name__ == "__main__":
    main()
