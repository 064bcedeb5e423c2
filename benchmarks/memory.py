"""Memory of a pre-training step: what autograd keeps per pair, counted, and what the networks need.

    python -m benchmarks.memory [-patch 16 96 96]

Counts the bytes of every tensor that autograd saves for the backward pass under bfloat16 autocast (each storage once,
parameters left out), so it needs no GPU. On a GPU add the CUDA context (about 0.5 GB) and convolution workspaces.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import PGL
from pretraining.views import GeometryBatch, sample_view_pair

GIB = 2**30


def bytes_saved(pgl: PGL, view_size: tuple[int, int, int], pairs: int) -> int:
    """Bytes that autograd keeps for one step of ``pairs`` pairs."""
    rng = np.random.default_rng(0)
    drawn = [sample_view_pair([4 * n for n in view_size], view_size, rng) for _ in range(pairs)]
    geometries = GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in drawn])
    own = {p.untyped_storage().data_ptr() for p in pgl.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        pgl(torch.randn(2 * pairs, 1, *view_size), geometries)
    return sum(seen.values())


def main() -> None:
    """Prints a table of batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-patch", nargs=3, type=int, default=(16, 96, 96), metavar=("Z", "Y", "X"))
    view_size = tuple(parser.parse_args().patch)
    pgl = PGL(ResNet50Encoder(), view_size, precision=torch.bfloat16)
    one, two = (bytes_saved(pgl, view_size, pairs) for pairs in (1, 2))
    per_pair = two - one
    online = sum(p.numel() for p in pgl.parameters() if p.requires_grad)
    target = sum(p.numel() for p in pgl.parameters() if not p.requires_grad)
    # Weights of both paths in float32, one gradient and one momentum (LARS, SGD) for the online path.
    fixed = 4 * (3 * online + target) + (one - per_pair)
    print(f"views of {view_size}: {per_pair / 2**20:.0f} MiB per pair, {fixed / GIB:.2f} GiB whatever the batch")
    for batch in (4, 8, 16, 32, 64, 128):
        print(f"  {batch:4d} pairs: {(fixed + batch * per_pair) / GIB:6.1f} GiB")


if __name__ == "__main__":
    main()
