"""What a launcher says of a process in the environment: its number among all, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from nnunetv2_pgl.errors import PGLError

_LARGEST_PORT = 65535


@dataclass(frozen=True)
class ProcessRank:
    """The place of this process among those that a launcher has started.

    Attributes:
        rank: Its number among all.
        count: How many there are.
        local_rank: Its number on this machine.
        local_count: How many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def read_torchrun_environment() -> ProcessRank:
    """The place that torchrun's variables name; alone if there are none, or WORLD_SIZE is 1.

    Schedulers and job scripts set some of them too. A process that does not know which of several it is must not train
    alone: so would the others.

    Raises:
        PGLError: Some of the variables are missing or impossible; the message names them.
    """
    if "WORLD_SIZE" not in os.environ and "RANK" in os.environ:
        _refuse_missing("WORLD_SIZE", given=("RANK",))
    count = _number("WORLD_SIZE", 1, default=1)
    if count > 1 and "RANK" not in os.environ:
        _refuse_missing("RANK", given=("WORLD_SIZE",))
    rank = _number("RANK", 0, default=0, below="WORLD_SIZE", count=count)
    if count == 1:
        return ProcessRank()
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        _refuse_missing(*missing, given=("WORLD_SIZE", "RANK"))
    if _number("MASTER_PORT", 1) > _LARGEST_PORT:
        _refuse("MASTER_PORT", why=f"but a port is at most {_LARGEST_PORT}")
    local_count = _number("LOCAL_WORLD_SIZE", 1, default=count)
    if local_count > count:
        _refuse("LOCAL_WORLD_SIZE", why=f"but WORLD_SIZE, which counts the processes of all machines, is {count}")
    local_rank = _number("LOCAL_RANK", 0, default=0, below="LOCAL_WORLD_SIZE", count=local_count)
    return ProcessRank(rank, count, local_rank, local_count)


def _number(name: str, least: int, default: int | None = None, below: str = "", count: int | None = None) -> int:
    """The whole number that a variable holds; ``count`` is the value of the variable ``below``."""
    if default is not None and name not in os.environ:
        return default
    try:
        number = int(os.environ[name])
    except ValueError:
        _refuse(name, why="which is not a whole number")
    if number < least:
        _refuse(name, why=f"which is less than {least}")
    if count is not None and number >= count:
        _refuse(name, why=f"but {below} is {count}, so that it can be at most {count - 1}")
    return number


def _refuse_missing(*names: str, given: Sequence[str]) -> NoReturn:
    are = "is" if len(names) == 1 else "are"
    _refuse(*given, why=f"but {' and '.join(names)} {are} not set, so that this process cannot join the others")


def _refuse(*names: str, why: str) -> NoReturn:
    given = " and ".join(f"{name}={os.environ[name]}" for name in names)
    unset = " and ".join(name for name in ("WORLD_SIZE", "RANK") if name in os.environ)
    raise PGLError(
        f"the environment has {given}, {why}; unset {unset} to train with this process alone or with -num_gpus N, or "
        "start all processes with torchrun, which sets what is needed"
    )
