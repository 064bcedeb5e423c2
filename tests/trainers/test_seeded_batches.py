"""Trainings of one seed train on the same batches, whoever loads them; real loading processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.seeded_batches import seeded_batches

Workplace = Any  # the fixture of conftest.py
LENGTH = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture
def planned_run(workplace: Workplace) -> Any:
    """Plans of a run with a seed."""

    def plans(seed: int = 0) -> dict[str, Any]:
        folder = workplace.root / "nnUNet_preprocessed" / workplace.plans()["dataset_name"] / "nnUNetPlans_3d_fullres"
        cases = sorted(file.stem for file in folder.glob("*.pkl"))
        folds = {"0": {"training_cases": cases[:3], "validation_cases": cases[3:]}}
        run = {"initialisation": "random", "seed": seed, "folds": folds}
        network = {"architecture": "plan"}  # a small one
        return {**workplace.plans(), "plans_name": f"planned_{seed}", "pgl_run": run, "pgl_network": network}

    return plans


@contextmanager
def loading_processes(count: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", str(count))
        yield


def make(workplace: Workplace, plans: dict[str, Any], **length: int) -> nnUNetTrainerPGL:
    """A trainer whose random state is another each time."""
    for seed_it in (torch.manual_seed, np.random.seed, random.seed):
        seed_it(time.time_ns() % 2**32)
    trainer: nnUNetTrainerPGL = workplace.make(nnUNetTrainerPGLScratch, plans=plans, **{**LENGTH, **length})
    return trainer


def weights_of(trainer: nnUNetTrainerPGL) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in trainer.network.state_dict().values()])


def trained(workplace: Workplace, plans: dict[str, Any], **length: int) -> torch.Tensor:
    trainer = make(workplace, plans, **length)
    trainer.run_training()
    assert multiprocessing.active_children() == []
    return weights_of(trainer)


def test_trainings_of_one_seed_end_with_the_same_weights(workplace: Workplace, planned_run: Any) -> None:
    """To the last bit, with loading processes, and with none."""
    with loading_processes(2):
        one = trained(workplace, planned_run())
        assert torch.equal(one, trained(workplace, planned_run()))
        assert not torch.equal(one, trained(workplace, planned_run(seed=1)))
    with loading_processes(0):
        assert torch.equal(one, trained(workplace, planned_run()))


def test_a_training_that_goes_on_is_the_one_that_would_have_been(workplace: Workplace, planned_run: Any) -> None:
    with loading_processes(2):
        uninterrupted = trained(workplace, planned_run(), num_epochs=2)
        trainer = make(workplace, planned_run(), num_epochs=2, save_every=1)
        start_epoch = trainer.on_epoch_start

        def killed() -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt
            start_epoch()

        trainer.on_epoch_start = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
        end(trainer.dataloader_train, trainer.dataloader_val)
        again = make(workplace, planned_run(), num_epochs=2)
        again.load_checkpoint(str(Path(again.output_folder, "checkpoint_latest.pth")))
        again.run_training()
    assert torch.equal(weights_of(again), uninterrupted)


def end(*loaders: Any) -> None:
    for loader in loaders:
        if hasattr(loader, "_finish"):
            loader._finish()


def batches(
    workplace: Workplace, plans: dict[str, Any], processes: int, count: int, epoch: int = 0, rank: int = 0
) -> tuple[list[Any], list[Any]]:
    """The first batches of training and validation."""
    trainer = make(workplace, plans)
    trainer.initialize()
    trainer.current_epoch, trainer.local_rank = epoch, rank
    with loading_processes(processes):
        loaders = trainer.get_dataloaders()
        drawn = [[next(loader) for _ in range(count)] for loader in loaders]
        end(*loaders)
    return drawn[0], drawn[1]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return torch.equal(one["data"], other["data"]) and list(one["keys"]) == list(other["keys"])


def test_batches_do_not_depend_on_who_draws_them(workplace: Workplace, planned_run: Any) -> None:
    of_two = batches(workplace, planned_run(), 2, 5)
    for processes in (0, 1, 3):
        for ours, others in zip(of_two, batches(workplace, planned_run(), processes, 5), strict=True):
            assert all(same(one, other) for one, other in zip(ours, others, strict=True)), processes


def test_every_batch_is_another(workplace: Workplace, planned_run: Any) -> None:
    """Those of another rank, epoch or seed, and of the validation on the same cases, are others too."""
    plans = planned_run()
    cases = plans["pgl_run"]["folds"]["0"]
    cases["validation_cases"] = cases["training_cases"]
    found = [*batches(workplace, plans, 2, 4)]
    found.append(batches(workplace, plans, 2, 4, rank=1)[0])
    found.append(batches(workplace, planned_run(seed=1), 2, 4)[0])
    found.append(batches(workplace, plans, 2, 4, epoch=2)[0])
    drawn = [batch for part in found for batch in part]
    assert not any(same(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    later = batches(workplace, plans, 2, 2, epoch=1)[0]
    assert all(same(one, other) for one, other in zip(later, found[0][2:], strict=True))  # two an epoch
    training, validation = ([list(batch["keys"]) for batch in part] for part in found[:2])
    assert training != validation, "cases drawn alike"


class Drawing:
    """A loader whose batches are random numbers of each kind that nnU-Net draws from."""

    def __next__(self) -> dict[str, list[float]]:
        return {"drawn": [torch.rand(1).item(), np.random.rand(), random.random()]}


@pytest.mark.parametrize("processes", [0, 2])
def test_torch_numpy_and_random_are_seeded_for_every_batch(processes: int) -> None:
    drawn = []
    for state in range(2):
        for seed_it in (torch.manual_seed, np.random.seed, random.seed):
            seed_it(state)
        loader = seeded_batches(Drawing(), (0, 0, 1), 0, processes, 4, False)
        drawn.append([next(loader)["drawn"] for _ in range(6)])
        end(loader)
    assert drawn[0] == drawn[1]
    for values in zip(*drawn[0], strict=True):
        assert len(set(values)) == 6


def test_drawing_leaves_the_random_state_alone(workplace: Workplace, planned_run: Any) -> None:
    trainer = make(workplace, planned_run())
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    next(loader)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_nothing_of_the_augmentation_depends_on_the_time(workplace: Workplace, planned_run: Any) -> None:
    """nnU-Net's blur would take the faster of two convolutions."""
    for plans, measures in ((planned_run(), False), (workplace.plans(), True)):
        trainer = make(workplace, plans)
        trainer.initialize()
        loader = trainer.get_dataloaders()[0].data_loader
        transforms = getattr(loader, "loader", loader).transforms.transforms
        blurs = [t.transform for t in transforms if isinstance(t, RandomTransform)]
        assert [t.benchmark for t in blurs if isinstance(t, GaussianBlurTransform)] == [measures]


def test_other_trainings_keep_nnunet_s_loaders(workplace: Workplace) -> None:
    trainer = make(workplace, workplace.plans())
    trainer.initialize()
    with loading_processes(1):
        loaders = trainer.get_dataloaders()
    assert [type(loader) for loader in loaders] == [NonDetMultiThreadedAugmenter] * 2
    end(*loaders)


KILLED = """
import json, sys, time, torch
from nnunetv2_pgl.trainers import nnUNetTrainerPGLScratch
plans, dataset_json = (json.load(open(path)) for path in sys.argv[1:3])
trainer = nnUNetTrainerPGLScratch(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
loaders = trainer.get_dataloaders()
print("PROCESSES", *(process.pid for loader in loaders for process in loader._processes), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_leaves_no_processes(
    workplace: Workplace, planned_run: Any, tmp_path: Path, send: signal.Signals
) -> None:
    files = [tmp_path / "plans.json", tmp_path / "dataset.json"]
    for file, values in zip(files, (planned_run(), workplace.dataset_json()), strict=True):
        file.write_text(json.dumps(values))
    command = [sys.executable, "-c", KILLED, *map(str, files)]
    with loading_processes(2), subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("PROCESSES"))
        loading = [int(pid) for pid in line.split()[1:]]
        assert len(loading) == 3
        assert all(map(is_running, loading))
        process.send_signal(send)
    end_of_patience = time.monotonic() + 20
    while any(map(is_running, loading)) and time.monotonic() < end_of_patience:
        time.sleep(0.1)
    left = [pid for pid in loading if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def is_running(pid: int) -> bool:
    """Not so if it has ended and nobody has taken note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


LOADING = """
import multiprocessing, sys
import numpy as np
from nnunetv2_pgl.trainers.seeded_batches import seeded_batches

class Loader:
    def __next__(self):
        return {"data": np.random.rand(2)}

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    batches = seeded_batches(Loader(), (0, 0, 1), 0, 2, 6, False)
    print([float(next(batches)["data"][0]) for _ in range(4)], flush=True)
    batches._finish()
"""


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_loading_processes_may_be_started_in_any_way(tmp_path: Path, method: str) -> None:
    """Python's default differs between systems and versions; "fork" is what the other tests have."""
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    done = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr

    class Loader:
        def __next__(self) -> dict[str, np.ndarray]:
            return {"data": np.random.rand(2)}

    batches = seeded_batches(Loader(), (0, 0, 1), 0, 0, 6, False)
    assert json.loads(done.stdout) == [float(next(batches)["data"][0]) for _ in range(4)]
