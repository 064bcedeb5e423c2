"""Whole small runs on the device: continued, short of memory, and as one of several processes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from pretraining.data import Volume
from pretraining.demo.datasets import write_unlabelled_dataset
from pretraining.launching.distributed import Processes
from pretraining.launching.errors import Stopped
from pretraining.launching.stopping import AnyProcess, StopSignals
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training.loop import Runtime, TrainingLoop, train
from pretraining.training.pool import Pool
from pretraining.training.pretrain import pretrain
from pretraining.training.progress import RunLog
from pretraining.training.run_folder import RunFolder
from pretraining.training.step import Stepper
from pretraining.training.synchronised import SynchronisedBatchNorm3d, synchronise_batch_norms
from pretraining.views import ViewSettings
from tests.devices import DEVICE, needs_cuda, needs_device
from tests.planned_networks import small_network

pytestmark = [pytest.mark.gpu, needs_device]

GIB = 2**30
CONFIG = PretrainConfig(
    ("Dataset501_Small",),
    views=ViewSettings((8, 16, 16)),
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    epochs=2,
    batch_size=4,
    pairs_per_epoch=16,
    optimizer="sgd",
    learning_rate=0.1,
    warmup_epochs=0,
    target_decay=0.9,
    hidden_channels=16,
    out_channels=8,
    validation_scans=1,
)


def options(name: str, **changes: Any) -> RunOptions:
    return replace(RunOptions(name, False, DEVICE.type, 1, 1), **changes)


@pytest.fixture
def dataset(folders: Path) -> None:
    write_unlabelled_dataset(folders / "nnUNet_raw", 501, "Small", 4, 0, shape=(12, 24, 24), spacing=(24, 14, 14))


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that cuDNN may choose anew then differ by roundings only."""
    monkeypatch.setattr("pretraining.training.loop.autocast_type", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def losses(name: str) -> list[float]:
    lines = (RunFolder.from_name(name).path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(name: str) -> dict[str, Tensor]:
    return load_checkpoint(RunFolder.from_name(name).final).encoder_weights


@pytest.mark.usefixtures("dataset", "in_float32")
def test_resumed_is_the_uninterrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the midst of the first epoch."""
    pretrain(CONFIG, options("straight"))
    make_step = Stepper.__call__

    def signalled(self: Stepper, number: int, batches: Any) -> Any:
        output = make_step(self, number, batches)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", signalled)
        with pytest.raises(Stopped, match="after step 3 of 4 in epoch 0"):
            pretrain(CONFIG, options("resumed"))
    pretrain(CONFIG, options("resumed", resume=True))
    assert losses("resumed") == pytest.approx(losses("straight"), abs=1e-4)
    resumed = weights("resumed")
    for key, value in weights("straight").items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-4, atol=1e-4, msg=lambda text, k=key: f"{k}: {text}")


@needs_cuda  # on a CPU such a batch is refused before it is tried, which tests/training/test_memory.py tests
@pytest.mark.usefixtures("dataset")
def test_out_of_memory_names_the_largest_batch_that_fits() -> None:
    """And that batch runs. The card plays one of 2 GiB."""
    config = replace(CONFIG, architecture="resnet50", network=None, views=ViewSettings((16, 96, 96)), epochs=1)
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() + 2 * GIB
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        with pytest.raises(PGLError) as caught:
            pretrain(replace(config, batch_size=64, pairs_per_epoch=64), options("large"))
        line = str(caught.value)
        assert "\n" not in line
        largest = int(re.search(r"-b 64 does not fit\. The largest batch that fits is -b (\d+)", line)[1])  # type: ignore[index]
        assert 1 <= largest < 64
        pretrain(replace(config, batch_size=largest, pairs_per_epoch=2 * largest), options("fitting"))
        assert len(losses("fitting")) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one: of NCCL on CUDA, else of gloo."""
    backend, device = ("nccl", DEVICE) if DEVICE.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_batch_norm_over_a_group_of_one_is_torch_s(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(3, 5, 1), nn.BatchNorm3d(5)).to(DEVICE)
    shared = nn.Sequential(nn.Conv3d(3, 5, 1), nn.BatchNorm3d(5)).to(DEVICE)
    shared.load_state_dict(plain.state_dict())
    shared = synchronise_batch_norms(shared)
    assert isinstance(shared[1], SynchronisedBatchNorm3d)
    x = (3 + 5 * torch.randn(4, 3, 6, 7, 8, device=DEVICE)).to(memory_format=layout)
    errors = torch.randn(4, 5, 6, 7, 8, device=DEVICE)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(given) for module, given in zip((plain, shared), inputs, strict=True)]
    for output in outputs:
        output.backward(errors)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-3)
    for one, other in zip(shared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-2)
    for mine, theirs in zip(shared.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("group", "in_float32", "narrow")
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view")
def test_a_step_in_a_group_is_that_of_a_process_alone(scans: list[Volume], tmp_path: Path) -> None:
    """Gradients exchanged, norms over the group; the paper's encoder, whose norms are batch norms."""
    config = replace(CONFIG, architecture="resnet50", network=None, views=ViewSettings((8, 32, 32)))
    pool = Pool(scans, scans[:1])
    runs = [
        TrainingLoop(config, pool, tmp_path, Runtime(DEVICE.type, processes, 0), RunLog(None))
        for processes in [Processes(0, 2, 0, 2)] * 2
    ]
    runs[1].distribute()
    assert isinstance(runs[1].step.model, DistributedDataParallel)
    losses, moved = [], []
    for run in runs:
        before = [p.detach().clone() for p in run.state.objective.parameters() if p.requires_grad]
        with run.loader.batches() as batches:
            losses.append(run.step(0, batches)[0])
        after = [p.detach() for p in run.state.objective.parameters() if p.requires_grad]
        moved.append(torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()


@pytest.mark.usefixtures("group")
def test_a_wish_arrives_two_calls_later() -> None:
    asked = AnyProcess(Processes(0, 2, 0, 2), DEVICE)
    assert [asked(wish) for wish in (False, True, False, False, False)] == [False, False, False, True, False]


@pytest.mark.usefixtures("group", "narrow")
def test_a_run_in_a_group(scans: list[Volume], tmp_path: Path) -> None:
    """As a process of two whose other half is silent: its loss comes out halved, all else as in any run."""
    processes = Processes(0, 2, 0, 2)
    runtime = Runtime(DEVICE.type, processes, 0, stop=StopSignals())
    state = train(CONFIG, Pool(scans, scans[:1]), tmp_path, runtime, RunLog(None), False)
    assert len(state.history) == CONFIG.epochs
    assert all(0 < record["loss"] < 4 for record in state.history)
    assert (tmp_path / "checkpoint_latest.pth").exists()
