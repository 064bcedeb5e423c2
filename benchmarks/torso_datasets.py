"""Writes generated CT torsos as two nnU-Net datasets, for comparisons like docs/results/torso.md (simpler bodies).

python -m benchmarks.torso_datasets            # Dataset511_TorsoUnlabelled and Dataset512_Torso in $nnUNet_raw
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2.paths import nnUNet_raw

from pretraining.demo.datasets import write_labelled_dataset, write_unlabelled_dataset


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Generated CT torsos with 7 organs: one dataset without labels, one with."
    )
    parser.add_argument("--unlabelled", type=int, default=120, metavar="N", help="scans without labels (default: 120)")
    parser.add_argument("--train", type=int, default=50, metavar="N", help="labelled scans (default: 50)")
    parser.add_argument("--test", type=int, default=30, metavar="N", help="labelled test scans (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raw = Path(nnUNet_raw)
    print(write_unlabelled_dataset(raw, 511, "TorsoUnlabelled", arguments.unlabelled, arguments.seed))
    print(write_labelled_dataset(raw, 512, "Torso", arguments.train, arguments.test, arguments.seed))


if __name__ == "__main__":
    main()
