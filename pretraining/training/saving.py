"""When a run is measured and saved, and the thread that writes while training continues."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from nnunetv2_pgl.checkpoint import atomic_save
from pretraining.training.progress import plot_progress
from pretraining.training.state import TrainingState

_SECONDS_BETWEEN_SAVES = 600.0
_SHARE_OF_MEASURING = 0.01  # of the time


class SaveTimes:
    """When a run is measured and saved: after every ``save_every`` epochs, or by the clock.

    By the clock, state and curves are written every 10 minutes, within an epoch too. The correspondence is
    measured at the end of an epoch, as often as that takes 1 % of the time, at least every 10 minutes.

    Args:
        save_every: Number of epochs between two saves; None: by the clock.
        steps_per_epoch: Number of steps in an epoch.
        now: The clock, in seconds.
    """

    def __init__(self, save_every: int | None, steps_per_epoch: int, now: Callable[[], float] = time.monotonic):
        self._steps = None if save_every is None else save_every * steps_per_epoch
        self._now = now
        self._saved = self._measured = now()
        self._pause = _SECONDS_BETWEEN_SAVES  # between two measurements

    def is_due(self, step: int) -> bool:
        """Whether to save after ``step`` steps of the run."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._now() - self._saved >= _SECONDS_BETWEEN_SAVES

    def measuring_is_due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps of the run, the last ones of an epoch."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._now() - self._measured >= self._pause

    def saved(self) -> None:
        """Starts the time to the next save."""
        self._saved = self._now()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around a measurement, whose length decides when the next is due."""
        started = self._now()
        yield
        self._measured = self._now()
        self._pause = min(_SECONDS_BETWEEN_SAVES, (self._measured - started) / _SHARE_OF_MEASURING)


class StateWriter:
    """Writes ``checkpoint_latest.pth`` and ``progress.png`` in a thread, from a copy of the state.

    As a context manager it waits at the end for what is being written.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="StateWriter")
        self._writing: Future[None] | None = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.check()

    def write(self, state: TrainingState) -> None:
        """Copies the state and starts to write it, once the former one is written.

        Raises:
            OSError: If the former state could not be written; the one before it is intact.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, state.on_host())

    def wait(self) -> None:
        """Until all is written.

        Raises:
            OSError: If it could not be.
        """
        if self._writing is not None:
            self._writing.result()

    def check(self) -> None:
        """Raises what went wrong meanwhile, without waiting.

        Raises:
            OSError: The state could not be written.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def _write(self, content: dict[str, Any]) -> None:
        atomic_save(content, self._folder / "checkpoint_latest.pth")
        try:
            plot_progress(content["history"], content["baseline"], self._folder / "progress.png")
        except OSError:
            raise
        except Exception as error:  # no error of a plotting library is a reason to end a run
            warnings.warn(f"progress.png could not be drawn: {error!r}", stacklevel=2)
