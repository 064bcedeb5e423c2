"""``pgl_compare`` called several times at once: each run is done once, and what a killed one leaves is taken over."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pretraining.comparison import command, schedule
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.settings import ComparisonSettings
from pretraining.file_lock import FileLock
from tests.comparison.shells import Shells, wait_until
from tests.stand_in_commands import TINY, CompareCommand, install_stand_ins, studies, tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")

SELF = f"process {os.getpid()} on {socket.gethostname()}"
RUNS = [f"{init}_{percent}pct" for percent in (50, 100) for init in ("random", "pgl")]


@pytest.fixture(scope="module")
def shells() -> Iterator[Shells]:
    server = Shells()
    yield server
    server.close()


def journal(root: Path) -> list[str]:
    return [" ".join(json.loads(line)["command"]) for line in (root / "journal").read_text().splitlines()]


def require_each_once(root: Path) -> None:
    ran = journal(root)
    for name, count in (("nnUNetv2_plan_and_preprocess", 1), ("pgl_pretrain", 1), ("nnUNetv2_predict", 4)):
        assert sum(line.startswith(name) for line in ran) == count, ran
    plans = [line.split(" -p ")[1].split()[0] for line in ran if line.startswith("nnUNetv2_train")]
    assert sorted(plans) == sorted(f"nnUNetPlans_{run}_seed0" for run in RUNS)


def lock_of(compare: CompareCommand, name: str) -> FileLock:
    return FileLock(compare.folder / "locks" / f"{name}.lock")


def test_two_at_once_share_the_work(compare: CompareCommand, shells: Shells) -> None:
    install_stand_ins(compare.root)
    first = shells.start(compare.root, "first", *TINY, held="pgl_pretrain")
    wait_until((compare.root / "held").exists, first.output)
    second = shells.start(compare.root, "second", *TINY)
    second.wait_for(f"Waiting for pre-training pgl: in progress in process {first.process} on ")
    assert [line.split(" -p ")[1].split()[0] for line in journal(compare.root) if "_train" in line] == [
        "nnUNetPlans_random_50pct_seed0",
        "nnUNetPlans_random_100pct_seed0",
    ]
    (compare.root / "go").touch()
    assert [shells.exit_code(shell) for shell in (first, second)] == [0, 0], second.output.read_text()
    require_each_once(compare.root)
    assert len(compare.rows()) == 4 * 3
    assert json.loads((compare.folder / "report.md").read_text()) == [4, []]


def test_two_comparisons_on_a_dataset_preprocess_it_once(compare: CompareCommand, shells: Shells) -> None:
    install_stand_ins(compare.root)
    prepare = (*TINY, "--only", "prepare")
    first = shells.start(compare.root, "first", *prepare, held="nnUNetv2_plan_and_preprocess")
    wait_until((compare.root / "held").exists, first.output)
    second = shells.start(compare.root, "second", *prepare, "-o", "another")
    second.wait_for(f"Waiting for the preprocessing of Dataset007_Small: in progress in process {first.process} on ")
    (compare.root / "go").touch()
    assert [shells.exit_code(shell) for shell in (first, second)] == [0, 0], second.output.read_text()
    assert [line.split()[0] for line in journal(compare.root)] == ["nnUNetv2_plan_and_preprocess"]


def test_what_a_killed_one_has_left_is_taken_over(compare: CompareCommand, shells: Shells) -> None:
    """Its command still runs, so nobody else may train in that folder; then the other one predicts."""
    install_stand_ins(compare.root)
    killed = shells.start(compare.root, "killed", *TINY, held="nnUNetv2_train 7 3d_fullres 0")
    wait_until((compare.root / "held").exists, killed.output)
    os.kill(killed.process, signal.SIGKILL)
    assert shells.exit_code(killed) == -signal.SIGKILL
    other = shells.start(compare.root, "other", *TINY)
    other.wait_for(
        f"Waiting for random_50pct_fold0_seed0: process {killed.process} on {socket.gethostname()} has ended"
    )
    assert len(journal(compare.root)) == 1 + 1 + 1 + 3 * 2
    (compare.root / "go").touch()
    assert shells.exit_code(other) == 0
    require_each_once(compare.root)
    assert json.loads((compare.folder / "report.md").read_text()) == [4, []]


def test_runs_in_progress_elsewhere_are_named_and_left(compare: CompareCommand) -> None:
    with lock_of(compare, "random_50pct_fold0_seed0") as other:
        other.take()
        ran, code = compare.call(*TINY)
        assert code == 0
        assert not [line for line in ran if "random_50pct" in line]
        assert len(compare.rows()) == 3 * 3
        line = f"  random_50pct_fold0_seed0: {SELF}\n"
        assert f"In progress elsewhere; what ends last writes the report of all:\n{line}" in compare.output
        assert studies[-1].missing == ("random_50pct_fold0_seed0",)
        before = tree(compare.root)
        compare.call(*TINY, "--dry_run")
        assert tree(compare.root) == before
        lines = [line for line in compare.output.splitlines() if f"in progress ({SELF})" in line]
        assert [line.split()[0] for line in lines] == ["random_50pct_fold0_seed0"]
    ran, code = compare.call(*TINY)
    assert code == 0
    assert len(ran) == 2
    assert "In progress" not in compare.output


def test_nothing_is_left_for_a_third(compare: CompareCommand) -> None:
    names = [f"{run}_fold0_seed0" for run in RUNS]
    locks = [lock_of(compare, name) for name in ("pretrain_pgl", *names)]
    assert all(lock.take() for lock in locks)
    ran, code = compare.call(*TINY)
    assert (len(ran), code) == (1, 0)  # planning
    assert "No run is done: there is nothing to report yet." in compare.output
    assert f"  pretrain_pgl: {SELF}\n" in compare.output
    for lock in locks:
        lock.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["only train", "all steps"])
def test_a_pre_training_that_ended_without_a_result(
    compare: CompareCommand, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The process that was at it was lost while this one waited for it."""
    compare.call(*TINY, "--only", "prepare")
    with lock_of(compare, "pretrain_pgl") as other:
        other.take()
        until_next_look = SimpleNamespace(sleep=lambda _: other.__exit__(None, None, None))  # not for the lock's own
        monkeypatch.setattr(schedule, "time", until_next_look)
        ran, code = compare.call(*TINY, *(("--only", "train") if how == "only train" else ()))
    assert f"Waiting for pre-training pgl: in progress in {SELF}" in compare.output
    commands = [line.split()[0] for line in ran]
    assert commands[:4] == ["nnUNetv2_train", "nnUNetv2_predict"] * 2
    assert commands[4:] == ([] if how == "only train" else ["pgl_pretrain", *commands[:4]])
    assert code == (1 if how == "only train" else 0)
    assert ("its pre-training is not done" in compare.output) == (how == "only train")


def test_a_pre_training_that_failed_is_not_tried_twice(compare: CompareCommand) -> None:
    ran, code = compare.call(*TINY, broken="pgl_pretrain")
    assert code == 1
    assert [line.split()[0] for line in ran].count("pgl_pretrain") == 1


def extend(compare: CompareCommand) -> None:
    """As another pgl_compare does that is given one more initialisation."""
    file = compare.folder / "settings.json"
    ComparisonSettings.load(file).extended({"inits": ("byol",)}, file).save(file)


def test_what_another_adds_before_the_preparation_stays(
    compare: CompareCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare.call(*TINY)
    alone = Comparison.alone

    def after_another(self: Comparison, name: str, what: str) -> Any:
        if name == "prepare":
            extend(compare)
        return alone(self, name, what)

    monkeypatch.setattr(Comparison, "alone", after_another)
    ran, code = compare.call(*TINY)
    assert code == 0
    assert ComparisonSettings.load(compare.folder / "settings.json").inits == ("random", "pgl", "byol")
    assert len(ran) == 1 + 2 * 2


def test_what_another_adds_later_is_in_the_report(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain_all = command.pretrain_all

    def extended(*arguments: Any) -> Any:
        extend(compare)
        return pretrain_all(*arguments)

    monkeypatch.setattr(command, "pretrain_all", extended)
    assert compare.call(*TINY)[1] == 0
    assert studies[-1].missing == ("byol_50pct_fold0_seed0", "byol_100pct_fold0_seed0")


def test_without_locks_it_warns_and_goes_on(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, operation: int) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pretraining.file_lock.fcntl.flock", none)
    ran, code = compare.call(*TINY)
    assert (len(ran), code) == (1 + 1 + 4 * 2, 0)
    assert compare.output.count(f"WARNING: no file can be locked in {compare.folder}") == 1
    assert len(compare.rows()) == 4 * 3
