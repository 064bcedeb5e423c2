"""Memory of a whole training run, main process and loading processes, with 10 and with 1,000 stored scans.

Needs Linux, whose /proc reports memory, and 2.5 GB in the scratch folder. Trains through ``training.loop.train``, each
pool in a separate process, for as many pairs as it takes to read every scan; views are tiny, the crops that are read
as large as the paper's:

    python -m benchmarks.memory_growth FOLDER SCANS WORKERS PAIRS

prints in its last line the memory of each process at the end, as JSON. The encoder is the real one, so most of the main
process's memory is networks, optimiser and libraries; growth of the loading processes is reported separately.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.processes import MIB, memory_of, run_child
from benchmarks.report import Figure, Settings
from benchmarks.scans import make_scan, store_scan
from pretraining.data import Volume
from pretraining.launching.distributed import Processes
from pretraining.settings.config import PretrainConfig
from pretraining.training.loop import Runtime, train
from pretraining.training.pool import split_pool
from pretraining.training.progress import RunLog
from pretraining.views import ViewSettings

_VIEW = _STRIDES = (8, 16, 16)  # one cell: the least that the networks can compute
_SCALE = (5.0, 6.0)  # crops of about as many voxels as the paper's
_SHAPE = (64, 192, 192)
_DISTINCT = 4
_EPOCHS = 2
_BATCH = 32
_WORKERS = 2

Readings = dict[str, list[dict[str, int]]]


def measure(settings: Settings) -> list[Figure]:
    """Trains on the CPU, also with another ``-device``, with 10 and with 1,000 scans."""
    few, many = (4, 12) if settings.quick else (10, 1000)
    folder = settings.folder / "memory_growth"
    try:
        _store_copies(folder, many)
        pairs = max(_EPOCHS * _BATCH, many)
        arguments = (str(_WORKERS), str(pairs))
        readings = [run_child("benchmarks.memory_growth", [str(folder), str(n), *arguments]) for n in (few, many)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _figures(*readings)


def _figures(few: Readings, many: Readings) -> list[Figure]:
    def total(readings: Readings, kind: str) -> int:
        return sum(process[kind] for process in readings["main"] + readings["workers"])

    def per_worker(kind: str) -> float:
        return mean(process[kind] for process in many["workers"]) / MIB

    grown = mean(p["private"] for p in many["workers"]) - mean(p["private"] for p in few["workers"])
    return [
        Figure(
            "memory_1000_over_10",
            total(many, "resident") / total(few, "resident"),
            "",
            f"resident memory of main process and {_WORKERS} loading processes, 1,000 scans over 10",
            "<= 1.10",
        ),
        Figure(
            "memory_1000_over_10_shared_once",
            total(many, "proportional") / total(few, "proportional"),
            "",
            "the same, counting once what the processes share",
            "<= 1.10",
        ),
        Figure("main_memory_mib", many["main"][0]["resident"] / MIB, "MiB", "main process, resident, 1,000 scans"),
        Figure("worker_memory_mib", per_worker("private"), "MiB", "a loading process, what it shares with none (USS)"),
        Figure("worker_resident_mib", per_worker("resident"), "MiB", "the same, resident, with what it shares (RSS)"),
        Figure("worker_peak_mib", per_worker("peak"), "MiB", "the same, highest resident"),
        Figure(
            "worker_mapped_mib", per_worker("mapped"), "MiB", "of its scans' files mapped, which the system can drop"
        ),
        Figure("worker_growth_mib", grown / MIB, "MiB", "own memory of a loading process, 1,000 scans less 10"),
    ]


def _store_copies(folder: Path, count: int) -> None:
    """Stores a few distinct scans, and copies of them under different names."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = _path(folder, number)
        if number < _DISTINCT:
            store_scan(make_scan(number, _SHAPE), path)
        else:
            original = _path(folder, number % _DISTINCT)
            shutil.copyfile(original, path)
            record = json.loads(original.with_suffix(".json").read_text()) | {"name": path.stem}
            path.with_suffix(".json").write_text(json.dumps(record))


def _path(folder: Path, number: int) -> Path:
    return folder / f"scan_{number:04d}.b2nd"


class _MemoryLog(RunLog):
    """Notes the memory of this process and its loading processes whenever the run has something to say."""

    def __init__(self) -> None:
        super().__init__(None)
        self.main: dict[str, int] = {}
        self.workers: list[dict[str, int]] = []

    def __call__(self, *lines: str) -> None:
        workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
        if workers:
            self.main = _memory(os.getpid())
            self.workers = [_memory(pid) for pid in workers]


def _memory(pid: int) -> dict[str, int]:
    """Bytes, by kind: see `Memory`; ``peak`` of the resident ones, ``mapped`` from stored scans."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    highest = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return asdict(memory_of(pid)) | {"peak": highest, "mapped": _mapped(pid)}


def _mapped(pid: int) -> int:
    """Resident bytes of stored scans that a process maps."""
    resident, is_scan = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name = line.split(maxsplit=1)[0]
        if not name.endswith(":"):
            is_scan = line.endswith(".b2nd")
        elif is_scan and name == "Rss:":
            resident += 1024 * int(line.split()[1])
    return resident


def _train(folder: Path, scans: int, workers: int, pairs: int) -> Readings:
    config = PretrainConfig(
        ("benchmark",),
        views=ViewSettings(_VIEW, scale=_SCALE),
        strides=_STRIDES,
        epochs=_EPOCHS,
        pairs_per_epoch=-(-pairs // _EPOCHS // _BATCH) * _BATCH,
        batch_size=_BATCH,
        hidden_channels=64,
        out_channels=32,
    )
    pool = split_pool([Volume.load(_path(folder, number)) for number in range(scans)], config)
    log = _MemoryLog()
    run_folder = folder / f"run_{scans}"
    run_folder.mkdir()
    train(config, pool, run_folder, Runtime("cpu", Processes(), workers, _EPOCHS), log, resume=False)
    shutil.rmtree(run_folder)
    return {"main": [log.main], "workers": log.workers}


def main() -> None:
    """Trains once, as a child of `measure`."""
    folder, scans, workers, pairs = sys.argv[1:]
    readings: dict[str, Any] = _train(Path(folder), int(scans), int(workers), int(pairs))
    print(json.dumps(readings))


if __name__ == "__main__":
    main()
