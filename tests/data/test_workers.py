from pretraining.data.scan import BadScan
from pretraining.data.workers import run_tasks

# eval is a function that spawned processes can import, whatever the task.
KILL = "__import__('os')._exit(1)"


def test_killed_worker_costs_its_own_task_only() -> None:
    tasks = ["1 + 1", KILL, "2 + 2", "1 / 0", "3 + 3"]
    outcomes = dict(run_tasks(eval, tasks, 2))
    assert [outcomes[task] for task in ("1 + 1", "2 + 2", "3 + 3")] == [2, 4, 6]
    assert isinstance(outcomes[KILL], BadScan)
    assert "killed" in str(outcomes[KILL])
    assert isinstance(outcomes["1 / 0"], ZeroDivisionError)


def test_one_process_works_here() -> None:
    outcomes = list(run_tasks(eval, ["__import__('os').getpid()", "1 / 0"], 1))
    assert outcomes[0][1] == __import__("os").getpid()
    assert isinstance(outcomes[1][1], ZeroDivisionError)
