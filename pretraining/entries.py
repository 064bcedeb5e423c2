"""Where the commands that train begin: OpenMP reads its variables when torch is imported, so they are set before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = "3000"  # of GNU's OpenMP, which pip's torch has on Linux; docs/performance.md compares others


def pretrain() -> None:
    """``pgl_pretrain`` and ``torchrun -m pretraining``."""
    limit_openmp_spinning()
    with _interrupted("pgl_pretrain: interrupted before it began"):  # importing torch takes seconds
        from pretraining.cli import pretrain_entry
    pretrain_entry()


def preview() -> None:
    """``pgl_preview``."""
    limit_openmp_spinning()
    with _interrupted("pgl_preview: interrupted"):
        from pretraining.cli import preview_entry

        preview_entry()


def demo() -> None:
    """``pgl_demo``."""
    limit_openmp_spinning()
    with _interrupted("pgl_demo: interrupted; run it again with --overwrite"):
        from pretraining.demo import demo_entry

        demo_entry()


def compare() -> None:
    """``pgl_compare``."""
    limit_openmp_spinning()
    with _interrupted("pgl_compare: interrupted; run it again to continue"):
        from pretraining.comparison.command import compare_entry

        compare_entry()


@contextmanager
def _interrupted(line: str) -> Iterator[None]:
    """Ends with one line after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(line)


def limit_openmp_spinning() -> None:
    """Lets threads that wait for others of this process, or of the commands it runs, sleep soon.

    By default they spin a hundred times as long, on cores that other processes, or the very thread they wait for, could
    use.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
