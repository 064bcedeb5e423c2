"""What the commands share: options that are wrong cost one line, and output that nobody reads on costs none."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """Takes no abbreviated options, and ends with one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line; argparse would list all options before it."""
        self.exit(2, f"{self.prog}: {message}; -h lists the options\n")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Options that a text may be short for: none. argparse's ``allow_abbrev`` is only for those with two dashes."""
        return []


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines; ends quietly if the program that reads them has ended, as ``head`` does."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports it once more at its end
