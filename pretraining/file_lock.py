"""Locks that keep processes out of each other's work, on one machine or on a shared file system."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PROBE = 0.02  # seconds; `holder` of another process takes the lock for a moment, to see whether it is free
_SECONDS_BETWEEN_TRIES = 0.5


@dataclass(frozen=True)
class LockHolder:
    """Which process has taken a lock.

    Attributes:
        process: Its number.
        host: Its machine.
    """

    process: int
    host: str

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended: then a command that it had started still holds the lock."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # a process of another user
            return False
        return False

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.process} on {self.host}"


class FileLock:
    """A lock on a file, as far as the system and the file system have such locks. Leaving its block releases it.

    The system releases it when the process ends, however it ends; if commands have inherited it, when they have ended
    too. The file stays, and names the process that was the last to take the lock.

    Args:
        path: The file. It is opened for writing, without which NFS gives no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, patience: float = 0.0) -> bool:
        """Takes the lock, or returns False if another process has it for longer than ``patience`` seconds.

        Without locks it returns True, and `is_held` stays False.

        Raises:
            OSError: If the file cannot be made.
        """
        end = time.monotonic() + max(patience, _PROBE)
        while not self._try_to_take():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _SECONDS_BETWEEN_TRIES if patience else _PROBE / 5))
        return True

    def _try_to_take(self) -> bool:
        if fcntl is None:
            return True
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # anything but "held" means that this file system has no locks
            os.close(file)
            return not isinstance(error, BlockingIOError)
        self._file = file
        with suppress(OSError):  # on a full disk the name is missing
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        return True

    def _open(self) -> int:
        """Makes the file if it is missing; whoever may write in its folder may lock it too, whatever the umask is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's; local file systems lock it all the same
            if not self.path.is_file():
                raise
            return os.open(self.path, os.O_RDONLY)
        with suppress(OSError):
            os.fchmod(file, self.path.parent.stat().st_mode & 0o666)
        return file

    @property
    def is_held(self) -> bool:
        """Whether this process has it, and others are kept out."""
        return self._file is not None

    @property
    def inherited(self) -> tuple[int, ...]:
        """What a command has to inherit (``pass_fds``) to hold the lock too."""
        return () if self._file is None else (self._file,)

    def holder(self) -> LockHolder | None:
        """Who has the lock now; None if nobody has. Writes nothing."""
        if fcntl is None:
            return None
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            process, _, host = os.read(file, 1000).decode(errors="replace").strip().partition(" ")
            return LockHolder(int(process) if process.isdigit() else 0, host or "an unknown machine")
        except OSError:
            return None
        finally:
            os.close(file)
        return None
