"""What a pre-training survives: kills at random moments, lost processes, long runs.

python -m benchmarks.reliability [--only kills preprocessing soak] [--kills 100] [--epochs 400] [--steps 3000]

Needs Linux; about an hour on two cores, one thread each. Runs of `pgl_pretrain` with a small network, tiny
views and one loading process, in float32. Attempts that are killed are process groups that are ended with SIGKILL, so
moments fall on starting, reading, steps, saving and drawing alike. Exits with 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.kills import kill_preprocessing, kill_training
from benchmarks.soak import soak

_LOSSES = 3
_PREPROCESSING_KILLS = 20


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("kills", "preprocessing", "soak")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="of the training (default: 100)")
    parser.add_argument("--epochs", type=int, default=400, metavar="N", help="of the killed training (default: 400)")
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="of the long run (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    run: dict[str, Callable[[Path], bool]] = {
        "kills": lambda root: kill_training(root, arguments.kills, arguments.epochs, arguments.seed),
        "preprocessing": lambda root: kill_preprocessing(root, _PREPROCESSING_KILLS, arguments.seed),
        "soak": lambda root: soak(root, arguments.steps, _LOSSES),
    }
    good = True
    for part in arguments.only:
        print(f"# {part}", flush=True)
        with tempfile.TemporaryDirectory() as root:
            good &= run[part](Path(root))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
