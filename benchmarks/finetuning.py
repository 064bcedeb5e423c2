"""Fine-tuning and inference: ``nnUNetTrainerPGL`` against nnU-Net's default network and ResEnc-L, on one plan.

nnU-Net's own planners plan a CT dataset whose scans have the size of the patch, so that all three networks get the
same patch, and each the stages its planner gives it. Trainers, losses, optimisers and predictors are nnU-Net's. An
iteration is ``train_step`` on a batch in memory (forward, loss, backward, clipping, optimiser); a case is what
``nnUNetPredictor`` does between preprocessing and export. On a CPU nnU-Net computes in float32 and `PGLSegmenter` in
bfloat16 where the CPU has it; there the figures ending in ``float32`` say what it takes without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.nnunet_networks import BATCH, NETWORKS, Triple, make_batch, make_plans, make_trainer, nnunet_folders
from benchmarks.peaks import peak_of
from benchmarks.report import Figure, Settings, alternating, paired_ratio, synchronise

Seconds = dict[str, list[float]]
Calls = dict[str, Callable[[], object]]

_FLOAT32 = "pgl_float32"
_WORDS = {
    "pgl": "nnUNetTrainerPGL",
    _FLOAT32: "nnUNetTrainerPGL without bfloat16",
    "default": "nnU-Net's default",
    "resenc_l": "ResEnc-L",
}


@dataclass(frozen=True)
class _Extent:
    """How much is measured.

    Attributes:
        patch: Size of a patch (z, y, x).
        case: Size of the scan that is segmented.
        mirroring: Whether the predictor mirrors, as nnU-Net does by default (8 forward passes a patch).
        rounds, warmup: Of the measurement.
    """

    patch: Triple
    case: Triple
    mirroring: bool
    rounds: int
    warmup: int


def measure(settings: Settings) -> Iterator[Figure]:
    """Iterations, cases, patches and memory of the three networks."""
    extent = extent_of(settings)
    patch, case = (" x ".join(map(str, size)) for size in (extent.patch, extent.case))
    mirrored = "mirrored" if extent.mirroring else "not mirrored"
    with nnunet_folders(settings.folder):
        plans = {name: make_plans(planner, extent.patch) for name, (_, planner) in NETWORKS.items()}
        torch.backends.cudnn.benchmark = settings.device.type == "cuda"  # as nnUNetv2_train does
        trainers = {name: make_trainer(name, plans[name], settings.device) for name in NETWORKS}
        rounds, warmup, limit = extent.rounds, extent.warmup, settings.share(0.2)
        seconds = alternating(_iterations(trainers), rounds, warmup, limit=limit)
        words = f"training iteration, {BATCH} patches of {patch}"
        yield from _medians("finetune_seconds_per_iteration", seconds, words)
        yield from _ratios("finetune", seconds)
        seconds = alternating(_cases(trainers, extent), rounds, 1, limit=limit)
        words = f"prediction of {case} voxels in such patches, {mirrored}"
        yield from _medians("inference_seconds_per_case", seconds, words)
        yield from _ratios("inference", seconds)
        seconds = alternating(_patches(trainers), rounds, warmup, limit=limit)
        yield from _medians("inference_seconds_per_patch", seconds, "forward pass of one patch")
        del trainers
        names = ["pgl"] if settings.quick else list(NETWORKS)  # a child takes seconds to import nnU-Net
        peak = _peak_on_gpu if settings.device.type == "cuda" else _peak_in_a_child
        for name in names:
            gib = peak(name, plans[name], settings.device)
            words = f"{_WORDS[name]}: peak memory of training"
            yield Figure(f"finetune_peak_memory_gib_{name}", gib, "GiB", words)


def extent_of(settings: Settings) -> _Extent:
    """A CT patch as nnU-Net plans it for 8 GB on a GPU; on a CPU one of about a seventh of its voxels."""
    if settings.quick:
        return _Extent((16, 32, 32), (16, 32, 48), False, 1, 1)
    if settings.device.type == "cuda":
        return _Extent((64, 192, 160), (96, 288, 240), True, 15, 5)
    return _Extent((32, 96, 96), (32, 96, 144), False, 2, 1)


def iteration(trainer: nnUNetTrainer) -> Callable[[], object]:
    """One ``train_step``; the caller's clock stops when the device is done."""
    batch = make_batch(trainer)
    trainer.network.train()

    def run() -> None:
        trainer.train_step(batch)
        synchronise(trainer.device)

    return run


def _iterations(trainers: dict[str, nnUNetTrainer]) -> Calls:
    return _with_float32(trainers, {name: iteration(trainer) for name, trainer in trainers.items()})


def _cases(trainers: dict[str, nnUNetTrainer], extent: _Extent) -> Calls:
    """Sliding-window prediction of one preprocessed scan."""
    image = torch.randn(1, *extent.case, generator=torch.Generator().manual_seed(1))
    predictors = {name: _predictor(trainer, extent.mirroring) for name, trainer in trainers.items()}

    def predict(predictor: nnUNetPredictor) -> Callable[[], object]:
        return lambda: predictor.predict_logits_from_preprocessed_data(image)

    return _with_float32(trainers, {name: predict(predictor) for name, predictor in predictors.items()})


def _predictor(trainer: nnUNetTrainer, mirroring: bool) -> nnUNetPredictor:
    """As ``nnUNetv2_predict`` makes it: no deep supervision, not compiled, weights loaded for each case."""
    trainer.set_deep_supervision_enabled(False)
    network = _plain(trainer)
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=trainer.device, allow_tqdm=False)
    weights = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [weights],
        trainer.dataset_json,
        type(trainer).__name__,
        (0, 1, 2),
    )
    return predictor


def _patches(trainers: dict[str, nnUNetTrainer]) -> Calls:
    """The bare forward pass of one patch, after `_cases` has switched deep supervision off."""

    def forward(trainer: nnUNetTrainer) -> Callable[[], object]:
        patch = torch.randn(1, 1, *trainer.configuration_manager.patch_size).to(trainer.device)
        network = _plain(trainer).eval()

        def run() -> None:
            with torch.inference_mode(), torch.autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):
                network(patch)
            synchronise(trainer.device)

        return run

    return _with_float32(trainers, {name: forward(trainer) for name, trainer in trainers.items()})


def _with_float32(trainers: dict[str, nnUNetTrainer], functions: Calls) -> Calls:
    """Adds the PGL function with bfloat16 switched off, where it is on."""
    segmenter = _plain(trainers["pgl"])
    if not (segmenter.cpu_bfloat16 and trainers["pgl"].device.type == "cpu"):
        return functions

    def run() -> None:
        segmenter.cpu_bfloat16 = False
        functions["pgl"]()
        segmenter.cpu_bfloat16 = True

    return {"pgl": functions["pgl"], _FLOAT32: run, **functions}


def _plain(trainer: nnUNetTrainer) -> Any:
    """The network without torch.compile's wrapper."""
    return getattr(trainer.network, "_orig_mod", trainer.network)


def _peak_on_gpu(name: str, plans: dict[str, Any], device: torch.device) -> float:
    """GiB that the second of two iterations allocates at most, weights and momenta included."""
    before = torch.cuda.memory_allocated(device)
    iterate = iteration(make_trainer(name, plans, device))
    iterate()
    return (peak_of(iterate, device) - before) / 2**30


def _peak_in_a_child(name: str, plans: dict[str, Any], device: torch.device) -> float:
    """GiB by which an iteration raises the resident memory of a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, name, plans, torch.get_num_threads()).result()


def _peak_here(name: str, plans: dict[str, Any], threads: int) -> float:
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as void, redirect_stdout(void):
        before = _resident("VmRSS")
        iteration(make_trainer(name, plans, torch.device("cpu")))()
    return (_resident("VmHWM") - before) / 2**30


def _resident(field: str) -> float:
    """Bytes, from the kernel's record of this process; nan where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((1024.0 * float(line.split()[1]) for line in lines if line.startswith(field)), float("nan"))


def _medians(key: str, seconds: Seconds, words: str) -> Iterator[Figure]:
    for name, values in seconds.items():
        yield Figure(f"{key}_{name}", median(values), "s", f"{_WORDS[name]}: {words}")


def _ratios(part: str, seconds: Seconds) -> Iterator[Figure]:
    """Against the peers, with a goal for each part; against the same precision where that differs."""
    goals = {("finetune", "resenc_l"): "<= 1.0", ("inference", "default"): "<= 1.0"}
    for ours, suffix in (("pgl", ""), (_FLOAT32, "_float32")):
        for peer in ("default", "resenc_l"):
            if ours in seconds:
                value = paired_ratio(seconds, ours, peer)
                goal = goals.get((part, peer), "") if ours == "pgl" else ""
                yield Figure(f"{part}_over_{peer}{suffix}", value, "", f"{_WORDS[ours]} over {_WORDS[peer]}", goal)
