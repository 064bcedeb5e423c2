"""The options in words: their defaults in ``-h``, and the page ``docs/options.md``.

``python -m pretraining.settings.options_page > docs/options.md`` writes the page again after a change.
"""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any, get_type_hints

from pretraining.option_fields import Option, option_of, spelled, words_of
from pretraining.settings.config import PretrainConfig
from pretraining.settings.presets import published_for_mae, recommended
from pretraining.settings.table import GROUPS, PlanOptions, RunOptions
from pretraining.views import IntensityRanges, ViewSettings

TABLE = (PretrainConfig, PlanOptions, ViewSettings, IntensityRanges, RunOptions)
_PAGE = """# Options of pgl_pretrain

Options may be written with one dash or two. Where two defaults are given, the first is the recommended one and the
second the paper's, which `--paper` chooses for everything that is not given; `-m mae` has those published for it.
`pgl_preview` takes the options of the groups *scans* and *views*.

This page is made by `python -m pretraining.settings.options_page`.
"""


def default_of(owner: type, setting: Field[Any]) -> str:
    """The default of an option in words: of the recommended settings, the paper's where it differs, and mae's."""
    if owner in (PlanOptions, RunOptions):
        return _shown(setting, setting.default)
    ours, paper, mae = (
        _shown(setting, getattr(_part(owner, config), setting.name))
        for config in (recommended(), PretrainConfig(datasets=()), published_for_mae())
    )
    both = ours if ours == paper else f"{ours} / {paper}"
    # -m is what chooses these, and mae has no target path
    return both if mae == ours or setting.name in ("method", "target_decay") else f"{both}; mae: {mae}"


def _part(owner: type, config: PretrainConfig) -> Any:
    if owner is PretrainConfig:
        return config
    return config.views if owner is ViewSettings else config.views.intensity


def _shown(setting: Field[Any], value: Any) -> str:
    option: Option = setting.metadata["option"]
    if option.default_text is not None and value == setting.default:
        return option.default_text
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value in (None, ()) else spelled(value)


def page() -> str:
    """The page in Markdown."""
    lines = [_PAGE]
    for group in GROUPS:
        lines += [f"## {group[0].upper()}{group[1:]}", "", "| option | default | meaning |", "|---|---|---|"]
        for owner in TABLE:
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
