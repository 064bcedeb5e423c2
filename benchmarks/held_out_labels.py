"""Labels of stored scans, and the share of each in the cells of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_raw
from torch import Tensor

from benchmarks.plain_features import cell_voxels
from nnunetv2_pgl.files import load_json
from nnunetv2_pgl.networks import FeatureGrid
from pretraining.data import DataError, Volume
from pretraining.data.store import read_record
from pretraining.settings.config import PretrainConfig
from pretraining.views import GeometryBatch
from pretraining.views.rendering import render_crops


@dataclass(frozen=True)
class LabelledVolume:
    """Labels of a stored scan.

    Attributes:
        names: Of the labels, without the background.
        shares: Share of each label in each voxel of the stored scan, (labels, D, H, W), from 0 to 1.
    """

    names: tuple[str, ...]
    shares: Tensor


def labels_of(volumes: Sequence[Volume], config: PretrainConfig) -> list[LabelledVolume]:
    """Labels of scans of nnU-Net datasets, cropped and resampled as the scans were.

    Raises:
        DataError: A scan has no label file, is of a plain folder, or its dataset has other labels.
    """
    axes = (config.preprocessing or {}).get("transpose_forward", (0, 1, 2))
    labelled = [_labels(volume, axes) for volume in volumes]
    for volume, other in zip(volumes, labelled, strict=True):
        if other.names != labelled[0].names:
            raise DataError(
                f"--labels: {volumes[0].source} and {volume.source} have other labels; measure on one at a time"
            )
    return labelled


def _labels(volume: Volume, axes: Sequence[int]) -> LabelledVolume:
    folder = Path(nnUNet_raw) / volume.source
    if not (folder / "dataset.json").is_file():
        raise DataError(f"--labels: {volume.source} is not a dataset in nnUNet_raw: no {folder / 'dataset.json'}")
    described = load_json(folder / "dataset.json")
    file = folder / "labelsTr" / f"{volume.path.stem}{described['file_ending']}"
    if not file.is_file():
        raise DataError(f"--labels: {file} is missing; leave scans without labels out by -only")
    reader = determine_reader_writer_from_dataset_json(described, str(file), verbose=False)()
    segmentation = reader.read_seg(str(file))[0][0].transpose(axes)
    box = read_record(volume.path)["bbox"]
    segmentation = segmentation[tuple(slice(start, stop) for start, stop in box)]
    values = {name: value for name, value in described["labels"].items() if name not in ("background", "ignore")}
    masks = np.stack([np.isin(segmentation, value) for value in values.values()]).astype(np.float32)
    size = volume.shape[1:]
    shares = F.interpolate(torch.from_numpy(masks)[None], size=size, mode="trilinear", align_corners=False)[0]
    return LabelledVolume(tuple(values), shares)


def label_fractions(volumes: Sequence[LabelledVolume], geometries: GeometryBatch, grid: FeatureGrid) -> Tensor:
    """Share of each label in the part of a view that a cell stands for.

    Args:
        volumes: One for each view.
        geometries: Of the views.
        grid: Where the cells lie in a view.

    Returns:
        (B, labels, *cells).
    """
    in_z, in_y, in_x = cell_voxels(grid)
    edges = [in_z.shape[1], in_y.shape[1], in_x.shape[1]]
    fractions = []
    for number, labelled in enumerate(volumes):
        one = GeometryBatch(*(t[number : number + 1] for t in (geometries.starts, geometries.sizes, geometries.flips)))
        origin = torch.zeros(1, 3, dtype=one.starts.dtype)
        extent = origin.new_tensor([labelled.shares.shape[1:]])
        view = render_crops(labelled.shares[None], origin, extent, one, grid.view_size)[0]
        voxels = view[:, in_z.flatten()][:, :, in_y.flatten()][:, :, :, in_x.flatten()]
        fractions.append(F.avg_pool3d(voxels, edges, edges))
    return torch.stack(fractions)
