"""Memory and open files of a long run, and the loss of its loading process; part of `benchmarks.reliability`."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import MIB, memory_of
from benchmarks.small_runs import SmallRuns, are_equal

_STEPS = 100  # of an epoch: one record each
_WARM_UP = 10  # epochs
_MAX_GROWTH = 0.02  # after it, of memory and open files


@dataclass(frozen=True)
class _Record:
    """Resident bytes and open files of a run's processes, main process first."""

    memory: tuple[int, ...]
    files: tuple[int, ...]


def soak(root: Path, steps: int, losses: int) -> bool:
    """Trains for many steps, recording each hundred; and once more, killing the loading process now and then.

    Memory and open files may grow by 2 % after the first 1,000 steps. The second run, continued after each loss, has to
    end as the first one, to the bit.
    """
    epochs = -(-steps // _STEPS)
    runs = SmallRuns(root, ("-pairs", str(2 * _STEPS), "-epochs", str(epochs)))
    runs.write_scans(4, (20, 20, 24), (14, 16, 16))
    records = _watched(runs, epochs)
    steady = records[min(_WARM_UP, len(records)) - 1 :]
    grown = {
        "resident memory": max(sum(record.memory) for record in steady) / sum(steady[0].memory) - 1,
        "open files": max(sum(record.files) for record in steady) / sum(steady[0].files) - 1,
    }
    for name, growth in grown.items():
        print(f"{name} grew by {growth:.1%} at most, from step {_WARM_UP * _STEPS} to {epochs * _STEPS}", flush=True)
    _lose_loading_processes(runs, epochs, losses)
    return are_equal(runs, "watched", "losing") and max(grown.values()) <= _MAX_GROWTH


def _watched(runs: SmallRuns, epochs: int) -> list[_Record]:
    process = runs.start("watched")
    records: list[_Record] = []
    while process.poll() is None:
        done = runs.epochs_done("watched")
        if len(records) < done < epochs:  # at its end processes come and go
            records.append(_record(process.pid))
            shown = " + ".join(f"{memory / MIB:.0f}" for memory in records[-1].memory)
            print(f"step {done * _STEPS}: {shown} MiB, open files {records[-1].files}", flush=True)
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"the run ended by itself:\n{runs.output('watched')}")
    return records


def _record(pid: int) -> _Record:
    pids = (pid, *_loading_processes(pid))
    return _Record(
        tuple(memory_of(each).resident for each in pids), tuple(len(os.listdir(f"/proc/{each}/fd")) for each in pids)
    )


def _loading_processes(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _lose_loading_processes(runs: SmallRuns, epochs: int, losses: int) -> None:
    """Each time the run has to say what happened, and to end by itself; then it is continued."""
    for number in range(losses):
        process = runs.start("losing")
        while runs.epochs_done("losing") < (number + 1) * epochs // (losses + 1) or not _loading_processes(process.pid):
            if process.poll() is not None:
                sys.exit(f"the run ended by itself:\n{runs.output('losing')}")
            time.sleep(0.1)
        time.sleep(0.5)
        begin = time.monotonic()
        os.kill(_loading_processes(process.pid)[0], signal.SIGKILL)
        process.wait()
        last = runs.output("losing").splitlines()[-1]
        print(f"loading process killed: ended after {time.monotonic() - begin:.1f} s: {last[:120]}...", flush=True)
        if process.returncode != 1 or "a data loading process was killed by SIGKILL" not in last:
            sys.exit("it should have said so")
    runs.finish("losing")
