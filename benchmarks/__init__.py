"""Measurements behind the numbers in README and docs; run as ``python -m benchmarks.NAME``."""
