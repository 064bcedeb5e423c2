"""What a launcher says of a process in the environment: its number among all, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pretraining.launching.errors import TrainingError

_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Place:
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


def place_in_environment() -> Place:
    """The place that torchrun's variables name; alone if there are none, or WORLD_SIZE is 1.

    Schedulers and job scripts set some of them too. A process that cannot tell which of several it is must not train
    alone: so would the others.

    Raises:
        TrainingError: Some of the variables are missing, or cannot be meant; the message names them.
    """
    if "WORLD_SIZE" not in os.environ:
        if "RANK" in os.environ:
            _refuse_missing(["RANK"], ["WORLD_SIZE"])
        return Place()
    count = _number("WORLD_SIZE", 1)
    if count > 1 and "RANK" not in os.environ:
        _refuse_missing(["WORLD_SIZE"], ["RANK"])
    rank = _number("RANK", 0, "WORLD_SIZE", count) if "RANK" in os.environ else 0
    if count == 1:
        return Place()
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        _refuse_missing(["WORLD_SIZE", "RANK"], missing)
    if _number("MASTER_PORT", 1) > _LARGEST_PORT:
        _refuse(["MASTER_PORT"], f"but a port is at most {_LARGEST_PORT}")
    local_count = _number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ else count
    if local_count > count:
        _refuse(["LOCAL_WORLD_SIZE"], f"but WORLD_SIZE, which counts the processes of all machines, is {count}")
    local_rank = _number("LOCAL_RANK", 0, "LOCAL_WORLD_SIZE", local_count) if "LOCAL_RANK" in os.environ else 0
    return Place(rank, count, local_rank, local_count)


def is_one_of_several() -> bool:
    """Whether a launcher has started this process among others; never fails, since it is asked after errors too."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def require_alone() -> None:
    """Before this process starts others.

    Raises:
        TrainingError: It is itself one of several, each of which would start as many.
    """
    if is_one_of_several():
        given = " and ".join(f"{name}={os.environ[name]}" for name in ("WORLD_SIZE", "RANK") if name in os.environ)
        raise TrainingError(
            f"-num_gpus starts the processes, but the environment has {given}: this one is already one of several; "
            "leave out -num_gpus, or unset WORLD_SIZE and RANK"
        )


def _number(name: str, least: int, counted_by: str = "", count: int | None = None) -> int:
    """The whole number that a variable holds; with a count, one below it."""
    try:
        number = int(os.environ[name])
    except ValueError:
        _refuse([name], "which is no whole number")
    if number < least:
        _refuse([name], f"which is less than {least}")
    if count is not None and number >= count:
        _refuse([name], f"but {counted_by} is {count}, so that it can be at most {count - 1}")
    return number


def _refuse_missing(given: Sequence[str], missing: Sequence[str]) -> NoReturn:
    are = "is" if len(missing) == 1 else "are"
    _refuse(given, f"but {' and '.join(missing)} {are} not set, so that this process cannot join the others")


def _refuse(names: Sequence[str], why: str) -> NoReturn:
    given = " and ".join(f"{name}={os.environ[name]}" for name in names)
    unset = " and ".join(name for name in ("WORLD_SIZE", "RANK") if name in os.environ)
    raise TrainingError(
        f"the environment has {given}, {why}; unset {unset} to train with this process alone or with -num_gpus N, or "
        "start all processes with torchrun, which sets what is needed"
    )
