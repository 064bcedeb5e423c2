"""Errors that are shown to the user, each as one line, and numbers in such lines."""

from __future__ import annotations

from collections.abc import Iterable

_MAX_CHARACTERS = 2000


class PGLError(ValueError):
    """The base class of all errors whose message is meant for the user: what is wrong, where, and what to do.

    Commands catch it, print the message in one line and end with a non-zero exit code.
    """


def one_line(message: object) -> str:
    """A message, or that of an error, in one line of printable characters, whatever names and values it quotes."""
    line = " ".join(part.strip() for part in str(message).splitlines())
    shown = "".join(character if character.isprintable() else "?" for character in line)
    return shown if len(shown) <= _MAX_CHARACTERS else f"{shown[:_MAX_CHARACTERS]}..."


def counted(number: int, noun: str) -> str:
    """A number of things, such as ``1 scan`` or ``2 scans``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size_text(values: Iterable[float]) -> str:
    """Sizes or a spacing, such as ``3 x 0.8 x 0.8``."""
    return " x ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
