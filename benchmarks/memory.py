"""Memory that a pre-training step takes on a GPU: the most there is at a time, counted without one.

    python -m benchmarks.memory [-patch 16 96 96]

Makes a whole step, as a run does, of the recommended and the paper's settings in half precision, with tensors that hold
no values (`benchmarks.fake_gpu`), and gives its peak: weights, gradients, optimiser, the crops of this step and the
next, views and activations. A real GPU adds the CUDA context (about 0.5 GiB), the workspaces of its convolutions and
the gaps of its allocator.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from benchmarks.fake_gpu import batch_on_gpu, fake_gpu, state_on_gpu
from pretraining.settings.config import PretrainConfig, recommended
from pretraining.training.step import Stepper

GIB = 2**30
BATCHES = (8, 16, 32, 64, 128)
SETTINGS = {"recommended": recommended(), "--paper": PretrainConfig(datasets=())}


def peak_of_step(config: PretrainConfig) -> int:
    """Bytes of a step once the optimiser has its state; the whole batch is one part."""
    with fake_gpu() as watch:
        state = state_on_gpu(config)
        step = Stepper(config, 2, 0, state, state.objective, 0)
        for parameter in state.objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        state.optimizer.step()  # makes its state
        state.optimizer.zero_grad(set_to_none=True)
        batch, _ahead = (batch_on_gpu(config, config.batch_size) for _ in range(2))
        watch.forget()
        step(0, iter([batch]))
    return watch.peak


def main() -> None:
    """Prints the table of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-patch", nargs=3, type=int, default=(16, 96, 96), metavar=("Z", "Y", "X"))
    size = tuple(parser.parse_args().patch)
    print("| pairs per step (`-b`) |", *(f"{batch} |" for batch in BATCHES))
    for name, config in SETTINGS.items():
        views = replace(config.views, size=size)
        peaks = (peak_of_step(replace(config, views=views, batch_size=batch)) for batch in BATCHES)
        print(f"| {name}, GiB |", *(f"{peak / GIB:.2f} |" for peak in peaks), flush=True)


if __name__ == "__main__":
    main()
