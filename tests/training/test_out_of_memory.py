"""A step that runs out of a GPU's memory, without a GPU: what is called in which order, and the line at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.distributed import Processes
from pretraining.launching.errors import ProcessLost
from pretraining.settings.config import PretrainConfig
from pretraining.training import memory
from pretraining.training.loading import PairLoader

CONFIG = PretrainConfig(datasets=(), batch_size=128)

# As torch says it.
FACTS = (
    "CUDA out of memory. Tried to allocate 2.53 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.19 GiB is "
    "free. Process 4711 has 3.00 GiB memory in use."
)
TEXT = (
    f"{FACTS} Including non-PyTorch memory, this process has 11.58 GiB memory in use. Of the allocated memory 10.61 "
    "GiB is allocated by PyTorch, and 571.20 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


class Gpu:
    """A GPU on which steps of up to 40 pairs fit, and what is done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step_of(self, config: PretrainConfig, device: torch.device, processes: int) -> Callable[[int], None]:
        self.done.append(f"networks on {device}")
        return self.step

    def step(self, pairs: int) -> None:
        self.done.append(f"{pairs} pairs{', searching' if torch.backends.cudnn.benchmark else ''}")
        time.sleep(0.2)
        if pairs > 40:
            raise torch.cuda.OutOfMemoryError(TEXT)

    def kill(self) -> None:
        self.done.append("loading process killed")

    def join(self, seconds: float) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(memory, "_step_of", gpu.step_of)
    return gpu


def test_networks_that_do_not_fit_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's job may fill the card: no batch is to blame."""

    def full(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError(TEXT)

    monkeypatch.setattr(memory, "initial_state", full)
    with pytest.raises(PGLError) as caught, memory.suggesting_a_smaller_batch(CONFIG, "cuda", Processes(), 0):
        full()
    line = "the networks alone do not fit into the memory that the device has left; is another job there? "
    assert str(caught.value) == line + FACTS


def test_what_is_done_and_said(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = PairLoader.__new__(PairLoader)
    loader._workers = [gpu]  # type: ignore[list-item]
    monkeypatch.setattr(PairLoader, "_dead_worker", lambda _: pytest.fail("waits for a loading process to be dead"))
    with (
        pytest.raises(PGLError) as caught,
        memory.suggesting_a_smaller_batch(CONFIG, "cuda", Processes(), 0),
        loader.naming_dead_workers(),
    ):
        raise torch.cuda.OutOfMemoryError(TEXT)
    tried = [f"{pairs} pairs" for pairs in (64, 32, 48, 40, 44, 42, 41)]
    assert gpu.done == ["loading process killed", "networks on cuda:0", *tried]
    assert str(caught.value) == (
        "-b 128 does not fit. The largest batch that fits is -b 40; -b 128 -accumulate 4 computes the same batch in "
        f"parts that fit. {FACTS}"
    )


def test_one_of_several_processes_tries(gpu: Gpu) -> None:
    """All have run out of memory; the others end when it has found what fits."""
    store = dist.PrefixStore("run", dist.HashStore())  # type: ignore[attr-defined]
    ended: list[Exception] = []

    def train(rank: int) -> None:
        try:
            with memory.suggesting_a_smaller_batch(CONFIG, "cuda", Processes(rank, 2, rank, 2, store), 0):
                raise torch.cuda.OutOfMemoryError(TEXT)
        except Exception as error:
            ended.append(error)
            gpu.done.append("ended")

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (explained,) = (error for error in ended if isinstance(error, PGLError))
    (lost,) = (error for error in ended if isinstance(error, ProcessLost))
    assert str(explained).startswith("-b 128 does not fit. The largest batch that fits is -b 80;")
    assert str(lost) == ""
    assert len([step for step in gpu.done if step.startswith("networks")]) == 1
    assert gpu.done[-2:] == ["ended", "ended"]
