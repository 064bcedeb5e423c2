"""Runs commands as a user would type them: shown first, output on the console and in a log file."""

from __future__ import annotations

import codecs
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunetv2_pgl.errors import PGLError
from pretraining.file_lock import FileLock
from pretraining.launching.errors import STOPPED_EXIT_CODE


class CommandError(PGLError):
    """A command is missing or failed; the message says which, and where its log is."""


class CommandStopped(CommandError):  # noqa: N818 - not an error
    """A command was asked by a signal to end, has saved its work and can continue."""


def find_command(name: str) -> str:
    """The path of a console script: that of the running environment, activated or not, else the first on PATH.

    Raises:
        CommandError: There is none.
    """
    own_folders = os.pathsep.join([str(Path(sys.executable).parent), sysconfig.get_path("scripts")])
    path = shutil.which(name, path=own_folders) or shutil.which(name)
    if path is None:
        raise CommandError(f"{name} is neither beside {sys.executable} nor on PATH; is its package installed?")
    return path


class CommandRunner:
    """Runs commands one after the other with the same environment and numbers their logs.

    Args:
        log_folder: Gets one file NN_command.txt for each command, numbered after those that are there; created.
        environment: All variables of the commands; this process's own stay as they are.
        lock: The commands hold it too, until they end, even if this process is killed before.
    """

    def __init__(self, log_folder: Path, environment: Mapping[str, str], lock: FileLock | None = None) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log_folder = log_folder
        # Without it, a command would hold its output back until it ends, as it writes into a pipe.
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self._inherited = () if lock is None else lock.inherited
        numbers = [file.name.split("_", 1)[0] for file in log_folder.glob("*_*.txt")]
        self._number = max((int(number) for number in numbers if number.isdigit()), default=0)

    def set_variable(self, name: str, value: str) -> None:
        """Sets an environment variable for the commands to come."""
        self._environment[name] = value

    def run(self, command: Sequence[str]) -> None:
        """Runs a command; its output goes to the console and to its log as it comes.

        Raises:
            CommandStopped: It ends with the exit code of a command that continues when it is called again.
            CommandError: It is missing or ends with another exit code than 0.
        """
        name = command[0]
        executable = find_command(name)
        self._number += 1
        log = self._log_folder / f"{self._number:02d}_{name}.txt"
        print(f"\n$ {shlex.join(command)}", flush=True)
        with log.open("w", encoding="utf-8") as log_file:
            log_file.write(f"$ {shlex.join(command)}\n")
            exit_code = self._stream([executable, *command[1:]], log_file.write)
        if exit_code == STOPPED_EXIT_CODE:
            raise CommandStopped(f"{name} was stopped and has saved; its output is in {log}")
        if exit_code:
            raise CommandError(f"{name} ended with exit code {exit_code}; its output is in {log}")

    def _stream(self, command: Sequence[str], write_log: Callable[[str], object]) -> int:
        """Copies the output piece by piece, not by line, so that progress bars move; returns the exit code."""
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        with subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self._inherited,
        ) as process:
            assert process.stdout is not None  # because of PIPE
            while chunk := os.read(process.stdout.fileno(), 4096):
                text = decode(chunk)
                sys.stdout.write(text)
                sys.stdout.flush()
                write_log(text)
        return process.returncode
