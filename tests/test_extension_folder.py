"""How nnU-Net gets to know the trainers: the folder, the link in its own tree, and the check."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_pgl import trainers
from nnunetv2_pgl.extension_folder import VARIABLE, extension_entry, extension_folder, link, link_file, unlink


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the link goes: a folder of the test's own in place of nnU-Net's."""
    file = tmp_path / "variants" / link_file().name
    file.parent.mkdir()
    monkeypatch.setattr("nnunetv2_pgl.extension_folder.link_file", lambda: file)
    monkeypatch.delenv(VARIABLE, raising=False)
    return file


def imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("imported_link", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_link_lies_where_nnunet_looks() -> None:
    import nnunetv2.training.nnUNetTrainer.variants as variants

    assert link_file().parent == Path(variants.__path__[0])


def test_link_shows_every_trainer(place: Path) -> None:
    assert link() == place
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    module = imported(place)
    for name in ("nnUNetTrainerPGL", "nnUNetTrainerPGLScratch", "nnUNetTrainerPGL_paper", "nnUNetTrainerPGL_5epochs"):
        assert getattr(module, name) is getattr(trainers, name)
    assert {name for name in vars(module) if name.startswith("nnUNetTrainer")} == set(trainers.__all__)


def test_link_can_be_renewed_and_removed(place: Path) -> None:
    link()
    place.write_text(place.read_text() + "# of a former version\n")
    link()
    assert "former version" not in place.read_text()
    assert unlink() == place
    assert not place.exists()
    assert unlink() is None


def test_a_foreign_file_is_left_as_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write_text("class nnUNetTrainerMine: ...\n")
    for option in ("--link", "--unlink"):
        monkeypatch.setattr(sys, "argv", ["pgl_extension", option])
        with pytest.raises(SystemExit) as stop:
            extension_entry()
        message = str(stop.value.code)
        assert message.startswith(f"pgl_extension: {place} was not written by pgl_extension")
        assert "\n" not in message
    assert place.read_text() == "class nnUNetTrainerMine: ...\n"
    assert capsys.readouterr().out == ""


def test_the_link_outlives_the_package(place: Path) -> None:
    """Without the package it must show nothing and raise nothing: nnU-Net imports it on the way to other trainers."""
    link()
    # -I -S: an interpreter without site-packages.
    code = f"""
import importlib.util, runpy
assert importlib.util.find_spec("nnunetv2_pgl") is None
assert not [name for name in runpy.run_path({str(place)!r}) if name.startswith("nnUNetTrainer")]
"""
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_error_of_the_package_is_not_hidden(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link()
    monkeypatch.setitem(sys.modules, "nnunetv2_pgl.trainers", None)
    monkeypatch.delattr("nnunetv2_pgl.trainers")
    with pytest.raises(ImportError):
        imported(place)


def test_nnunet_finds_the_trainers_in_the_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(extension_folder()))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerPGL") is trainers.nnUNetTrainerPGL
    assert "nnunetv2_pgl_trainers" not in sys.modules, "nnU-Net used to forget the file; the docstrings say so"


def test_check_tells_what_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["pgl_extension", "--check"])
        with pytest.raises(SystemExit) as stop:
            extension_entry()
        return stop.value.code, capsys.readouterr().out

    code, text = check()
    assert code == 1
    assert f"{VARIABLE} is not set in this shell" in text
    assert text.splitlines()[-1].strip() == f'export {VARIABLE}="$(pgl_extension)"'

    monkeypatch.setenv(VARIABLE, "/no/such/folder")
    code, text = check()
    assert code == 1
    assert "/no/such/folder does not exist" in text

    monkeypatch.setenv(VARIABLE, str(extension_folder()))
    code, text = check()
    assert code == 0
    assert "nnunetv2_pgl.trainers.pgl: ready to train and to predict" in text


def test_the_command_prints_the_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pgl_extension"])
    extension_entry()
    assert capsys.readouterr().out == f"{extension_folder()}\n"
