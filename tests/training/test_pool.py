"""What the manifest says of a pool, against the files themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.data import Scan, Volume, preprocess
from pretraining.data.store import read_record
from pretraining.data.writing import write_record
from pretraining.settings.config import PretrainConfig
from pretraining.training.pool import Manifest, Pool, source_names


def write(folder: Path, name: str, slices: int = 1) -> Scan:
    """Of one file, or as if it were a series of several."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(name)).integers(-900, 300, (6, 8, 8)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / f"{name}.nrrd"))
    return Scan(name, name, folder.name, folder.name, (str(folder / f"{name}.nrrd"),), ("CT",), (True,))


def stored(root: Path, scans: list[Scan]) -> list[Volume]:
    volumes, _ = preprocess(scans, root / "out", spacing="native", crop_size=(4, 4, 4), processes=1, progress=False)
    return volumes


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    volumes = stored(
        tmp_path, [write(tmp_path / "one", "a"), write(tmp_path / "one", "bb"), write(tmp_path / "two", "c")]
    )
    return Pool([volumes[0], volumes[2]], [volumes[1]], [0, 1], [0])


def test_every_scan_with_the_hash_of_its_file_and_no_path(tmp_path: Path, pool: Pool) -> None:
    config = PretrainConfig((str(tmp_path / "one"), str(tmp_path / "two")), weights=(1.0, 0.0))
    manifest = Manifest.from_pool(config, pool)
    (tmp_path / "manifest.json").write_text(manifest.text)
    assert manifest.summary() == {
        "sha256": digest(tmp_path / "manifest.json"),
        "scans_per_source": {"one": 2, "two": 1},
    }
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["sources"] == {"one": {"scans": 2, "weight": 1.0}, "two": {"scans": 1, "weight": 0.0}}
    assert [(scan["name"], scan["use"]) for scan in content["scans"]] == [
        ("a", "training"),
        ("bb", "held out"),
        ("c", "not drawn"),
    ]
    for scan in content["scans"]:
        file = tmp_path / scan["source"] / f"{scan['name']}.nrrd"
        assert scan["files"] == [{"name": file.name, "size": file.stat().st_size, "sha256": digest(file)}]
        assert (scan["shape"], scan["spacing"]) == ([1, 6, 8, 8], [1.0, 1.0, 1.0])
    assert str(tmp_path) not in manifest.text
    assert Manifest.from_pool(config, pool) == manifest


def test_volumes_of_earlier_versions_are_hashed_once(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write(tmp_path / "old", "a")
    (volume,) = stored(tmp_path, [scan])
    whole = read_record(volume.path)
    voxels = volume.path.stat().st_mtime_ns
    write_record(
        volume.path, {**whole, "files": [{k: v for k, v in f.items() if k != "sha256"} for f in whole["files"]]}
    )
    hashes: list[Any] = []

    def spied(path: str) -> str:
        hashes.append(path)
        return digest(Path(path))

    monkeypatch.setattr("pretraining.data.volume_tasks.sha256_of", spied)
    assert stored(tmp_path, [scan]) == stored(tmp_path, [scan]) == [volume]
    assert hashes == list(scan.files)
    assert read_record(volume.path) == whole
    assert volume.path.stat().st_mtime_ns == voxels


def test_a_series_is_one_entry(tmp_path: Path, pool: Pool) -> None:
    record = read_record(pool.training[0].path)
    entry = record["files"][0]
    slices = [{**entry, "path": f"/x/{n}.dcm", "size": 10, "sha256": f"{n:064d}"} for n in range(3)]
    write_record(pool.training[0].path, {**record, "files": slices})
    content = json.loads(Manifest.from_pool(PretrainConfig(("one", "two")), pool).text)
    assert content["scans"][0]["files"] == [
        {
            "name": "0.dcm and 2 more slices",
            "slices": 3,
            "size": 30,
            "sha256": hashlib.sha256("\n".join(f"{n:064d}" for n in range(3)).encode()).hexdigest(),
        }
    ]


def test_folders_of_the_same_name_are_told_apart() -> None:
    assert source_names(["Dataset001_A", "/x/b/images", "/x/c/images"]) == ["Dataset001_A", "b_images", "c_images"]
