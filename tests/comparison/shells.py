"""``pgl_compare`` in several processes at the same time, as from several shells.

One process imports what the command needs, which takes seconds, and is forked for each call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SERVER = r"""
import json, os, sys
from pretraining import console_commands
from pretraining.comparison import command, report, schedule

def write_missing(results, study, folder):
    (folder / "report.md").write_text(json.dumps([len(study.runs), study.missing]))
    return [folder / "report.md"]

report.write_report = write_missing
schedule._SECONDS_BETWEEN_LOOKS = 0.1
for line in sys.stdin:
    call = json.loads(line)
    if "wait" in call:
        print(os.waitstatus_to_exitcode(os.waitpid(call["wait"], 0)[1]), flush=True)
        continue
    process = os.fork()
    if process:
        print(process, flush=True)
        continue
    os.environ.update(call["environment"])
    output = os.open(call["output"], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    console_commands.find_command = lambda name: f"{call['commands']}/{name}"
    sys.argv = ["pgl_compare", *call["words"]]
    code = 0
    try:
        command.compare_entry()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        print(stop.code)
    sys.stdout.flush()
    os._exit(code)
"""


@dataclass
class Shell:
    """A call that goes on."""

    process: int
    output: Path

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output.read_text(), self.output)


class Shells:
    """Starts calls, and waits for them."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, root: Path, name: str, *words: str, held: str = "") -> Shell:
        """A call; a stand-in with ``held`` in its command line waits for the file "go"."""
        keys = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "JOURNAL")
        environment = {**{key: os.environ[key] for key in keys}, "HELD": held, "HELD_AT": str(root)}
        output = root / f"{name}.txt"
        output.touch()
        call = {"words": words, "environment": environment, "output": str(output), "commands": str(root / "bin")}
        return Shell(self._ask(call), output)

    def exit_code(self, shell: Shell) -> int:
        return self._ask({"wait": shell.process})

    def _ask(self, call: dict[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(call), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


def wait_until(condition: Callable[[], bool], what: object) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)
