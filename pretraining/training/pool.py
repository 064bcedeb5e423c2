"""The scans of a run: found, preprocessed, split into those to train on and those held out, listed in a manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.data import (
    PlannedPreprocessing,
    Scan,
    Skipped,
    Volume,
    find_scans,
    leave_out,
    preprocess,
    resolve_source,
    with_joint_channels,
)
from pretraining.data.licences import stated_terms
from pretraining.data.reading.orientation import read_orientation
from pretraining.data.scan import unique_names
from pretraining.data.store import read_record
from pretraining.settings.config import PretrainConfig
from pretraining.views.body_axes import require_lateral
from pretraining.views.rendering import largest_source_box

_MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Pool:
    """Scans to train on and scans held out for the correspondence metric.

    Attributes:
        sources: Index in the settings' ``datasets`` for each training scan; needed where these have weights.
        validation_sources: The same for the scans held out.
    """

    training: Sequence[Volume]
    validation: Sequence[Volume]
    sources: Sequence[int] = ()
    validation_sources: Sequence[int] = ()

    @property
    def volumes(self) -> list[Volume]:
        """All of them."""
        return [*self.training, *self.validation]


def find_pool(config: PretrainConfig) -> tuple[list[Scan], list[Skipped]]:
    """The scans of the sources, but for those to be left out and those whose channels do not fit."""
    scans, skipped = find_scans(config.datasets, config.modality, config.use_masks)
    scans = leave_out(scans, skipped, config.exclude)
    if config.channels == "joint":
        planned = _planned(config)
        scans, others = with_joint_channels(scans, planned.channels if planned else None)
        skipped = [*skipped, *others]
    return scans, skipped


def preprocess_pool(
    config: PretrainConfig, scans: Sequence[Scan], processes: int, verify: bool, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    """Preprocesses those scans of a pool that are not in the store yet."""
    require_lateral(map(read_orientation, scans), config.views)  # now: preprocessing may take hours
    volumes, skipped = preprocess(
        scans,
        spacing=config.spacing,
        crop_size=largest_source_box(config.views.size, config.views.scale),
        processes=processes,
        progress=progress,
        planned=_planned(config),
        verify=verify,
    )
    require_lateral((volume.orientation for volume in volumes), config.views)
    return volumes, skipped


def prepare_volumes(
    config: PretrainConfig, processes: int, verify: bool = False, progress: bool = True
) -> tuple[list[Volume], list[Skipped]]:
    """Finds the scans and preprocesses those that are not in the store yet."""
    scans, skipped = find_pool(config)
    volumes, bad = preprocess_pool(config, scans, processes, verify, progress)
    return volumes, [*skipped, *bad]


def sources_of(config: PretrainConfig, scans: Sequence[Scan], volumes: Sequence[Volume]) -> list[int]:
    """Which of the settings' ``datasets`` each volume is from; ``scans`` are those that were found."""
    stores = [resolve_source(source).store for source in config.datasets]
    numbers = {scan.name: stores.index(scan.store) for scan in scans}
    return [numbers[volume.name] for volume in volumes]


def split_pool(volumes: Sequence[Volume], config: PretrainConfig, sources: Sequence[int] = ()) -> Pool:
    """Holds scans out for the correspondence metric, by the seed; ``sources`` are those of the volumes, if known."""
    count = config.validation_scans
    if count is None:
        count = 0 if len(volumes) < 10 else min(16, max(1, round(0.05 * len(volumes))))
    count = min(count, len(volumes) - 1)
    order = np.random.default_rng((config.seed, 2)).permutation(len(volumes))
    held_out = sorted(order[:count].tolist())
    trained = sorted(order[count:].tolist())
    of = [[sources[i] for i in part] for part in (trained, held_out)] if sources else [(), ()]
    return Pool([volumes[i] for i in trained], [volumes[i] for i in held_out], *of)


def median_spacing(volumes: Sequence[Volume]) -> tuple[float, float, float]:
    """Per axis (z, y, x), in mm."""
    z, y, x = np.median([volume.spacing for volume in volumes], axis=0).tolist()
    return (z, y, x)


def _planned(config: PretrainConfig) -> PlannedPreprocessing | None:
    return None if config.preprocessing is None else PlannedPreprocessing.from_dict(config.preprocessing)


@dataclass(frozen=True)
class Manifest:
    """What a run was trained on: one entry per scan with the hashes of its files.

    Attributes:
        text: JSON: `format_version`, `sources` and `scans`; without paths, which would show names of the machine.
        scans_per_source: Number of scans by the source's name.
    """

    text: str
    scans_per_source: dict[str, int]

    @classmethod
    def from_pool(cls, config: PretrainConfig, pool: Pool) -> Manifest:
        """The manifest of a run's scans; equal pools give equal text.

        Raises:
            DataError: If a volume's record cannot be read.
        """
        names = source_names(config.datasets)
        weights = config.weights or (None,) * len(names)
        numbers = [*pool.sources, *pool.validation_sources]
        uses = ["training" if weights[source] != 0 else "not drawn" for source in pool.sources]
        uses += ["held out"] * len(pool.validation)
        scans = [
            _entry(volume, names[source], use) for volume, source, use in zip(pool.volumes, numbers, uses, strict=True)
        ]
        counts = {name: numbers.count(number) for number, name in enumerate(names)}
        sources = {name: {"scans": counts[name], "weight": weight} for name, weight in zip(names, weights, strict=True)}
        content = {"format_version": _MANIFEST_VERSION, "sources": sources}
        content["scans"] = sorted(scans, key=lambda scan: (names.index(scan["source"]), scan["name"]))
        return cls(json.dumps(content, indent=1, ensure_ascii=False) + "\n", counts)

    def summary(self) -> dict[str, Any]:
        """Plain values for the checkpoint: SHA-256 of the file, and the number of scans of each source."""
        return {"sha256": sha256(self.text.encode()).hexdigest(), "scans_per_source": self.scans_per_source}


def described_sources(config: PretrainConfig, pool: Pool) -> list[dict[str, Any]]:
    """Plain values for the checkpoint: name of each source, its numbers of scans, channels, and what it says of itself.

    Raises:
        DataError: If a volume's record cannot be read.
    """
    described = []
    for number, (source, name) in enumerate(zip(config.datasets, source_names(config.datasets), strict=True)):
        trained = [volume for volume, of in zip(pool.training, pool.sources, strict=True) if of == number]
        held_out = [volume for volume, of in zip(pool.validation, pool.validation_sources, strict=True) if of == number]
        volumes = [*trained, *held_out]
        channels = sorted({channel for volume in volumes for channel in read_record(volume.path)["channels"]})
        counts = {"scans": len(volumes), "held_out": len(held_out), "channels": channels}
        described.append({"name": name, **counts, **stated_terms(resolve_source(source).folder)})
    return described


def source_names(datasets: Sequence[str]) -> list[str]:
    """Names of sources without their paths; folders of the same name get their parent's in front."""
    paths = [Path(name) for name in datasets]
    return unique_names([path.name for path in paths], [f"{path.parent.name}_{path.name}" for path in paths])


def _entry(volume: Volume, source: str, use: str) -> dict[str, Any]:
    """What the manifest says of a scan. A DICOM series is one file, hashed over the hashes of its slices in order."""
    record = read_record(volume.path)
    files = [{"name": Path(e["path"]).name, "size": e["size"], "sha256": e.get("sha256")} for e in record["files"]]
    if len(files) > len(record["channels"]):
        hashes = [file["sha256"] for file in files]
        series = {
            "name": f"{files[0]['name']} and {len(files) - 1} more slices",
            "slices": len(files),
            "size": sum(file["size"] for file in files),
            "sha256": None if None in hashes else sha256("\n".join(hashes).encode()).hexdigest(),
        }
        files = [series]
    return {
        "name": volume.name,
        "source": source,
        "use": use,
        "files": files,
        "channels": record["channels"],
        "shape": list(volume.shape),
        "spacing": list(volume.spacing),
    }
