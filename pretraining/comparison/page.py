"""A report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from pretraining.comparison.document import Block, Cell, Code, Heading, Items, Paragraph, Picture, Table

_STYLE = """
:root { color-scheme: light dark; --text: #1c1f23; --back: #ffffff; --soft: #f2f4f6; --line: #d5dade; --dim: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --back: #16191d; --soft: #22272d; --line: #3b434b; --dim: #a0a9b3; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 80rem; color: var(--text); background: var(--back);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-top: 1.75rem; }
p, li { max-width: 52rem; overflow-wrap: break-word; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { background: var(--soft); vertical-align: bottom; }
th.number, td.number { text-align: right; }
td.number, td:first-child { white-space: nowrap; }
td { min-width: 3rem; max-width: 40rem; overflow-wrap: break-word; }
figure { margin: 1.25rem 0; max-width: 66rem; }
figure img { display: block; max-width: 100%; height: auto; padding: .5rem; background: #ffffff; border-radius: 6px;
  border: 1px solid var(--line); }
figcaption { margin-top: .4rem; max-width: 52rem; font-size: .875rem; color: var(--dim); }
pre { overflow-x: auto; padding: .75rem 1rem; font-size: .8125rem; background: var(--soft); border-radius: 6px; }
@media print { body { max-width: none; } .table { overflow: visible; } }
"""


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The whole page; pictures are embedded."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Items(texts):
            return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"
        case Picture(path, alt, caption):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            image = f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Code(lines):
            return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"
        case Table():
            return _html_table(block)


def _html_table(block: Table) -> str:
    kinds = [' class="number"' if block.numeric(i) else "" for i in range(len(block.columns))]
    head = "".join(f"<th{k}>{escape(name)}</th>" for k, name in zip(kinds, block.columns, strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{k}>{_cell(cell)}</td>' for k, cell in zip(kinds, row, strict=True))}</tr>\n"
        for row in block.rows
    )
    # The wrapper scrolls where the table is wider than the screen; tabindex lets the keyboard scroll it.
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    return f"<strong>{escape(cell.text)}</strong>" if cell.bold else escape(cell.text)
