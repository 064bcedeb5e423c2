"""The line a scan walks goes one way, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUBPACKAGES = ("data", "views", "alignment", "settings", "objectives", "launching", "training")


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("file", sorted((ROOT / "nnunetv2_pgl").rglob("*.py")), ids=lambda f: f.stem)
def test_plugin_never_imports_pretraining(file: Path) -> None:
    assert not [name for name in imported(file) if name.split(".")[0] == "pretraining"]


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_a_subpackage_never_imports_a_later_one(subpackage: str) -> None:
    later = {f"pretraining.{name}" for name in SUBPACKAGES[SUBPACKAGES.index(subpackage) + 1 :]}
    for file in (ROOT / "pretraining" / subpackage).rglob("*.py"):
        wrong = [name for name in imported(file) if ".".join(name.split(".")[:2]) in later]
        assert not wrong, f"{file} imports {wrong}"


def test_launching_knows_nothing_of_what_it_launches() -> None:
    for file in (ROOT / "pretraining" / "launching").rglob("*.py"):
        names = [name for name in imported(file) if name.startswith("pretraining.")]
        assert all(name.startswith("pretraining.launching.") for name in names), f"{file} imports {names}"


def test_rooms_do_not_know_commands_comparison_or_demo() -> None:
    upper = ("cli", "entries", "console_commands", "comparison", "demo")
    for subpackage in SUBPACKAGES:
        for file in (ROOT / "pretraining" / subpackage).rglob("*.py"):
            assert not [name for name in imported(file) if name.startswith(tuple(f"pretraining.{u}" for u in upper))], (
                file
            )


def test_extension_folder_holds_one_file() -> None:
    files = [path for path in (ROOT / "nnunetv2_pgl" / "extension").iterdir() if path.name != "__pycache__"]
    assert [path.name for path in files] == ["nnunetv2_pgl_trainers.py"]


def test_importing_prints_nothing_and_loads_little() -> None:
    code = "import sys, nnunetv2_pgl, pretraining; assert 'torch' not in sys.modules and 'nnunetv2' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""
