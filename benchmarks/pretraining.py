"""Is pre-training bound by the network alone? Measures each goal of ``docs/performance.md`` side by side in one run.

    python -m benchmarks.pretraining --device cpu|cuda [--json FILE] [--only PART ...] [--quick]

Ratios come from variants that take turns within the run, so that they hold on whatever machine runs them. Nothing else
should run at the same time.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from dataclasses import replace
from pathlib import Path

from pretraining.entries import limit_openmp_spinning

limit_openmp_spinning()  # as the commands do, before torch is imported

import torch  # noqa: E402

from benchmarks.report import Figure, Settings, machine, print_table, write_json  # noqa: E402

PARTS = ("step", "whole_run", "padding", "feeding", "memory_growth", "preprocessing", "scale_out", "finetuning")


def main() -> None:
    """Runs the parts one after the other, printing each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--batch", type=int, metavar="PAIRS", help="pairs per step (default: 16 on a CPU, 128 on a GPU)"
    )
    parser.add_argument("--folder", type=Path, help="where the scratch folder is made (default: the system's)")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: shows that it works, measures nothing")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    about = machine(torch.device(arguments.device))
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        settings = Settings(torch.device(arguments.device), Path(folder), arguments.quick, arguments.batch)
        for part in arguments.only:
            figures += _measured(part, settings)
            if arguments.json:
                write_json(figures, about, arguments.json)


def _measured(part: str, settings: Settings) -> list[Figure]:
    """Runs one part in a new scratch folder."""
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        measure = importlib.import_module(f"benchmarks.{part}").measure
        figures: list[Figure] = list(measure(replace(settings, folder=Path(folder))))
    print(f"\n{part}", flush=True)
    print_table(figures)
    return figures


if __name__ == "__main__":
    main()
