"""A control for fine-tuning: a checkpoint whose weights are shuffled within each tensor.

python -m benchmarks.shuffled_encoder CHECKPOINT SHUFFLED [--seed N]

Sizes and distributions of the weights stay, what they have learned goes. If a training from it is as good as one from
the checkpoint, what helped was not knowledge.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from torch import Tensor

from nnunetv2_pgl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("shuffled", metavar="SHUFFLED", help="file to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    try:
        checkpoint = load_checkpoint(arguments.checkpoint)
        weights = shuffled(checkpoint.encoder_weights, arguments.seed)
        pgl = {**checkpoint.pgl, "shuffled": arguments.seed}
        save_checkpoint(replace(checkpoint, encoder_weights=weights, decoder_weights={}, pgl=pgl), arguments.shuffled)
    except (CheckpointError, OSError) as error:
        sys.exit(f"benchmarks.shuffled_encoder: {error}")


def shuffled(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Each tensor with its values in another order; tensors that share memory go on sharing it."""
    generator = torch.Generator().manual_seed(seed)
    done: dict[int, Tensor] = {}
    for value in weights.values():
        if value.data_ptr() not in done:
            order = torch.randperm(value.numel(), generator=generator)
            done[value.data_ptr()] = value.flatten()[order].view(value.shape)
    return {key: done[value.data_ptr()] for key, value in weights.items()}


if __name__ == "__main__":
    main()
