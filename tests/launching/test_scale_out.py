"""Several processes on one machine: the same run as one process, and what becomes of it when one of them is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from pretraining.launching.errors import STOPPED_EXIT_CODE
from tests.machine import SHORT, SMALL, Machine, children, free_port, output_of, records, wait_for

pytestmark = pytest.mark.slow

# A process of a run in float64. In float32 weights that differ by 1e-7 give losses that differ by 5e-3 after four steps
# of these tiny views, in a single process too: nothing could be told from such curves.
IN_FLOAT64 = """
import torch
from pretraining.training import loop
loop.autocast_type = lambda device: None
initial_state, render = loop.initial_state, loop.ViewPairBatch.render
def in_float64(*arguments):
    torch.Tensor.float = torch.Tensor.double
    state = initial_state(*arguments)
    state.objective.double()
    return state
loop.initial_state = in_float64
loop.ViewPairBatch.render = lambda *arguments: render(*arguments).double()
from pretraining.cli import pretrain_entry
pretrain_entry()
"""

# The same, asked to stop in its first step.
STOPPING = """
import os, signal
from pretraining.training.step import Stepper
make_step = Stepper.__call__
def signalled(self, number, batches):
    if number == 0 and self.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return make_step(self, number, batches)
Stepper.__call__ = signalled
"""

# What the kernels of CUDA that torch's SyncBatchNorm calls compute, for a process that has none.
CUDA_KERNELS = """
import torch
from pretraining.training import synchronised
axes = (0, 2, 3, 4)
def per_channel(values):
    return values.view(1, -1, 1, 1, 1)
def batch_norm_stats(x, eps):
    return x.mean(axes), (x.var(axes, correction=0) + eps).rsqrt()
def batch_norm_gather_stats_with_counts(x, means, factors, running_mean, running_var, momentum, eps, counts):
    shares = (counts / counts.sum()).unsqueeze(1)
    mean = (shares * means).sum(0)
    var = (shares * (factors ** -2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (var + eps).rsqrt()
def batch_norm_elemt(x, weight, bias, mean, factor, eps):
    return (x - per_channel(mean)) * per_channel(factor * weight) + per_channel(bias)
def batch_norm_backward_reduce(grad, x, mean, factor, weight, of_x, of_weight, of_bias):
    alone, with_x = grad.sum(axes), (grad * (x - per_channel(mean))).sum(axes)
    return alone, with_x, with_x * factor, alone
def batch_norm_backward_elemt(grad, x, mean, factor, weight, alone, with_x, counts):
    assert counts.dtype == torch.int32
    alone, with_x = alone / counts.sum(), with_x / counts.sum()
    inner = grad - per_channel(alone) - (x - per_channel(mean)) * per_channel(factor ** 2 * with_x)
    return inner * per_channel(factor * weight)
for name, kernel in list(globals().items()):
    if name.startswith("batch_norm_"):
        setattr(torch, name, kernel)
synchronised.NormaliseOnCPU = synchronised.NormaliseOnGPU
"""

SAVING = (*SHORT, "-save_every", "1")

# Batch norm over two processes against torch's own over the joined batch, in float64.
NORM = """
import torch, torch.distributed as dist
from torch import nn
from pretraining.training.synchronised import synchronise_batch_norms
dist.init_process_group("gloo")
torch.manual_seed(0)
plain = nn.Sequential(nn.Conv3d(2, 5, 1), nn.BatchNorm3d(5)).double()
nn.init.normal_(plain[1].weight)
shared = nn.Sequential(nn.Conv3d(2, 5, 1), nn.BatchNorm3d(5)).double()
shared.load_state_dict(plain.state_dict())
shared = synchronise_batch_norms(shared)
assert type(shared[1]) is not nn.BatchNorm3d
for layout in (torch.contiguous_format, torch.channels_last_3d):
    views = (3 + 5 * torch.randn(4, 2, 3, 4, 5, dtype=torch.float64)).to(memory_format=layout)
    weights = torch.randn(4, 5, 3, 4, 5, dtype=torch.float64)
    own = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    joined, part = views.clone().requires_grad_(), views[own].clone().requires_grad_()
    for module in (plain, shared):
        module.zero_grad()
    expected, got = plain(joined), shared(part)
    (expected * weights).sum().backward()
    (got * weights[own]).sum().backward()
    torch.testing.assert_close(got, expected[own])
    torch.testing.assert_close(part.grad, joined.grad[own])
    for mine, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(shared.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(shared.eval()(part), plain.eval()(joined)[own])
    plain.train(), shared.train()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kernels", ["", CUDA_KERNELS])
def test_batch_norm_is_that_of_the_joined_batch(machine: Machine, kernels: str) -> None:
    for process in machine.start_ranks(kernels + NORM):
        output_of(process, 0)


@pytest.mark.parametrize("preset", ["paper", "recommended"])
def test_two_processes_are_one_with_the_joined_batch(machine: Machine, preset: str) -> None:
    """Loss curve and weights of both paths agree, to 1e-6 here; those of the paper's settings stop and go on between.

    Without noise: its values are drawn by each process. The recommended settings for two steps of SGD: instance norm
    carries the rounding of the float32 loss on, to 1e-4 after four, and AdamW makes full steps of it.
    """
    chosen = {
        "paper": ("--paper", "-pairs", "16", "-epochs", "1"),
        "recommended": ("-optimizer", "sgd", "-lr", "0.01", "-pairs", "8", "-epochs", "1"),
    }[preset]
    settings = (*SMALL, "-b", "4", "-noise_probability", "0", *chosen)
    output_of(machine.start("python", "-c", IN_FLOAT64, *settings, "-o", f"{preset}_one"), 0)
    settings = (*settings, "-o", f"{preset}_two")
    if preset == "paper":
        for process in machine.start_ranks(STOPPING + IN_FLOAT64, settings):
            assert "after step 3 of 4" in output_of(process, STOPPED_EXIT_CODE)
        settings = (*settings, "--c")
    for process in machine.start_ranks(IN_FLOAT64, settings):
        output_of(process, 0)
    one, two = (machine.run_folder(f"{preset}_{name}") for name in ("one", "two"))
    losses = [[record["loss"] for record in records(folder)] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    states = [torch.load(folder / "checkpoint_latest.pth", weights_only=True)["objective"] for folder in (one, two)]
    moved = states[0]["encoder.conv.weight"] - states[0]["target_encoder.conv.weight"]
    assert moved.abs().max() > 1e-6  # it trains, so equality is not that of standing still
    for key, value in states[0].items():
        difference = (states[1][key].double() - value.double()).norm() / value.double().norm().clamp(min=1e-3)
        assert difference < 1e-6, f"{key}: {difference:.2e}"


# A process of a run in which four beats take two seconds.
QUICK_BEATS = """
from functools import partial
from pretraining.launching import distributed
distributed.heartbeat = partial(distributed.heartbeat, seconds=0.5)
from pretraining.cli import pretrain_entry
pretrain_entry()
"""


def test_a_process_that_hangs_ends_the_run_in_one_line(machine: Machine) -> None:
    """As when its machine hangs: no connection is closed."""
    first, second = machine.start_ranks(QUICK_BEATS, (*SAVING, "-epochs", "1000", "-o", "hanging"))
    wait_for(machine.run_folder("hanging") / "checkpoint_latest.pth", first)
    for number in (signal.SIGSTOP, signal.SIGCONT):  # as a scheduler does that suspends the whole job
        for process in (first, second):
            os.kill(process.pid, number)
        time.sleep(6)
    assert first.poll() is None
    os.kill(second.pid, signal.SIGSTOP)
    begin = time.monotonic()
    output = output_of(first, 1)
    second.kill()
    second.communicate()
    assert time.monotonic() - begin < 30
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("pgl_pretrain: nothing was heard of process 1 of 2 for")


# The main process still writes when the other one is done.
LEAVING = """
import time
from functools import partial
from pretraining.launching import distributed
distributed.heartbeat = partial(distributed.heartbeat, seconds=0.2)
with distributed.process_group("cpu") as processes:
    time.sleep(3 if processes.is_main else 0)
"""


def test_who_is_done_first_is_not_missed(machine: Machine) -> None:
    for process in machine.start_ranks(LEAVING):
        assert "nothing was heard" not in output_of(process, 0)


def test_a_killed_process_ends_the_run_in_one_line(machine: Machine) -> None:
    process = machine.start("pgl_pretrain", *SAVING, "-num_gpus", "2", "-epochs", "100", "-o", "killed")
    wait_for(machine.run_folder("killed") / "checkpoint_latest.pth", process)
    os.kill(children(process, "pretraining")[1], signal.SIGKILL)
    output = output_of(process, 1)
    assert "Traceback" not in output
    assert "leaked" not in output
    last = output.splitlines()[-1]
    assert last.startswith("pgl_pretrain: training process 1 of 2 ended with SIGKILL")
    assert "--c" in last


def test_what_one_process_finds_wrong_is_one_line(machine: Machine) -> None:
    output = output_of(machine.start("pgl_pretrain", *SHORT, "-num_gpus", "2", "-b", "1000000", "-o", "large"), 1)
    assert "Traceback" not in output
    assert "The largest batch that fits is -b" in output.splitlines()[-1]


def test_torchrun_goes_on_after_a_lost_process(machine: Machine) -> None:
    """The same command, without --c; the second attempt continues after the checkpoint of the first."""
    job = ("--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    process = machine.start("torchrun", *job, "-m", "pretraining", *SAVING, "-epochs", "3", "-o", "restarted")
    wait_for(machine.run_folder("restarted") / "checkpoint_latest.pth", process)
    os.kill(children(process, "pretraining")[1], signal.SIGKILL)
    output = output_of(process, 0)
    assert "Restarted by torchrun" in output
    assert "Continuing after epoch" in output
    assert "Traceback" not in output
    assert [record["epoch"] for record in records(machine.run_folder("restarted"))] == [0, 1, 2]
    assert (machine.run_folder("restarted") / "checkpoint_final.pth").exists()
    assert not (machine.run_folder("restarted") / "torchrun_id.txt").exists()


def test_torchrun_without_restarts_says_what_to_do(machine: Machine) -> None:
    job = ("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    process = machine.start("torchrun", *job, "-m", "pretraining", *SAVING, "-epochs", "100", "-o", "ended")
    wait_for(machine.run_folder("ended") / "checkpoint_latest.pth", process)
    os.kill(children(process, "pretraining")[0], signal.SIGKILL)
    output = output_of(process, 1)
    (line,) = (
        line for line in output.splitlines() if "pgl_pretrain: " in line and "--c" in line and "traceback" not in line
    )
    assert "another" in line
    assert output.count("Traceback") == 1, "torchrun's own"


def test_a_refused_run_is_refused_again(machine: Machine) -> None:
    """torchrun tries again whatever the reason; the second attempt must not take over the run that is there."""
    folder = machine.run_folder("taken")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint_latest.pth").write_bytes(b"of another run")
    job = ("--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    output = output_of(machine.start("torchrun", *job, "-m", "pretraining", *SHORT, "-epochs", "1", "-o", "taken"), 1)
    root_cause = output.split("Root Cause")[1]
    assert "already holds a run: add --c" in root_cause
    assert (folder / "checkpoint_latest.pth").read_bytes() == b"of another run"


def test_two_agents_as_on_two_nodes(machine: Machine) -> None:
    endpoint = f"localhost:{free_port()}"
    job = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "1", "--rdzv-backend", "c10d")
    command = (
        "torchrun",
        *job,
        "--rdzv-endpoint",
        endpoint,
        "-m",
        "pretraining",
        *SHORT,
        "-epochs",
        "1",
        "-o",
        "nodes",
    )
    agents = [machine.start(*command) for _ in range(2)]
    outputs = [output_of(agent, 0) for agent in agents]
    assert sum("device cpu, 2 processes" in output for output in outputs) == 1
    assert [record["epoch"] for record in records(machine.run_folder("nodes"))] == [0]
