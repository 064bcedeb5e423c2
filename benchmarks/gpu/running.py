"""Runs the parts of a benchmark one after the other, each in a process of its own that can be ended."""

from __future__ import annotations

import importlib
import os
import signal
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.report import Figure, Settings, machine, table_line, write_json

_IMPORTED_ONCE = ["torch", "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "benchmarks.step"]
_UNTIL_IT_HAS_ENDED = 20.0  # seconds


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        module: Its ``measure(settings)`` gives figures, and lines for the text, as it has them.
        weight: Its share of the time, over the sum of the weights of all parts still to run.
    """

    module: str
    weight: float


@dataclass
class Results:
    """What has been measured, in two files that are written again after each figure.

    Attributes:
        folder: For ``gpu.json`` and ``gpu.txt``; created.
        figures: In the order in which they came.
        errors: In one line, by the part that has failed.
        about: The machine.
        lines: Of the text.
    """

    folder: Path
    figures: list[Figure] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def tell(self, *lines: str) -> None:
        """Adds lines to the text, and writes both files."""
        for line in lines:
            print(line, flush=True)
        self.lines += lines
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.txt").write_text("\n".join(self.lines) + "\n")
        write_json(self.figures, self.about, self.folder / "gpu.json", self.errors)

    def add(self, figure: Figure) -> None:
        """Adds a figure to both."""
        self.figures.append(figure)
        self.tell(table_line(figure))

    def fail(self, part: str, error: _Error) -> None:
        """Notes why a part has failed."""
        self.errors[part] = error.line
        self.tell(f"FAILED: {error.line}", *error.details)


@dataclass(frozen=True)
class _Error:
    line: str
    details: tuple[str, ...] = ()


def run_parts(parts: Mapping[str, Part], settings: Settings, seconds: float, results: Results) -> None:
    """Runs parts by their names, in this order.

    A process for each keeps what one leaves behind (memory, a device in an error state, compiled kernels) from the
    others. All are forked from one that has imported the libraries, but has not touched the device.
    """
    end = time.monotonic() + seconds
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    first = context.Process(target=_nothing)  # starts the one that they are forked from
    first.start()
    first.join()
    left = sum(part.weight for part in parts.values())
    for name, part in parts.items():
        share = max(0.0, end - time.monotonic()) * part.weight / left
        left -= part.weight
        begin = time.monotonic()
        results.tell("", f"{name}: at most {share:.0f} s")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(part.module, replace(settings, seconds=share), theirs))
        process.start()
        theirs.close()
        ended = False
        try:
            ended = _collect(name, ours, begin + share, results)
            if ended:
                process.join(_UNTIL_IT_HAS_ENDED)
        finally:
            _end(process)
            process.join()
        if not ended and name not in results.errors:
            results.fail(name, _Error(f"its process ended with exit code {process.exitcode}"))
        results.tell(f"{name}: {time.monotonic() - begin:.0f} s")


def _nothing() -> None:
    """In a process of its own."""


def _collect(name: str, connection: Connection, deadline: float, results: Results) -> bool:
    """Takes what a part sends until it has had its time; whether it has ended by itself."""
    while connection.poll(max(0.0, deadline - time.monotonic())):
        try:
            item = connection.recv()
        except EOFError:  # its process has ended, and all those below it
            return False
        if item is None:
            return True
        if isinstance(item, Figure):
            results.add(item)
        elif isinstance(item, dict):
            results.about = item
        elif isinstance(item, _Error):
            results.fail(name, item)
        else:
            results.tell(item)
    results.fail(name, _Error("not done within its share of the time; --parts with more --seconds gives it more"))
    return False


def _measure(module: str, settings: Settings, connection: Connection) -> None:
    """In the process of a part."""
    os.setsid()  # so that its own processes end with it
    try:
        connection.send(machine(settings.device))
        for item in importlib.import_module(module).measure(settings):
            connection.send(item)
    except (Exception, SystemExit) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        connection.send(_Error(f"{type(error).__name__}: {reason}", tuple(traceback.format_exc().splitlines())))
    connection.send(None)


def _end(process: BaseProcess) -> None:
    """Ends a part and the processes that it has started."""
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # one that has only begun leads no group yet
