"""What pyproject.toml says of the packages, held against their imports, and runs that are not installed."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nnunetv2_pgl
from nnunetv2_pgl.checkpoint import load_checkpoint, save_checkpoint
from nnunetv2_pgl.extension_folder import check
from nnunetv2_pgl.networks import PlannedEncoder
from pretraining.settings.config import PretrainConfig
from pretraining.training.encoder_checkpoint import make_checkpoint
from tests.planned_networks import small_network

ROOT = Path(__file__).parent.parent
OURS = ("nnunetv2_pgl", "pretraining")
# What brings distutils, what nnU-Net's trainers are made of, what pydicom decodes with, and what torch imports.
NOT_IMPORTED = {"setuptools", "python-gdcm", "tensorboard"}
OPTIONAL = ("tensorboard", "wandb")  # extras of one package each


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return content


def imported() -> set[str]:
    """Top-level modules of others, wherever in a file they are imported."""
    modules: set[str] = set()
    for file in (file for package in OURS for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    return modules - set(sys.stdlib_module_names) - set(OURS)


def test_what_is_imported_is_declared_and_the_other_way_round(pyproject: dict[str, Any]) -> None:
    extras = [line for name in OPTIONAL for line in pyproject["project"]["optional-dependencies"][name]]
    lines = [*pyproject["project"]["dependencies"], *extras]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    providers = importlib.metadata.packages_distributions()
    needed = {canonicalize_name(name) for module in imported() for name in providers[module][:1]}
    assert len(needed) > 10
    assert needed == declared - NOT_IMPORTED


def test_the_version_is_in_one_place(pyproject: dict[str, Any]) -> None:
    assert "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nnunetv2_pgl.__version__"}
    files = (file for package in OURS for file in (ROOT / package).rglob("*.py"))
    assert [file for file in files if "__version__ =" in file.read_text()] == [ROOT / "nnunetv2_pgl" / "__init__.py"]


def test_templates_are_installed(pyproject: dict[str, Any]) -> None:
    declared = pyproject["tool"]["setuptools"]["package-data"]
    for package in OURS:
        installed = {file for pattern in declared[package] for file in (ROOT / package).glob(pattern)}
        assert set((ROOT / package).rglob("*.jinja")) <= installed


def test_every_command_has_its_function(pyproject: dict[str, Any]) -> None:
    scripts = pyproject["project"]["scripts"]
    assert len(scripts) == 8
    assert all(callable(resolve_name(function)) for function in scripts.values())


@pytest.mark.parametrize("installed", [True, False])
def test_a_checkpoint_says_what_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """Written after the last epoch: no time to find out that something has no metadata."""

    def none(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    nnunet = importlib.metadata.version("nnunetv2") if installed else "unknown"
    if not installed:
        monkeypatch.setattr(importlib.metadata, "version", none)
        monkeypatch.setattr(importlib.metadata, "distribution", none)
    objective: Any = SimpleNamespace(encoder=PlannedEncoder(small_network(features=(4, 8)), 1), kept_decoder=dict)
    config = PretrainConfig(datasets=(), architecture="plain", network=small_network(features=(4, 8)).to_dict())
    made = make_checkpoint(objective, config, (3.0, 1.0, 1.0), True, 1, {"loss": 1.0})
    save_checkpoint(made, tmp_path / "checkpoint_final.pth")
    assert load_checkpoint(tmp_path / "checkpoint_final.pth").pgl["versions"] == {
        "python": sys.version.split()[0],
        "nnunetv2-pgl": nnunetv2_pgl.__version__,
        "nnunetv2": nnunet,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    assert check()[0][0].startswith(f"nnunetv2 {nnunet} in ")
