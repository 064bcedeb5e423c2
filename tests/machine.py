"""A machine for runs of the commands: nnU-Net's folders with a few small scans, and its processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretraining.console_commands import find_command

SMALL = (
    *("-d", "501", "-patch", "6", "12", "16", "-strides", "4", "8", "8", "-np", "1", "-val_scans", "1"),
    *("-warmup", "1", "-device", "cpu"),
)
SHORT = (*SMALL, "-b", "2", "-pairs", "4", "-optimizer", "adamw", "-lr", "1e-4")


@dataclass(frozen=True)
class Machine:
    """nnU-Net's folders below a root."""

    root: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def run_folder(self, name: str) -> Path:
        return self.root / "nnUNet_results" / "PGL" / name

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        folders = {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        environment = {**os.environ, **folders, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1", **variables}
        process = subprocess.Popen(
            [find_command(command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Ends what a test that failed has left."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def start_ranks(self, code: str, arguments: Sequence[str] = (), count: int = 2) -> list[subprocess.Popen[str]]:
        port = str(free_port())
        return [
            self.start(
                "python", "-c", code, *arguments,
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            )
            for rank in range(count)
        ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def output_of(process: subprocess.Popen[str], exit_code: int) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == exit_code, output[-4000:]
    return output


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, f"{file} was not written"
        time.sleep(0.1)


def children(process: subprocess.Popen[str], word: str) -> list[int]:
    """Processes below another whose command holds a word, in the order of their start."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if word in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]
