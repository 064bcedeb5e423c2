"""Where a run lives, and whether it may start or continue there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import write_text
from pretraining.file_lock import FileLock
from pretraining.settings.config import PretrainConfig

_SECONDS_UNTIL_LOADERS_END = 20.0


class RunFolder:
    """``$nnUNet_results/PGL/<run name>``.

    Attributes:
        path: The folder.
        config_file: Settings of the run.
        manifest: Which scans the run is trained on.
        pictures: Some pairs of views.
        latest: Everything needed to continue.
        final: The encoder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.manifest = path / "manifest.json"
        self.pictures = path / "views.png"
        self.latest = path / "checkpoint_latest.pth"
        self.final = path / "checkpoint_final.pth"
        self._claim_file = path / "torchrun_id.txt"

    @classmethod
    def from_name(cls, name: str) -> RunFolder:
        """The folder of a run.

        Raises:
            PGLError: If nnUNet_results is not set, or the name is not one of a folder.
        """
        if not nnUNet_results.is_set():
            raise PGLError("nnUNet_results is not set: export nnUNet_results=/path/to/nnUNet_results")
        if not name or name in (".", "..") or Path(name).name != name:
            raise PGLError(f"-o {name!r} is not a name for a folder")
        return cls(Path(nnUNet_results) / "PGL" / name)

    def open(self, config: PretrainConfig, resume: bool, held: ExitStack) -> bool:
        """Starts a new run here, or returns True if the run that is here must be continued.

        Args:
            config: Settings of a new run.
            resume: Whether the user asks to continue; restarts by the torchrun job that has started the run always do.
            held: Keeps other runs out until it is left, see `locked`.

        Raises:
            PGLError: See `start` and `locked`.
        """
        held.enter_context(self.locked())
        if self.config_file.exists() and (resume or self.is_claimed()):
            return True
        self.start(config)
        self.claim()
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and keeps other runs out as far as system and file system have locks.

        A run that is killed leaves no lock, but its loading processes may outlive it and hold the lock for some
        seconds; this waits for them.

        Raises:
            PGLError: If another run is in progress here, or the folder cannot be made.
        """
        self._make()
        with FileLock(self.path / "run.lock") as lock:
            if not lock.take(_SECONDS_UNTIL_LOADERS_END):
                holder = lock.holder()
                raise PGLError(
                    f"{self.path}: a run is in progress there{f' ({holder})' if holder else ''}; wait until it ends, "
                    "or choose another name with -o"
                )
            yield

    def start(self, config: PretrainConfig) -> None:
        """Makes the folder of a new run and writes its settings.

        Raises:
            PGLError: If a run is already there, or the folder cannot be made.
        """
        if self.latest.exists() or self.final.exists():
            if not self.config_file.exists():
                raise PGLError(
                    f"{self.path} holds a run without its config.json, which is needed to continue it: put it back, "
                    "choose another name with -o, or delete the folder"
                )
            raise PGLError(
                f"{self.path} already holds a run: add --c to continue it, choose another name with -o, or delete it"
            )
        self._make()
        write_text(self.config_file, json.dumps(config.to_dict(), indent=4) + "\n")

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PGLError(
                f"{self.path} cannot be made ({error.strerror}): set nnUNet_results to a folder that can be written to"
            ) from error

    def claim(self) -> None:
        """Records that this torchrun job has started the run, so that its restarts continue without ``--c``."""
        if (job := _torchrun_job()) is not None:
            self._claim_file.write_text(job + "\n")

    def is_claimed(self) -> bool:
        """Whether this torchrun job has started the run, before it restarted this process."""
        job = _torchrun_job()
        return job is not None and self._claim_file.exists() and self._claim_file.read_text().strip() == job

    def release(self) -> None:
        """Removes the record from a finished run."""
        self._claim_file.unlink(missing_ok=True)

    def neighbours(self) -> str:
        """Names of existing runs, as a hint for an error."""
        others = sorted(file.parent.name for file in self.path.parent.glob("*/config.json"))
        return f", or name one that is there with -o: {', '.join(others[:5])}" if others else ""

    def require_same(self, given: PretrainConfig, stored: PretrainConfig) -> None:
        """Stops a continued run whose settings were changed.

        Raises:
            PGLError: Names each setting with both values.
        """
        if different := given.differences(stored):
            listed = "; ".join(f"{name}: the run has {theirs}, you gave {own}" for name, own, theirs in different)
            raise PGLError(
                f"--c continues {self.path} with its own settings, and these differ: {listed}. Leave them out to "
                "continue with the run's values, or start a new run with -o"
            )


def _torchrun_job() -> str | None:
    """The agent that started this process, which lives through restarts; None without torchrun.

    Its id alone is not enough: without ``--rdzv-id`` all jobs have the same. Nor is the number of restarts: an agent
    does not count those that another node caused.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run_id is None else f"{run_id} {socket.gethostname()} {os.getppid()}"
