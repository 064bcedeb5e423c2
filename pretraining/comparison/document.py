"""A report as a list of blocks, and how it is written in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of points."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """Of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """The first column names the rows; others are aligned to the right if they hold numbers.

    Attributes:
        columns: Their names.
        rows: Each as long as the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self, column: int) -> bool:
        """Whether all cells of a column start like a number, or say that there is none; not of the first one."""
        texts = [row[column].text for row in self.rows]
        return column > 0 and all(re.match(r"[-+\u2212]?\d|[<\u2013]|$", text) for text in texts)


@dataclass(frozen=True)
class Picture:
    """An image file with what it shows."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Commands."""

    lines: tuple[str, ...]


Block = Heading | Paragraph | Items | Table | Picture | Code


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> Table:
    """A table whose cells may be given as text."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Table(tuple(columns), cells)


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """The document for a file in the folder; pictures are linked."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case Paragraph(text):
            return _escaped(text)
        case Items(texts):
            return "\n".join(f"- {_escaped(text)}" for text in texts)
        case Picture(path, alt, caption):
            return f"![{_escaped(alt)}]({path.relative_to(folder).as_posix()})\n\n{_escaped(caption)}"
        case Code(lines):
            return "\n".join(["```bash", *lines, "```"])
        case Table():
            return _markdown_table(block)


def _markdown_table(block: Table) -> str:
    lines = [[_escaped(name) for name in block.columns]]
    lines.append(["---:" if block.numeric(i) else "---" for i in range(len(block.columns))])
    lines += [[f"**{_escaped(c.text)}**" if c.bold else _escaped(c.text) for c in row] for row in block.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text without what Markdown would take for markup."""
    return re.sub(r"[\\`*|]|<(?=[A-Za-z/!])|\[(?=[^]]*\][(:\[])", r"\\\g<0>", text.replace("\n", " "))
