"""TensorBoard and Weights & Biases: the numbers of ``metrics.jsonl``, sent there too."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.files import write_text
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions

_SECONDS_UNTIL_GIVEN_UP = 60.0  # of Weights & Biases without a network


class _Logger(Protocol):
    def add(self, epoch: int, numbers: Mapping[str, float]) -> None: ...

    def close(self, is_done: bool) -> None: ...


class ExperimentLoggers:
    """What records go to besides ``metrics.jsonl``, which has all of them.

    A logger that fails is left out after one warning. Leaving the block closes them.

    Args:
        options: Say which ones there are.
        folder: The run folder.
        config: The settings, which Weights & Biases shows.
        log: For warnings.
    """

    def __init__(self, options: RunOptions, folder: Path, config: PretrainConfig, log: Callable[[str], None]) -> None:
        self._folder, self._config, self._log = folder, config, log
        asked = {"TensorBoard": options.tensorboard, "Weights & Biases": options.wandb}
        self._names = [name for name, is_asked in asked.items() if is_asked]
        self._loggers: dict[str, _Logger] = {}

    def __enter__(self) -> ExperimentLoggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, logger in tuple(self._loggers.items()):
            self._attempt(name, partial(logger.close, kind is None))

    def start(self, history: Sequence[Mapping[str, Any]], resume: bool) -> None:
        """Opens the loggers, and adds the records of the epochs until now that they lack.

        Args:
            history: These records, as in ``metrics.jsonl``.
            resume: Whether an earlier part of the run may have been logged; else a new curve is begun.
        """
        for name in self._names:
            self._attempt(name, partial(self._open, name, resume))
        for record in history:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an epoch, all of its numbers under their names."""
        numbers = {key: value for key, value in record.items() if key != "epoch" and isinstance(value, (int, float))}
        for name, logger in tuple(self._loggers.items()):
            self._attempt(name, partial(logger.add, record["epoch"], numbers))

    def _open(self, name: str, resume: bool) -> None:
        if name == "TensorBoard":
            self._loggers[name] = _TensorBoard(self._folder)
        else:
            self._loggers[name] = _WeightsAndBiases(self._folder, self._config, resume)

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the run does not depend on it
            self._loggers.pop(name, None)
            reason = one_line(f"{type(error).__name__}: {error}")
            self._log(f"WARNING: {name} failed and gets no more numbers ({reason}); metrics.jsonl has all of them")


class _TensorBoard:
    """Event files in the folder ``tensorboard``; each start writes all epochs, in place of those logged before.

    So there are neither gaps nor repetitions, wherever the run was interrupted.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=0)

    def add(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, is_done: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the service, or offline in the folder ``wandb``, with nnU-Net's variables for project and mode.

    What it would send by itself is turned off as far as it tells of the machine, its paths, and the code.
    """

    def __init__(self, folder: Path, config: PretrainConfig, resume: bool) -> None:
        import wandb

        id_file = folder / "wandb_id.txt"
        if not (resume and id_file.is_file()):
            write_text(id_file, f"{uuid.uuid4().hex[:8]}\n")
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=_SECONDS_UNTIL_GIVEN_UP,
            host="",
            init_timeout=_SECONDS_UNTIL_GIVEN_UP,
            quiet=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(
            project=os.getenv("nnUNet_wandb_project", "nnunet"),  # noqa: SIM112 - nnU-Net's name
            mode=_wandb_mode(),
            name=folder.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=config.without_places(),
            settings=settings,
        )
        self._next = self._run.step  # the service has the epochs before it; offline it is 0

    def add(self, epoch: int, numbers: Mapping[str, float]) -> None:
        if epoch >= self._next:
            self._run.log(dict(numbers), step=epoch)

    def close(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)


def _wandb_mode() -> Any:
    """As nnU-Net takes it; without that variable, what Weights & Biases finds in its own."""
    return os.getenv("nnUNet_wandb_mode") or None  # noqa: SIM112 - nnU-Net's name


def require_loggers(options: RunOptions) -> None:
    """Checks that the loggers asked for can be used, before anything is prepared.

    Raises:
        PGLError: A package is not installed, or Weights & Biases has no account to send to and would ask for one.
    """
    for name, is_asked in (("tensorboard", options.tensorboard), ("wandb", options.wandb)):
        spec = find_spec(name) if is_asked else None
        if is_asked and (spec is None or spec.origin is None):  # without an origin it is some folder of that name
            raise PGLError(f'--{name}: {name} is not installed: pip install ".[{name}]" in the clone of this package')
    if options.wandb:
        import wandb

        mode = _wandb_mode() or wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PGLError(
                "--wandb: no account is set up: run wandb login, set WANDB_API_KEY, or set nnUNet_wandb_mode=offline"
            )
