"""The page ``docs/options.md``, from the table of settings.

``python -m pretraining.settings.options_page > docs/options.md`` writes the page again after a change.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from pretraining.option_fields import Option, option_of, words_of
from pretraining.settings.options import OPTION_CLASSES, default_of
from pretraining.settings.table import GROUPS

_PAGE = """# Options of pgl_pretrain

Options may be written with one dash or two. Where two defaults are given, the first is the recommended one and the
second the paper's, which `--paper` chooses for everything that is not given; `-m mae` has those published for it.
`pgl_preview` takes the options of the groups *scans* and *views*.

This page is made by `python -m pretraining.settings.options_page`.
"""


def page() -> str:
    """The page in Markdown."""
    lines = [_PAGE]
    for group in GROUPS:
        lines += [f"## {group[0].upper()}{group[1:]}", "", "| option | default | meaning |", "|---|---|---|"]
        for owner in OPTION_CLASSES:
            hints = get_type_hints(owner)
            for setting in fields(owner):
                option = option_of(setting)
                if option is not None and option.group == group:
                    spelling = _spelling(option, setting.name, hints[setting.name])
                    lines.append(f"| `{spelling}` | {default_of(owner, setting)} | {option.help} |")
        lines.append("")
    return "\n".join(lines)


def _spelling(option: Option, name: str, hint: Any) -> str:
    flag = option.name or name
    if hint is bool:
        return f"--{flag}"
    if option.metavar is None:
        return f"-{flag} " + ("\\|".join(words_of(option, hint)) or "X")
    shown = option.metavar if isinstance(option.metavar, str) else " ".join(option.metavar)
    return f"-{flag} {shown}"


if __name__ == "__main__":
    print(page(), end="")
