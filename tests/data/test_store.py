import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from pretraining.data import DataError, Volume
from pretraining.data.writing import storage_layout, write_volume


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 325, (2, 33, 70, 50)).astype(np.int16)


@pytest.fixture
def volume(tmp_path: Path, data: np.ndarray) -> Volume:
    record = {
        "name": "scan.1",
        "source": "x",
        "spacing": [3, 1, 1],
        "mean": [0, 1],
        "std": [1, 2],
        "is_ct": [True, False],
    }
    return write_volume(tmp_path / "scan.1.b2nd", data, record, (8, 20, 20))


def test_boxes_are_what_numpy_slices(volume: Volume, data: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        start = [int(rng.integers(0, size)) for size in data.shape[1:]]
        stop = [int(rng.integers(low + 1, size + 1)) for low, size in zip(start, data.shape[1:], strict=True)]
        channel = int(rng.integers(2))
        box = volume.read(channel, start, stop)
        np.testing.assert_array_equal(box, data[channel, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]])
    assert box.dtype == np.int16


@pytest.mark.parametrize(
    ("channel", "start", "stop"),
    [
        (0, (-1, 0, 0), (2, 2, 2)),
        (0, (0, 0, 0), (33, 71, 50)),
        (0, (4, 4, 4), (4, 5, 5)),
        (2, (0, 0, 0), (1, 1, 1)),
        (-1, (0, 0, 0), (1, 1, 1)),
        (0, (0, 0), (1, 1)),
    ],
)
def test_boxes_outside_the_scan_are_refused(
    volume: Volume, channel: int, start: tuple[int, ...], stop: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"scan\.1|zip"):
        volume.read(channel, start, stop)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other"])
def test_damaged_voxels_are_named(volume: Volume, tmp_path: Path, data: np.ndarray, damage: str) -> None:
    volume.read(0, (0, 0, 0), (1, 1, 1))
    content = volume.path.read_bytes()
    shutil.copy(volume.path.with_suffix(".json"), tmp_path / "former.json")
    volume.path.unlink()
    if damage == "other":
        record = {**json.loads(volume.path.with_suffix(".json").read_text())}
        write_volume(volume.path, data[:, 1:], record, (8, 20, 20))
        shutil.copy(tmp_path / "former.json", volume.path.with_suffix(".json"))
    elif damage != "missing":
        volume.path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(DataError, match=r"scan\.1\.b2nd cannot be read"):
        volume.read(0, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is damaged"),
        ("[]", "has format None"),
        ("[" * 100_000, r"is damaged \(nested too deeply"),
        ('{"format_version": 2}', "has format 2"),
        ('{"format_version": 1, "shape": [1, 2, 3]}', "is damaged"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json " + message):
        Volume.load(tmp_path / "a.b2nd")


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [2, 3]},
        {"shape": ["two", 3, 4, 5]},
        {"shape": [2, 0, 4, 5]},
        {"shape": {"z": 1}},
        {"spacing": [3, None, 1]},
        {"spacing": [3, float("inf"), 1]},
        {"spacing": [-3, 1, 1]},
        {"mean": [0]},
        {"mean": ["a", "b"]},
        {"std": [1, 0]},
        {"std": 1},
        {"is_ct": [True]},
        {"dtype": "object"},
        {"name": None, "shape": None},
        {"orientation": "SP"},
        {"orientation": ["S", "P"]},
        {"orientation": ["S", "P", "I"]},
        {"orientation": ["S", "P", {}]},
    ],
    ids=str,
)
def test_records_with_impossible_values_are_named(volume: Volume, wrong: dict[str, Any]) -> None:
    file = volume.path.with_suffix(".json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(DataError, match=r"scan\.1\.json is damaged"):
        Volume.load(file)


def test_a_chunk_that_would_fill_the_memory_is_not_decompressed(volume: Volume) -> None:
    """A file of a few hundred bytes whose one chunk is 1.5 GiB of zeros."""
    shape = (2, 1, 1, 3 * 2**28)
    volume.path.unlink()
    blosc2.zeros(shape, dtype=np.int16, chunks=(1, *shape[1:]), blocks=(1, 1, 1, 2**16), urlpath=str(volume.path))
    assert volume.path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"scan\.1\.b2nd cannot be read .* larger than"):
        replace(volume, shape=shape).read(0, (0, 0, 0), (1, 1, 10))


@pytest.mark.parametrize("crop", [(25, 137, 137), (90, 90, 90), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(1, 120, 400, 400), (2, 35, 51, 36), (1, 2, 3, 1000)])
def test_layout_is_valid_and_no_larger_than_needed(shape: tuple[int, ...], crop: tuple[int, ...]) -> None:
    chunks, blocks = storage_layout(shape, crop)
    for size, wanted, chunk, block in zip(shape[1:], crop, chunks[1:], blocks[1:], strict=True):
        assert 1 <= block <= chunk < size + block
        assert chunk % block == 0
        assert chunk < max(wanted, 2) * 1.5
    assert chunks[0] == blocks[0] == 1
