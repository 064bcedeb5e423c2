"""States that earlier versions or other machines have written, and states that cannot be continued."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.formats.weights_only import CheckpointError
from pretraining.training import loop
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import TrainingState, initial_state
from pretraining.training.step import Stepper
from tests.golden import make
from tests.training.small_runs import CONFIG, MEASURED, records, require_equal, run, told_to_stop


def of_version(state: dict[str, Any], version: int) -> dict[str, Any]:
    """The state as former versions wrote it."""
    older = {**state, "training_state": version}
    so_far = older["so_far"]
    older["epoch"] = (older.pop("step") - so_far["steps"]) // 3
    if version == 1:
        assert older.pop("so_far")["steps"] == 0
    return older


@pytest.mark.parametrize(("version", "steps"), [(1, 3), (2, 3), (2, 4)])
def test_states_of_former_versions_are_continued(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch, version: int, steps: int
) -> None:
    name = f"version_{version}_{steps}"
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(steps)(patch)):
        run(name)
    older = RunFolder.from_name(name)
    torch.save(of_version(torch.load(older.latest, weights_only=True), version), older.latest)
    require_equal(straight, run(name, resume=True))


def test_an_epoch_of_a_former_version_that_lacks_only_its_record(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop after the last step of an epoch left all of its steps in what is under way."""
    end = loop.TrainingLoop._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_end_epoch", lambda self: None if self.state.step == 3 else end(self))
        with pytest.raises(told_to_stop(3)(patch)):
            run("lacking")
    lacking = RunFolder.from_name("lacking")
    state = of_version(torch.load(lacking.latest, weights_only=True), 2)
    assert (state["epoch"], state["so_far"]["steps"], len(state["history"])) == (0, 3, 0)
    torch.save(state, lacking.latest)
    require_equal(straight, run("lacking", resume=True))


def of_010(record: dict[str, Any]) -> dict[str, Any]:
    """A record as version 0.1.0 wrote it."""
    kept = {key: value for key, value in record.items() if key not in MEASURED and not key.startswith("unflipped")}
    return {**kept, "correspondence": 0.25, "chance": 0.125, "miss_distance": 9.0}


def test_records_of_the_first_version_are_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its correspondence was one share of all pairs, which stands in the curves beside what later epochs measured."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(3)(patch)):
        run("older_records")
    older = RunFolder.from_name("older_records")
    state = of_version(torch.load(older.latest, weights_only=True), 2)
    history = [of_010(state["history"][0])]
    baseline = {"correspondence": 0.2, "miss_distance": 8.0}
    torch.save({**state, "history": history, "baseline": baseline}, older.latest)
    run("older_records", resume=True)
    *before, last = records(older)
    assert before == history
    assert last.keys() >= MEASURED
    assert "correspondence" not in last
    assert load_checkpoint(older.final).pgl["metrics"]["flipped_right"] == last["flipped_right"]


def test_a_state_in_another_memory_layout_is_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with instance norm were in channels last once; fused AdamW takes its momenta in the order of memory."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        run("layout")
    folder = RunFolder.from_name("layout")
    state = torch.load(folder.latest, weights_only=True)
    changed = 0
    for values in state["optimizer"]["state"].values():
        for name, value in values.items():
            if value.ndim == 5 and min(value.shape[1:]) > 1:
                values[name] = value.contiguous(memory_format=torch.channels_last_3d)
                changed += values[name].stride() != value.stride()
    assert changed >= 2
    torch.save(state, folder.latest)
    require_equal(straight, run("layout", resume=True))


def test_other_scans_are_not_passed_over(straight: RunFolder, folders: Path) -> None:
    """A pool that has lost a scan would silently change what every later draw means."""
    copied = RunFolder.from_name("other_scans")
    copied.start(CONFIG)
    shutil.copy(straight.latest, copied.latest)
    shutil.copy(straight.manifest, copied.manifest)
    scan = folders / "nnUNet_raw" / make.DATASET / "imagesTr" / "scan_3_0000.nrrd"
    hidden = scan.rename(folders / scan.name)
    try:
        with pytest.raises(CheckpointError, match="started on other scans"):
            run("other_scans", resume=True)
    finally:
        hidden.rename(scan)
    assert copied.manifest.read_bytes() == straight.manifest.read_bytes()  # it tells of the run's own


def test_a_truncated_state_is_named(straight: RunFolder) -> None:
    broken = RunFolder.from_name("broken")
    broken.start(CONFIG)
    content = straight.latest.read_bytes()
    broken.latest.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint_latest\.pth: truncated"):
        run("broken", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_its_settings_is_named(straight: RunFolder, resume: bool) -> None:
    bare = RunFolder.from_name("bare")
    bare.path.mkdir(exist_ok=True)
    shutil.copy(straight.latest, bare.latest)
    with pytest.raises(PGLError, match=r"bare holds a run without its config\.json"):
        run("bare", resume)


def test_how_the_optimiser_computes_is_not_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a state was written with may not be there, or not be right, on the device and torch that continue it."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        run("elsewhere")
    folder = RunFolder.from_name("elsewhere")
    state = torch.load(folder.latest, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group.update(fused=None, foreach=True)
    torch.save(state, folder.latest)
    own = initial_state(CONFIG, torch.device("cpu"), None).optimizer.param_groups
    seen: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        make_step = Stepper.__call__
        patch.setattr(
            Stepper,
            "__call__",
            lambda self, *arguments: (seen.extend(self.state.optimizer.param_groups), make_step(self, *arguments))[1],
        )
        require_equal(straight, run("elsewhere", resume=True))
    assert seen
    assert all(group[name] == own[0][name] for group in seen for name in ("fused", "foreach"))


def test_want_of_memory_is_not_the_states_fault(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TrainingState, content: dict[str, Any]) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingState, "_fill", full)
    state = initial_state(CONFIG, torch.device("cpu"), None)
    state.scans = torch.load(straight.latest, weights_only=True)["scans"]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        state.restore(straight.latest)
