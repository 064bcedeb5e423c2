"""Kills runs at random moments and continues them; part of `benchmarks.reliability`."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from benchmarks.small_runs import SmallRuns, are_equal, kill
from nnunetv2_pgl.files import sha256_of

_SCANS = 60


def kill_training(root: Path, kills: int, epochs: int, seed: int) -> bool:
    """Kills a training until it has been done often enough or is at its end.

    After each kill the state on disk has to be whole and no older than before. The end has to be that of an undisturbed
    run, to the bit.
    """
    runs = SmallRuns(root, ("-pairs", "4", "-epochs", str(epochs)))
    runs.write_scans(4, (20, 20, 24), (14, 16, 16))
    begin = time.monotonic()
    runs.finish("undisturbed")
    print(f"undisturbed: {epochs} epochs in {time.monotonic() - begin:.0f} s", flush=True)
    _kill_again_and_again(runs, kills, random.Random(seed))
    runs.finish("killed")
    return are_equal(runs, "undisturbed", "killed")


def _kill_again_and_again(runs: SmallRuns, kills: int, rng: random.Random) -> None:
    usual = _seconds_to_start(runs)
    folder, epochs, most_files = runs.folder("killed"), 0, 0
    at: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(kills):
        process = runs.start("killed")
        with suppress(TimeoutExpired):
            process.wait(rng.uniform(0.5 * usual, 2 * usual))
        if process.returncode is not None:
            if process.returncode == 0:
                print(f"at its end after {number} kills: more --epochs", flush=True)
                break
            sys.exit(f"attempt {number} ended by itself:\n{runs.output('killed')}")
        temporary = _temporary_files(folder)
        kill(process)
        before, epochs = epochs, int(runs.state("killed")["epoch"])
        if epochs < before:
            sys.exit(f"attempt {number}: the state went back from epoch {before} to {epochs}")
        at[
            "while a file was written" if temporary else "elsewhere" if epochs > before else "before it got further"
        ] += 1
        most_files = max(most_files, temporary)
    print(
        f"{at.total()} kills in {time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {name}" for name, n in at.items())
    )
    print(f"{epochs} epochs done, never fewer than before; at most {most_files} temporary files", flush=True)


def _seconds_to_start(runs: SmallRuns) -> float:
    """From the command to the first epoch."""
    begin = time.monotonic()
    process = runs.start("killed")
    while not runs.epochs_done("killed"):
        if process.poll() is not None:
            sys.exit(f"the run ended by itself:\n{runs.output('killed')}")
        time.sleep(0.05)
    kill(process)
    return time.monotonic() - begin


def kill_preprocessing(root: Path, kills: int, seed: int) -> bool:
    """Kills the preprocessing of 60 scans by two workers; the store has to become that of an undisturbed one."""
    undisturbed, killed = (SmallRuns(root / name, ("-pairs", "2", "-epochs", "1"), 2) for name in ("one", "other"))
    for runs in (undisturbed, killed):
        runs.write_scans(_SCANS, (60, 100, 100), (5, 4, 4))
    process = undisturbed.start("run")
    first, last = (_seconds_until_stored(undisturbed, process, count) for count in (1, _SCANS))
    if process.wait() != 0:
        sys.exit(f"the run ended by itself:\n{undisturbed.output('run')}")
    _kill_before_training(killed, kills, first, last, random.Random(seed))
    killed.finish("run")
    stores = [{path.name: sha256_of(path) for path in runs.store.rglob("*.b2nd")} for runs in (undisturbed, killed)]
    print(f"{len(stores[0])} stored scans equal to the bit: {stores[0] == stores[1]}", flush=True)
    return stores[0] == stores[1]


def _seconds_until_stored(runs: SmallRuns, process: Popen[bytes], count: int) -> float:
    begin = time.monotonic()
    while _stored(runs) < count:
        if process.poll() is not None:
            sys.exit(f"the run ended by itself:\n{runs.output('run')}")
        time.sleep(0.05)
    return time.monotonic() - begin


def _kill_before_training(runs: SmallRuns, kills: int, first: float, last: float, rng: random.Random) -> None:
    """Each attempt gets the time to store the first scan, and a share of the time for all."""
    counts, most_files = [], 0
    for _ in range(kills):
        process = runs.start("run")
        with suppress(TimeoutExpired):
            process.wait(first + rng.uniform(-1, 1.5) * last / kills)
        if process.returncode is not None:
            sys.exit(f"preprocessing ended by itself:\n{runs.output('run')}")
        kill(process)
        counts.append(_stored(runs))
        folders = runs.store.iterdir() if runs.store.is_dir() else ()
        most_files = max([most_files, *map(_temporary_files, folders)])
    shown = ", ".join(map(str, counts))
    print(f"{kills} kills, after which {shown} of {_SCANS} scans were stored; at most {most_files} temporary files")


def _stored(runs: SmallRuns) -> int:
    return len(list(runs.store.rglob("*.json")))


def _temporary_files(folder: Path) -> int:
    return sum(1 for file in folder.glob(".*") if ".tmp" in file.name) if folder.is_dir() else 0
