import os
import subprocess
import sys

import pytest

from pretraining.data.scan import BadScan
from pretraining.data.workers import run_tasks

# eval is a function that spawned processes can import, whatever the task.
KILL = "__import__('os')._exit(1)"
PID = "__import__('os').getpid()"


def test_killed_worker_costs_its_own_task_only() -> None:
    tasks = ["1 + 1", KILL, "2 + 2", "1 / 0", KILL + " or 2", "3 + 3"]
    outcomes = dict(run_tasks(eval, tasks, 2))
    assert [outcomes[task] for task in ("1 + 1", "2 + 2", "3 + 3")] == [2, 4, 6]
    for task in (KILL, KILL + " or 2"):
        assert isinstance(outcomes[task], BadScan)
        assert "killed" in str(outcomes[task])
    assert str(outcomes["1 / 0"]) == "ZeroDivisionError: division by zero"


def test_task_killed_beside_others_succeeds_alone(tmp_path: os.PathLike[str]) -> None:
    """As when two scans together need more memory than there is."""
    mark = os.path.join(tmp_path, "mark")
    once = f"'done' if __import__('os').path.exists({mark!r}) else (open({mark!r}, 'w').close(), {KILL})"
    assert dict(run_tasks(eval, [once, "1"], 2)) == {once: "done", "1": 1}


def test_number_of_processes() -> None:
    tasks = [f"{PID}, __import__('time').sleep(0.2), {number}" for number in range(4)]
    pids = [outcome[0] for _, outcome in run_tasks(eval, tasks, 2)]
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    assert list(run_tasks(eval, [PID], 1)) == [(PID, os.getpid())]


def test_workers_end_when_the_caller_stops_early() -> None:
    tasks = run_tasks(eval, [PID, "__import__('time').sleep(60)"], 2)
    _, pid = next(tasks)
    tasks.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_missing_main_guard_is_said_and_does_not_hang(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "script.py")
    with open(script, "w") as file:
        file.write("from pretraining.data.workers import run_tasks\nprint(list(run_tasks(eval, ['1', '2'], 2)))\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "DataError: worker processes cannot start" in run.stderr
