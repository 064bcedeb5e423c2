"""Scans: find them, preprocess them, store them, read crops of them."""

from pretraining.data.discovery import find_scans, leave_out, resolve_source, with_joint_channels
from pretraining.data.planned_preprocessing import PlannedPreprocessing
from pretraining.data.preprocessing import preprocess
from pretraining.data.reading import read_geometry, read_scan
from pretraining.data.scan import BadScan, DataError, Scan, Skipped
from pretraining.data.store import Volume

__all__ = [
    "BadScan",
    "DataError",
    "PlannedPreprocessing",
    "Scan",
    "Skipped",
    "Volume",
    "find_scans",
    "leave_out",
    "preprocess",
    "read_geometry",
    "read_scan",
    "resolve_source",
    "with_joint_channels",
]
