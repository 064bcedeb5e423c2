import os
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from pretraining.data.scan import BadScan, DataError
from pretraining.data.workers import run_tasks

# eval is a function that spawned processes can import, whatever the task.
KILL = "__import__('os')._exit(1)"
PID = "__import__('os').getpid()"


def test_killed_worker_costs_its_own_task_only(tmp_path: Path) -> None:
    """One task kills its worker always, one only the first time: as for want of memory beside another."""
    mark = str(tmp_path / "mark")
    once = f"'done' if __import__('os').path.exists({mark!r}) else (open({mark!r}, 'w').close(), {KILL})"
    outcomes = dict(run_tasks(eval, ["1 + 1", "1 / 0", once, KILL, PID], 2))
    assert (outcomes["1 + 1"], outcomes[once]) == (2, "done")
    assert isinstance(outcomes[KILL], BadScan)
    assert "killed" in str(outcomes[KILL])
    assert isinstance(outcomes["1 / 0"], BadScan)
    assert str(outcomes["1 / 0"]) == "ZeroDivisionError: division by zero"
    assert outcomes[PID] != os.getpid()


def test_workers_end_when_the_caller_stops_early() -> None:
    tasks = run_tasks(eval, [PID, "__import__('time').sleep(60)"], 2)
    _, pid = next(iter(tasks))
    del tasks
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_workers_compute_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which processes read when they import numpy; this one's own number stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    outcomes = dict(run_tasks(eval, [f"__import__('os').environ.get('{name}')" for name in names], 2))
    assert list(outcomes.values()) == ["1", "1"]
    assert [os.environ.get(name) for name in names] == ["3", None]


def test_one_process_is_this_one() -> None:
    assert list(run_tasks(eval, [PID], 1)) == [(PID, os.getpid())]
    ((_, error),) = run_tasks(eval, ["1 / 0"], 1)
    assert isinstance(error, BadScan)


def test_workers_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because they cannot import the function; usually because the main guard is missing."""
    module = ModuleType("only_here")
    module.function = FunctionType((lambda task: task).__code__, {"__name__": "only_here"}, "function")  # type: ignore[attr-defined]
    module.function.__qualname__ = "function"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(DataError, match="worker processes cannot start"):
        list(run_tasks(module.function, ["task"], 2))  # type: ignore[attr-defined]
