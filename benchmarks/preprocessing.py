"""Preprocessing: scans per minute and core, efficiency of two workers, peak memory of one, and where the time goes.

Needs Linux, whose /proc reports memory and bytes read. Every measurement is taken in a separate process:

    python -m benchmarks.preprocessing rate FOLDER WORKERS
    python -m benchmarks.preprocessing stages FOLDER
    python -m benchmarks.preprocessing peaks FOLDER
    python -m benchmarks.preprocessing dicom FOLDER

Each prints JSON in its last line.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.processes import MIB, bytes_read, forget_peak, peak, run_child
from benchmarks.report import Figure, Settings
from benchmarks.scans import SCALE, SCAN_SHAPE, VIEW_SIZE, make_scan
from pretraining.data import Scan, find_scans, preprocess, read_geometry, read_scan
from pretraining.data.default_preprocessing import PreprocessedScan, preprocess_without_plan
from pretraining.data.workers import run_tasks
from pretraining.data.writing import write_volume
from pretraining.views.rendering import largest_source_box

_CROP = largest_source_box(VIEW_SIZE, SCALE)
_SPACING = (2.5, 0.8, 0.8)  # mm; axes are resampled separately from a ratio of 3 on, so these are not
_RATE_TARGET = (2.5, 0.9, 0.9)
_LARGE_SHAPE = (300, 512, 512)
_LARGE_SPACING = (1.0, 0.8, 0.8)
# What one worker does to the large scan: modality, spacing.
_PEAK_CASES: dict[str, tuple[str, str | tuple[float, float, float]]] = {
    "native": ("ct", "native"),
    "isotropic": ("ct", (1.2, 0.9, 0.9)),
    "anisotropic": ("ct", (5.0, 0.9, 0.9)),
    "mr": ("mr", (1.0, 0.9, 0.9)),
}


def measure(settings: Settings) -> list[Figure]:
    """Measures on CTs generated into the scratch folder."""
    folder = settings.folder / "preprocessing"
    try:
        return [
            *_rates(folder / "rate", settings.quick),
            *_peaks(folder / "peak", settings.quick),
            *_dicom_figures(folder / "dicom", settings.quick),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rates(folder: Path, quick: bool) -> list[Figure]:
    _write_copies(folder, make_scan(0, (24, 64, 64) if quick else SCAN_SHAPE), 2 if quick else 6)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    processor: dict[int, list[float]] = {1: [], 2: []}
    startup = []
    for _ in range(1 if quick else 3):
        for workers in seconds:  # taking turns, so that a slow spell of the machine meets both
            values = run_child("benchmarks.preprocessing", ["rate", str(folder), str(workers)])
            seconds[workers].append(values["seconds_per_scan"])
            processor[workers].append(values["processor_per_scan"])
            startup.append(values["startup"])
    stages = run_child("benchmarks.preprocessing", ["stages", str(folder)])
    efficiency = median(one / (2 * two) for one, two in zip(seconds[1], seconds[2], strict=True))
    busy = median(one / two for one, two in zip(processor[1], processor[2], strict=True))
    what = "a 120 x 400 x 400 int16 .nii.gz, resampled along y and x"
    return [
        Figure("preprocessing_scans_per_minute_per_core", 60 / median(seconds[1]), "/min", f"one worker, {what}"),
        Figure("preprocessing_parallel_efficiency", efficiency, "", "rate of 2 workers over 2 x that of 1", ">= 0.8"),
        Figure("preprocessing_processor_efficiency", busy, "", "the same in processor time: what sharing memory costs"),
        Figure("preprocessing_startup", median(startup[1::2]), "s", "until 2 workers have imported all they need"),
        *(
            Figure(f"preprocessing_{stage}", stages[stage], "s", f"processor time to {stage} such a scan")
            for stage in ("read", "prepare", "write")
        ),
        Figure(
            "preprocessing_bytes_read",
            stages["reads"],
            "",
            "bytes read over the file's size; 2 is read twice",
            "<= 1.5",
        ),
    ]


def _peaks(folder: Path, quick: bool) -> list[Figure]:
    shape = (30, 64, 64) if quick else _LARGE_SHAPE
    scan = np.tile(make_scan(1, (shape[0] // 2, shape[1] // 2, shape[2] // 2)), (2, 2, 2))
    _write(folder / "large.nii.gz", scan, _LARGE_SPACING)
    values = run_child("benchmarks.preprocessing", ["peaks", str(folder)])
    peaks = {case: bytes_needed / (4 * scan.size) for case, bytes_needed in values["peaks"].items()}
    what = f"{' x '.join(map(str, shape))} int16 .nii.gz"
    return [
        Figure(
            "preprocessing_peak_over_scan",
            max(peaks.values()),
            "",
            f"a worker's memory beyond its libraries over the scan in float32, worst case, {what}",
            "<= 3",
        ),
        *(Figure(f"preprocessing_peak_{case}", ratio, "", f"the same, {case}") for case, ratio in peaks.items()),
        Figure(
            "preprocessing_worker_base", values["base"] / MIB, "MiB", "resident memory of a worker before its scans"
        ),
    ]


def _dicom_figures(folder: Path, quick: bool) -> list[Figure]:
    shape = (30, 64, 64) if quick else _LARGE_SHAPE
    _write_series(folder, np.tile(make_scan(1, (shape[0] // 2, shape[1] // 2, shape[2] // 2)), (2, 2, 2)))
    values = run_child("benchmarks.preprocessing", ["dicom", str(folder)])
    what = f"a series of {' x '.join(map(str, shape))} int16, not compressed"
    return [
        Figure("dicom_over_itk", values["ratio"], "", f"processor time to find and read {what}, over ITK's", "<= 1.5"),
        Figure("dicom_seconds", values["seconds"], "s", f"processor time to find and read {what}"),
        Figure("dicom_headers", values["headers"], "s", "the same to find it, from its headers alone"),
    ]


def _write_series(folder: Path, scan: np.ndarray) -> None:
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(scan):
        image = sitk.GetImageFromArray(plane)
        tags = {
            **{"0008|0060": "CT", "0008|0018": f"1.2.3.{index + 1}", "0020|000d": "1.2", "0020|000e": "1.2.3"},
            **{"0020|0032": f"0\\0\\{index}", "0020|0037": "1\\0\\0\\0\\1\\0"},
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{index:04d}.dcm"))
        writer.Execute(image)


def _write(path: Path, scan: np.ndarray, spacing: tuple[float, float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(scan)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path), True)


def _write_copies(folder: Path, scan: np.ndarray, count: int) -> None:
    first = folder / "scan_0.nii.gz"
    _write(first, scan, _SPACING)
    for number in range(1, count):
        shutil.copyfile(first, folder / f"scan_{number}.nii.gz")


def _timed(task: tuple[Scan, str]) -> tuple[float, float, float]:
    """Preprocesses one scan as a worker does; returns when that began and ended, and the processor time it took."""
    scan, output = task
    started, processor = time.monotonic(), time.process_time()
    preprocess([scan], Path(output), spacing=_RATE_TARGET, crop_size=_CROP, processes=1, progress=False)
    return started, time.monotonic(), time.process_time() - processor


def _rate(folder: Path, workers: int) -> dict[str, float]:
    """Seconds per scan from the first scan's start to the last one's end."""
    scans, _ = find_scans([str(folder)], "ct")
    output = str(folder.parent / f"stored_{workers}")
    called = time.monotonic()
    times = []
    for _, outcome in run_tasks(_timed, [(scan, output) for scan in scans], workers):
        if isinstance(outcome, Exception):
            raise outcome
        times.append(outcome)
    shutil.rmtree(output)
    started, ended = min(t[0] for t in times), max(t[1] for t in times)
    return {
        "seconds_per_scan": (ended - started) / len(scans),
        "processor_per_scan": sum(t[2] for t in times) / len(scans),
        "startup": started - called,
    }


def _peaks_of(folder: Path) -> dict[str, Any]:
    """Bytes by which preprocessing the scan raised this process's memory, per case, and those it had before."""
    small = folder.parent / "small"
    _write(small / "small.nii.gz", make_scan(0, (24, 32, 32)), _LARGE_SPACING)
    peaks, bases = {}, []
    for case, (modality, spacing) in _PEAK_CASES.items():
        _preprocess(small, modality, spacing)  # loads what is loaded late
        bases.append(forget_peak())
        _preprocess(folder, modality, spacing)
        peaks[case] = peak() - bases[-1]
    return {"peaks": peaks, "base": bases[0]}


def _preprocess(folder: Path, modality: str, spacing: str | tuple[float, float, float]) -> None:
    output = folder.parent / "stored"
    scans, _ = find_scans([str(folder)], modality)
    preprocess(scans, output, spacing=spacing, crop_size=_CROP, processes=1, progress=False)
    shutil.rmtree(output)


def _stages(folder: Path) -> dict[str, float]:
    """Processor seconds of the three stages (medians), and bytes read over the size of the file."""
    scans, _ = find_scans([str(folder)], "ct")
    output = folder.parent / "stages"
    seconds: dict[str, list[float]] = {"read": [], "prepare": [], "write": []}
    reads = []
    for scan in scans:
        before = bytes_read()
        marks = [time.process_time()]
        read_geometry(scan)  # as for the median spacing
        array, spacing, _ = read_scan(scan)
        reads.append((bytes_read() - before) / Path(scan.files[0]).stat().st_size)
        marks.append(time.process_time())
        prepared = preprocess_without_plan(array, spacing, scan.is_ct, _RATE_TARGET)
        marks.append(time.process_time())
        write_volume(output / f"{scan.identifier}.b2nd", prepared.data, _record(prepared), _CROP)
        marks.append(time.process_time())
        for stage, start, end in zip(seconds, marks[:-1], marks[1:], strict=True):
            seconds[stage].append(end - start)
    shutil.rmtree(output)
    return {stage: median(values) for stage, values in seconds.items()} | {"reads": median(reads)}


def _dicom(folder: Path) -> dict[str, float]:
    """Processor seconds to find and to read a series, also over those that ITK takes for it; they take turns."""
    ratios, seconds, headers = [], [], []
    for number in range(6):
        start = time.process_time()
        (uid,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        theirs = sitk.GetArrayFromImage(image).astype(np.float32)
        middle = time.process_time()
        ((scan,), _) = find_scans([str(folder)])
        found = time.process_time()
        ours, _, _ = read_scan(scan)
        end = time.process_time()
        if not np.array_equal(ours[0], theirs):
            raise ValueError("the two readers differ")
        if number:  # the first one loads what is loaded late
            ratios.append((end - middle) / (middle - start))
            seconds.append(end - middle)
            headers.append(found - middle)
    return {"ratio": median(ratios), "seconds": median(seconds), "headers": median(headers)}


def _record(prepared: PreprocessedScan) -> dict[str, Any]:
    return {
        "name": "scan",
        "source": "benchmark",
        "spacing": list(prepared.spacing),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "is_ct": [True],
    }


def main() -> None:
    """Runs one measurement, as a child of `measure`."""
    what, folder, *rest = sys.argv[1:]
    if what == "rate":
        values = _rate(Path(folder), int(rest[0]))
    else:
        values = {"stages": _stages, "peaks": _peaks_of, "dicom": _dicom}[what](Path(folder))
    print(json.dumps(values))


if __name__ == "__main__":
    main()
