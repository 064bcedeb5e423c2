"""Measures on a GPU what ``docs/performance.md`` has no figures for, the most wanted first.

    python -m benchmarks.gpu --seconds 600 --out FOLDER [--parts PART ...]

Each part has its share of the time; what it leaves goes to the parts after it. One that takes longer is ended, one that
fails says why, and the next one begins. FOLDER/gpu.json and FOLDER/gpu.txt are written again after each figure, so that
a run that is cut off leaves all that was measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.running import Part, Results, run_parts
from benchmarks.report import Settings

PARTS = {
    "step": Part("benchmarks.step", 30),
    "largest_batch": Part("benchmarks.gpu.largest_batch", 10),
    "schedule": Part("benchmarks.gpu.schedule", 25),
    "recommended": Part("benchmarks.gpu.recommended", 8),
    "memory": Part("benchmarks.gpu.memory", 12),
    "kernels": Part("benchmarks.gpu.kernels", 8),
    "finetuning": Part("benchmarks.finetuning", 25),
    "graphs": Part("benchmarks.gpu.graphs", 8),
    "depthwise": Part("benchmarks.gpu.depthwise", 8),
    "compile": Part("benchmarks.gpu.compiled", 30),
    "finetuning_compiled": Part("benchmarks.gpu.compiled_finetuning", 40),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, metavar="N", help="for all parts together")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the figures; created")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, help="where the scratch folder is made (default: the system's)")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: shows that it works, measures nothing")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu --quick shows that the parts work")
    os.environ.setdefault("nnUNet_compile", "f")  # the parts on compilation switch it on
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the part at work ends with it
    results = Results(arguments.out)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        settings = Settings(torch.device(arguments.device), Path(folder), arguments.quick)
        run_parts({name: PARTS[name] for name in arguments.parts}, settings, arguments.seconds, results)
    sys.exit(1 if results.errors else 0)


if __name__ == "__main__":
    main()
