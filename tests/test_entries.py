"""What the commands set before torch is imported, which is when OpenMP reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pretraining import entries

WHEN_TORCH_IS_IMPORTED = """
import os, runpy, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Finder)
"""
COMMANDS = {
    "pgl_pretrain": "from pretraining import entries; entries.pretrain()",
    "pgl_preview": "from pretraining import entries; entries.preview()",
    "pgl_demo": "from pretraining import entries; entries.demo()",
    "pgl_compare": "from pretraining import entries; entries.compare()",
    "torchrun -m pretraining": "runpy.run_module('pretraining', run_name='__main__')",
}


def when_torch_is_imported(command: str, **variables: str) -> str:
    """GOMP_SPINCOUNT and OMP_WAIT_POLICY then."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    code = WHEN_TORCH_IS_IMPORTED + COMMANDS[command] + "\nprint('torch was never imported')"
    arguments = [sys.executable, "-c", code]
    return subprocess.run(arguments, env={**others, **variables}, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_threads_sleep_soon(command: str) -> None:
    assert when_torch_is_imported(command) == "3000 None\n"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    expected = {"GOMP_SPINCOUNT": "7 None\n", "OMP_WAIT_POLICY": "None active\n"}
    assert when_torch_is_imported("pgl_pretrain", **{name: value}) == expected[name]


@pytest.mark.parametrize(
    ("command", "module", "line"),
    [
        ("pretrain", "pretraining.cli", "pgl_pretrain: interrupted before it began"),
        ("preview", "pretraining.cli", "pgl_preview: interrupted"),
        ("demo", "pretraining.demo", "pgl_demo: interrupted; run it again with --overwrite"),
        (
            "compare",
            "pretraining.comparison.command",
            "pgl_compare: interrupted; run it again to continue",
        ),
    ],
)
def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, command: str, module: str, line: str) -> None:
    """As early as while torch is imported, which takes seconds."""

    class Importing:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setitem(sys.modules, module, Importing())  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        getattr(entries, command)()
    assert ended.value.code == line
