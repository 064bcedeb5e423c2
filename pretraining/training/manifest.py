"""What a run was trained on: one entry per scan with the hashes of its files, in the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunetv2_pgl.files import write_text
from pretraining.data import Volume
from pretraining.data.scan import distinct
from pretraining.data.store import read_record
from pretraining.settings.config import PretrainConfig
from pretraining.training.loop import Pool

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The text of a manifest and what the checkpoint tells of it.

    Attributes:
        text: JSON: `format_version`, `sources` and `scans`. Paths are left out, so it tells nothing of the machine.
        scans_per_source: Number of scans by the source's name.
    """

    text: str
    scans_per_source: dict[str, int]

    @classmethod
    def of_pool(cls, config: PretrainConfig, pool: Pool) -> Manifest:
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
            _entry(volume, names[source], use)
            for volume, source, use in zip([*pool.training, *pool.validation], numbers, uses, strict=True)
        ]
        counts = {name: numbers.count(number) for number, name in enumerate(names)}
        sources = {name: {"scans": counts[name], "weight": weight} for name, weight in zip(names, weights, strict=True)}
        content = {"format_version": _FORMAT_VERSION, "sources": sources}
        content["scans"] = sorted(scans, key=lambda scan: (names.index(scan["source"]), scan["name"]))
        return cls(json.dumps(content, indent=1, ensure_ascii=False) + "\n", counts)

    def write(self, path: Path) -> None:
        """Write it at once."""
        write_text(path, self.text)

    def summary(self) -> dict[str, Any]:
        """Plain values for the checkpoint: SHA-256 of the file, and the number of scans of each source."""
        return {"sha256": sha256(self.text.encode()).hexdigest(), "scans_per_source": self.scans_per_source}


def source_names(datasets: Sequence[str]) -> list[str]:
    """Names of sources without their paths; folders of the same name get their parent's in front."""
    paths = [Path(name) for name in datasets]
    return distinct([path.name for path in paths], [f"{path.parent.name}_{path.name}" for path in paths])


def _entry(volume: Volume, source: str, use: str) -> dict[str, Any]:
    record = read_record(volume.path)
    return {
        "name": volume.name,
        "source": source,
        "use": use,
        "files": _files(record["files"], len(record["channels"])),
        "channels": record["channels"],
        "shape": list(volume.shape),
        "spacing": list(volume.spacing),
    }


def _files(entries: Sequence[dict[str, Any]], channels: int) -> list[dict[str, Any]]:
    """Name, size and hash of each file. A DICOM series is one entry, hashed over the hashes of its slices in order."""
    files = [{"name": Path(e["path"]).name, "size": e["size"], "sha256": e.get("sha256")} for e in entries]
    if len(files) <= channels:
        return files
    hashes = [file["sha256"] for file in files]
    digest = None if None in hashes else sha256("\n".join(hashes).encode()).hexdigest()
    return [
        {"name": f"{files[0]['name']} and {len(files) - 1} more slices", "slices": len(files)}
        | {"size": sum(file["size"] for file in files), "sha256": digest}
    ]
