"""Variants of the objective, one short pre-training each, measured on held-out scans: docs/results/anatomy.md.

python -m benchmarks.objective_arms nce pgl-zeros nce-batch -d 4 --test docs/results/anatomy/hippocampus_test.txt \
    -patch 32 40 32 -o FOLDER

Writes FOLDER/ARM.json, the figures of `benchmarks.anatomy`, and FOLDER/ARM.pth at full width. An arm that is there is
left out: another machine can continue. The network is a narrow ResNet, which finds the direction of an effect in
minutes, unless --full is given. Networks, alignment, views, optimiser and schedules are those of `pgl_pretrain`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.anatomy import all_but, table
from benchmarks.anatomy_figures import measure
from benchmarks.held_out_labels import labels_of
from nnunetv2_pgl.checkpoint import save_checkpoint
from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.files import write_text
from nnunetv2_pgl.networks import PaddingName, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import autocast_type
from pretraining.alignment import align
from pretraining.data import Volume
from pretraining.objectives import PGL, local_consistency_loss
from pretraining.settings.config import PretrainConfig, recommended
from pretraining.settings.values import names_in
from pretraining.training.encoder_checkpoint import make_checkpoint
from pretraining.training.loading import PairLoader
from pretraining.training.optimisation import make_optimizer
from pretraining.training.pool import median_spacing, prepare_volumes
from pretraining.training.sampler import PairSampler
from pretraining.training.state import TrainingState
from pretraining.training.step import Stepper
from pretraining.views import GeometryBatch, ViewSettings
from pretraining.views.pairs import NoFlip

_NARROW: dict[str, Sequence[int]] = {"blocks": (2, 2, 2, 2), "widths": (8, 16, 32, 64)}
_WARMUP = 0.05


@dataclass(frozen=True)
class Arm:
    """What is varied.

    Attributes:
        loss: "pgl", or cross-entropy with negatives from the "pair" or from the whole "batch".
        padding: Of the encoder.
        no_flip: See `ViewSettings`; None: all axes.
        temperature: Of the similarities.
        ignored: Negatives nearer than so many cells are left out.
        consistency: Weight of PGL's loss in addition.
        neighbours: Weight of an agreement of both views about the similarities to cells of the other pairs (NeCo).
        inside: Only places brighter than the mean of their scan ask (in CT: inside the body); all are candidates.
        mirror: The place on the other side of the body, about the middle of the scan, is right as well.
        rate, decay: Peak learning rate; decay of the target path at the start.
    """

    loss: Literal["pgl", "pair", "batch"] = "pair"
    padding: PaddingName = "replicate"
    no_flip: NoFlip | None = None
    temperature: float = 0.1
    ignored: float = 0.0
    consistency: float = 0.0
    neighbours: float = 0.0
    inside: bool = False
    mirror: bool = False
    rate: float = 2e-3
    decay: float = 0.9


ARMS = {
    "nce": Arm(),
    "nce-zeros": Arm(padding="zeros"),
    "pgl": Arm("pgl"),
    "pgl-zeros": Arm("pgl", "zeros"),
    "nce-batch": Arm("batch"),
    "nce-lateral": Arm(no_flip="lateral"),
    "nce-lateral-zeros": Arm(padding="zeros", no_flip="lateral"),
    "pgl-lateral": Arm("pgl", no_flip="lateral"),
    "pgl-zeros-lateral": Arm("pgl", "zeros", no_flip="lateral"),
    "nce-ignored": Arm(ignored=1.0),
    "nce-pgl": Arm(consistency=1.0),
    "nce-neighbours": Arm(neighbours=1.0),
    "nce-inside": Arm(inside=True),
    "nce-mirror": Arm(mirror=True),
    "nce-lateral-ignored": Arm(no_flip="lateral", ignored=1.0),
    "nce-lateral-pgl": Arm(no_flip="lateral", consistency=1.0),
    "nce-lateral-neighbours": Arm(no_flip="lateral", neighbours=1.0),
    "nce-lateral-inside": Arm(no_flip="lateral", inside=True),
    "nce-lateral-rate-0.004": Arm(no_flip="lateral", rate=4e-3),
    **{f"nce-temperature-{t}": Arm(temperature=t) for t in (0.05, 0.2, 0.5)},
    **{f"nce-rate-{rate}": Arm(rate=rate) for rate in (5e-4, 1e-3, 4e-3)},
    **{f"nce-decay-{decay}": Arm(decay=decay) for decay in (0.0, 0.5, 0.99, 0.996)},
    **{f"nce-lateral-decay-{decay}": Arm(no_flip="lateral", decay=decay) for decay in (0.0, 0.5)},
}


class Variant(PGL):
    """PGL with the loss of an arm."""

    def __init__(self, encoder: ResNet50Encoder, arm: Arm, view_size: Sequence[int], hidden: int):
        precision = autocast_type(torch.device("cpu"))
        super().__init__(encoder, view_size, hidden, loss=self.compare, precision=precision)
        self.arm = arm
        self.lateral: Sequence[tuple[int, int] | None] = ()  # of the scans of the coming step, see `_lateral`
        self._inside = self._steps = self._starts = self._overlap = torch.zeros(0)

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> Any:
        """PGL's, after noting which places are bright, how far they lie apart in cells, and where in the scan."""
        starts, ends = geometries.starts, geometries.starts + geometries.sizes
        half = len(starts) // 2
        self._starts = torch.maximum(starts[:half], starts[half:])
        self._overlap = torch.minimum(ends[:half], ends[half:]) - self._starts
        self._steps = (self._overlap / geometries.sizes[:half]).float()
        if self.arm.inside:
            cells = F.avg_pool3d(views, [round(stride) for stride in self.grids[-1].stride])
            partners = GeometryBatch(
                starts.roll(half, 0), geometries.sizes.roll(half, 0), geometries.flips.roll(half, 0)
            )
            places, _ = align(cells, geometries, partners, self.grids[-1])
            self._inside = (places[:half, 0] + places[half:, 0]).flatten(1) > 0
        return super().forward(views, geometries, generator)

    def compare(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Loss of one direction."""
        arm = self.arm
        if arm.loss == "pgl":
            return local_consistency_loss(prediction, target)
        queries, keys = (F.normalize(x.float().flatten(2), dim=1).transpose(1, 2) for x in (prediction, target))
        if arm.loss == "batch":
            logits = queries.flatten(0, 1) @ keys.flatten(0, 1).T / arm.temperature
            loss = F.cross_entropy(logits, torch.arange(len(logits)))
        else:
            logits = queries @ keys.transpose(1, 2) / arm.temperature
            if arm.ignored:
                logits = logits.masked_fill(self._near(prediction.shape[2:]), -1e30)
            found = logits.log_softmax(dim=2)
            losses = -found.diagonal(dim1=1, dim2=2)
            if arm.mirror:
                losses = -torch.logaddexp(-losses, self._across(found, prediction.shape[2:]))
            weights = self._inside.float() if arm.inside else torch.ones_like(losses)
            loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        if arm.consistency:
            loss = loss + arm.consistency * local_consistency_loss(prediction, target)
        if arm.neighbours:
            loss = loss + arm.neighbours * _disagreement(queries, keys, arm.temperature)
        return loss

    def _near(self, size: torch.Size) -> Tensor:
        """(B, n, n) bool: other places nearer than the arm ignores."""
        cells = torch.stack(torch.unravel_index(torch.arange(size.numel()), tuple(size)), dim=1).float()
        apart = ((cells[None, :, None] - cells[None, None]) * self._steps[:, None, None]).norm(dim=-1)
        return (apart < self.arm.ignored) & ~torch.eye(size.numel(), dtype=torch.bool)

    def _across(self, found: Tensor, size: torch.Size) -> Tensor:
        """(B, n): log probability of the place across the body; -1e30 where it is outside the overlap or the same."""
        cells = torch.stack(torch.unravel_index(torch.arange(size.numel()), tuple(size)))
        rows = []
        for pair, lateral in enumerate(self.lateral):
            if lateral is None:
                raise PGLError("an arm with both sides needs scans whose headers state which axis is lateral")
            axis, length = lateral
            start, bin_size = self._starts[pair, axis], self._overlap[pair, axis] / size[axis]
            centres = start + (cells[axis] + 0.5) * bin_size
            wanted = ((length - centres - start) / bin_size).floor().long()
            other = cells.clone()
            other[axis] = wanted.clamp(0, size[axis] - 1)
            there = found[pair].gather(1, ((other[0] * size[1] + other[1]) * size[2] + other[2]).unsqueeze(1))[:, 0]
            rows.append(there.masked_fill((other[axis] != wanted) | (wanted == cells[axis]), -1e30))
        return torch.stack(rows)


def _disagreement(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of both views' similarities to the cells of all other pairs, the target's twice as sharp."""
    losses = []
    for pair in range(len(queries)):
        others = torch.cat([keys[number] for number in range(len(keys)) if number != pair])
        wanted = (keys[pair] @ others.T / (temperature / 2)).softmax(dim=1)
        losses.append(-(wanted * (queries[pair] @ others.T / temperature).log_softmax(dim=1)).sum(dim=1).mean())
    return torch.stack(losses).mean()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("-d", nargs="+", required=True, metavar="ID", help="datasets or folders; the first has labels")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="names of the scans to measure on")
    parser.add_argument("-exclude", type=Path, metavar="FILE", help="names of scans to leave out, such as a test set")
    parser.add_argument("-patch", nargs=3, type=int, required=True, metavar=("Z", "Y", "X"))
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=480, metavar="N")
    parser.add_argument("--pairs", type=int, default=4, metavar="N", help="per step")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--full", action="store_true", help="the paper's widths")
    parser.add_argument("--no_flip", choices=("lateral",), help="of the pairs that are measured on")
    arguments = parser.parse_args()
    try:
        arguments.o.mkdir(parents=True, exist_ok=True)
        for name in arguments.arms:
            if not (arguments.o / f"{name}.json").exists():
                _run(name, arguments)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"benchmarks.objective_arms: {error}"))


def _run(name: str, given: argparse.Namespace) -> None:
    """Pre-trains and measures one arm."""
    arm, names = ARMS[name], names_in(given.test, "--test")
    views = ViewSettings(tuple(given.patch), no_flip=arm.no_flip)
    left_out = names_in(given.exclude, "-exclude") if given.exclude else ()
    config = replace(recommended(), datasets=tuple(given.d), exclude=(*names, *left_out), views=views)
    config = replace(config, method="pgl" if arm.loss == "pgl" else "pgl_nce", padding=arm.padding, strides=(8, 8, 8))
    config = replace(config, batch_size=given.pairs, learning_rate=arm.rate, target_decay=arm.decay, seed=given.seed)
    volumes, _ = prepare_volumes(config, 2)
    size = {} if given.full else _NARROW
    torch.manual_seed(given.seed)
    encoder = ResNet50Encoder(1, (8, 8, 8), config.norm, padding=arm.padding, **size)  # type: ignore[arg-type]
    objective = Variant(encoder, arm, given.patch, 4096 if given.full else 1024).train()
    started = time.perf_counter()
    loss = _train(objective, volumes, config, given.steps, name)
    seconds = time.perf_counter() - started
    if given.full:
        is_ct = all(all(volume.is_ct) for volume in volumes)
        made = make_checkpoint(objective, config, median_spacing(volumes), is_ct, len(volumes), {"loss": loss})
        save_checkpoint(made, given.o / f"{name}.pth")
    torch.manual_seed(given.seed + 1)
    untrained = ResNet50Encoder(1, (8, 8, 8), config.norm, padding=arm.padding, **size)  # type: ignore[arg-type]
    labelled = replace(config, datasets=tuple(given.d[:1]), exclude=())
    held_out = replace(labelled, exclude=all_but(labelled, names), spacing=median_spacing(volumes))
    held_out = replace(held_out, views=replace(views, no_flip=given.no_flip))
    tested, _ = prepare_volumes(held_out, 2)
    figures = measure(encoder, untrained, tested, held_out, labelled=labels_of(tested, held_out))
    settings = {**vars(arm), "steps": given.steps, "pairs": given.pairs, "seed": given.seed, "full": given.full}
    write_text(
        given.o / f"{name}.json",
        json.dumps({"arm": settings, "loss": loss, "seconds": seconds, **figures}, indent=1) + "\n",
    )
    print(f"\n{name}{table(figures)}", flush=True)


def _lateral(volume: Volume) -> tuple[int, int] | None:
    """The axis that runs across the body and the scan's length along it, in voxels."""
    axis = volume.lateral_axis
    return None if axis is None else (axis, volume.shape[1:][axis])


def _train(objective: Variant, volumes: Sequence[Volume], config: PretrainConfig, steps: int, name: str) -> float:
    """Makes the steps as `pgl_pretrain` does and returns the mean loss of the last thirty."""
    optimizer = make_optimizer("adamw", objective, config.peak_learning_rate, config.weight_decay)
    state = TrainingState(objective, optimizer)
    step = Stepper(config, steps, round(_WARMUP * steps), state, objective, rank=0)
    sampler = PairSampler(len(volumes), steps, config.batch_size, 1, config.seed)
    loader = PairLoader(volumes, config, sampler, workers=0, device=torch.device("cpu"))
    losses: list[float] = []
    drawn = [_lateral(volumes[scan]) for unit in sampler for _, scan in unit]
    with loader.batches() as batches:
        for number in range(steps):
            objective.lateral = drawn[number * config.batch_size : (number + 1) * config.batch_size]
            losses.append(float(step(number, batches)[0][0]))
            if not math.isfinite(losses[-1]):
                raise PGLError(f"{name}: the loss or its gradient is not finite in step {number}")
            if number % 60 == 59:
                print(f"{name}: step {number + 1} of {steps}, loss {fmean(losses[-60:]):.3f}", flush=True)
    return fmean(losses[-30:])


if __name__ == "__main__":
    main()
