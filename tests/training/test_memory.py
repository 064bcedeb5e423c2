"""Whether a batch fits: counted against what autograd keeps, and refused with one that does fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.methods import METHODS
from pretraining.launching.distributed import Processes
from pretraining.objectives import ModelsGenesis, Objective
from pretraining.settings.config import PretrainConfig
from pretraining.training import footprint, memory
from pretraining.training.networks import make_objective
from pretraining.views import GeometryBatch, ViewSettings, sample_view_pair
from tests.planned_networks import small_network

GIB = 2**30
CONFIG = PretrainConfig(datasets=(), views=ViewSettings(size=(8, 32, 32)), hidden_channels=64, batch_size=4096)
SMALL = PretrainConfig(
    datasets=(),
    views=ViewSettings(size=(8, 8, 8)),
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    hidden_channels=8,
    out_channels=8,
)
ALONE = Processes()


def bytes_saved(objective: Objective, pairs: int) -> int:
    """Bytes that autograd keeps for a step, parameters left out."""
    rng = np.random.default_rng(0)
    drawn = [sample_view_pair([4 * n for n in CONFIG.views.size], CONFIG.views.size, rng) for _ in range(pairs)]
    geometries = GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in drawn])
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective(torch.randn(2 * pairs, 1, *CONFIG.views.size), geometries)
    return sum(seen.values())


def refusal(config: PretrainConfig, processes: Processes = ALONE) -> str | None:
    try:
        memory.require_fitting_batch(config, "cpu", processes, workers=1)
    except PGLError as error:
        return str(error)
    return None


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_counted_are_the_saved_tensors_and_little_more(precision: torch.dtype | None) -> None:
    objective = make_objective(CONFIG, precision)
    saved = bytes_saved(objective, 6) - bytes_saved(objective, 2)
    with torch.device("meta"):
        described = make_objective(CONFIG, precision)
    few, many = (footprint._peak_bytes(described, (1, *CONFIG.views.size), pairs) for pairs in (1024, 1028))
    assert saved < many - few < 1.5 * saved


def test_what_is_named_fits_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * GIB)
    line = refusal(CONFIG)
    assert line is not None
    assert "\n" not in line
    named = re.search(
        r"-b 4096 does not fit\. The largest batch that fits is -b (\d+); .* of which 3\.0 are free\.$", line
    )
    assert named, line
    largest = int(named[1])
    assert refusal(replace(CONFIG, batch_size=largest)) is None
    assert refusal(replace(CONFIG, batch_size=largest + 1)) is not None
    in_parts = re.search(r"-b 4096 -accumulate (\d+)", line)
    assert in_parts
    assert refusal(replace(CONFIG, accumulate=int(in_parts[1]))) is None


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 6 * GIB)
    line = refusal(CONFIG, Processes(0, 2, 0, 2))
    assert line is not None
    largest = int(re.search(r"fits is -b (\d+)", line)[1])  # type: ignore[index]
    assert largest % 2 == 0
    assert refusal(replace(CONFIG, batch_size=largest), Processes(0, 2, 0, 2)) is None
    assert refusal(replace(CONFIG, batch_size=largest + 2), Processes(0, 2, 0, 2)) is not None


def test_no_pair_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: GIB // 2)
    assert "nor does one pair at a time: use a smaller -patch" in str(refusal(CONFIG))


@pytest.mark.parametrize("limit", [1, 5, 37, 100])
def test_bisection_finds_the_largest_that_runs(limit: int) -> None:
    def run(pairs: int) -> None:
        if pairs > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert memory.largest_that_runs(run, 100) == min(limit, 100)
    with pytest.raises(RuntimeError, match="else"):
        memory.largest_that_runs(lambda pairs: (_ for _ in ()).throw(RuntimeError("something else")), 3)


def test_an_allocation_that_fails_while_training_names_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real error of torch's CPU allocator, for 2^60 bytes."""
    monkeypatch.setattr(memory, "available_memory", lambda: 100 * GIB)
    config = replace(CONFIG, batch_size=4)
    message = r"-b 4 does not fit\. The largest batch that fits is -b 3;"
    with pytest.raises(PGLError, match=message) as caught, memory.suggesting_a_smaller_batch(config, "cpu", ALONE, 0):
        torch.empty(2**60, dtype=torch.uint8)
    assert "\n" not in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.suggesting_a_smaller_batch(CONFIG, "cpu", ALONE, 0):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 1\ninactive_file 500"},
        {
            "memory.limit_in_bytes": "3000",
            "memory.usage_in_bytes": "1000",
            "memory.stat": "total_inactive_file 500\ninactive_file 7",
        },
    ],
)
def test_limits_of_control_groups(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(footprint, "_control_groups", lambda: [tmp_path, tmp_path / "missing"])
    assert list(footprint._left_in_control_groups()) == [2500]
    monkeypatch.setattr(footprint, "_left_in_system", lambda: [2600])
    assert footprint.available_memory() == 2500
    (tmp_path / next(iter(files))).write_text("max\n")
    assert list(footprint._left_in_control_groups()) == []


def test_unknown_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_left_in_system", lambda: iter(()))
    monkeypatch.setattr(footprint, "_left_in_control_groups", lambda: iter(()))
    assert footprint.available_memory() is None
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert refusal(CONFIG) is None


@pytest.mark.parametrize("method", METHODS)
def test_what_a_gpu_tries_is_a_step_of_the_method(method: str) -> None:
    memory._step_of(replace(SMALL, method=method), torch.device("cpu"), 1)(2)


def test_what_loading_processes_draw_is_counted() -> None:
    """In the batches that wait for the training process."""
    per_pair = {
        (method, workers): footprint.bytes_of_step(replace(SMALL, method=method), workers, 1)[1]
        for method in ("pgl", "models_genesis")
        for workers in (0, 1)
    }
    waiting = {method: per_pair[method, 1] - per_pair[method, 0] for method in ("pgl", "models_genesis")}
    bytes_of_a_view = sum(values.nbytes for values in ModelsGenesis.draw(SMALL.views.size, default_rng(1)).values())
    assert waiting["models_genesis"] - waiting["pgl"] == pytest.approx(2 * 2 * bytes_of_a_view)


def test_a_state_that_is_written_is_counted_as_well() -> None:
    """AdamW has a second momentum, in the state that is trained and in the copy that is written."""
    fixed = {name: footprint.bytes_of_step(replace(SMALL, optimizer=name), 0, 1)[0] for name in ("sgd", "adamw")}
    trained = sum(p.nbytes for p in make_objective(SMALL, None).parameters() if p.requires_grad)
    assert fixed["adamw"] - fixed["sgd"] == pytest.approx(2 * trained)
