"""Messages that end a command: one line that a terminal can show, whatever names and values they quote."""

from __future__ import annotations

_LONGEST = 2000  # characters


def one_line(message: object) -> str:
    """A message, or that of an error, in one line of printable characters."""
    line = " ".join(part.strip() for part in str(message).splitlines())
    shown = "".join(character if character.isprintable() else "?" for character in line)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
