"""The commands as a user types them, wrong input above all: one clear line and a non-zero exit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.errors import PGLError
from pretraining import cli
from pretraining.demo.datasets import write_unlabelled_dataset
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import OptionParser, add_pretraining_options, with_options
from pretraining.settings.values import names_in
from pretraining.training.geometry_baselines import GeometryBaselines
from pretraining.training.networks import make_encoder
from pretraining.training.preview import geometry_lines
from pretraining.training.run_folder import RunFolder
from pretraining.views import ViewSettings
from tests.known_encoders import CoordinateScan


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def pgl_pretrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command and returns the line it ends with."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pgl_pretrain", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.pretrain_entry()
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("pgl_pretrain: ")
        assert said.find("\n") == len(said) - 1
        return said.strip()

    return run


def test_unknown_dataset(nnunet: Path, pgl_pretrain: Callable[..., str]) -> None:
    assert "777" in pgl_pretrain("-d", "777", "-device", "cpu")


def test_missing_paths(nnunet: Path, pgl_pretrain: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_unlabelled_dataset(nnunet / "nnUNet_raw", 501, "Small", 1, 0, shape=(4, 8, 8), spacing=(70, 40, 40))
    for name in ("nnUNet_preprocessed", "nnUNet_results", "nnUNet_raw"):
        with monkeypatch.context() as patch:
            patch.delenv(name)
            message = pgl_pretrain("-d", "501", "-device", "cpu")
        assert f"{name} is not set" in message
        assert f"export {name}=" in message


def test_no_cuda(nnunet: Path, pgl_pretrain: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "-device cpu" in pgl_pretrain("-d", "501")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-strides", "3", "8", "8"), "-strides 3 8 8: give powers of two from 1 to 16"),
        (("-scale", "1.4", "1.1"), "-scale 1.4 1.1"),
        (("-b", "6", "-accumulate", "4"), "not a multiple"),
        (("-spacing", "3", "1"), "-spacing 3 1"),
        (("-weights", "1", "2"), "-weights 1 2: give 1, one for each of -d"),
        (("-weights", "-1"), "-weights -1: give numbers that are not negative"),
        (("-weights", "0"), "-weights 0: give numbers that are not negative, at least one of them positive"),
        (("-weights", "nan"), "-weights nan: give numbers"),
        (("-gamma", "1.5", "0.7"), "-gamma 1.5 0.7"),
        (("-lr", "nan"), "-lr nan: must be positive"),
        (("-wd", "nan"), "-wd nan: must not be negative"),
        (("-restoration_weight", "nan"), "-restoration_weight nan: must not be negative"),
        (("-flip_probability", "0.5", "0"), "-flip_probability 0.5 0: give one value, or three z y x"),
        (("-o", "a/b"), "not a name"),
    ],
)
def test_impossible_settings(
    nnunet: Path, pgl_pretrain: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    write_unlabelled_dataset(nnunet / "nnUNet_raw", 501, "Small", 1, 0, shape=(4, 8, 8), spacing=(70, 40, 40))
    assert message in pgl_pretrain("-d", "501", "-device", "cpu", *arguments)


def test_exclude_names_the_file_and_the_unknown_scan(nnunet: Path, pgl_pretrain: Callable[..., str]) -> None:
    write_unlabelled_dataset(nnunet / "nnUNet_raw", 501, "Small", 2, 0, shape=(4, 8, 8), spacing=(70, 40, 40))
    names = nnunet / "test.txt"
    arguments = ("-d", "501", "-device", "cpu", "-exclude", str(names))
    assert f"-exclude {names}: cannot be read" in pgl_pretrain(*arguments)
    names.write_text("\n")
    assert "holds no names" in pgl_pretrain(*arguments)
    names.write_text("Small_001\nSmall_777\n")
    assert "no scan is named Small_777" in pgl_pretrain(*arguments, "-o", "b")


@pytest.mark.parametrize(
    "content",
    [
        "b\n\nä \nb".encode(),
        b"\xef\xbb\xbfb\r\n\xc3\xa4\r\n",  # Notepad's
        b"\xef\xbb\xbfb\r\n\xef\xbb\xbf\xc3\xa4\r\n",  # two files joined
        b"\xff\xfeb\0\r\0\n\0\xe4\0\r\0\n\0",  # PowerShell's
        b"\xfe\xff\0b\0\n\0\xe4",
        b"b\r\xc3\xa4",
    ],
)
def test_names_are_read_whatever_editor_has_saved_them(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    assert names_in(tmp_path / "names.txt", "-exclude") == ("b", "ä")


@pytest.mark.parametrize(
    "content",
    [
        b"b\r\n\xe4\r\n",  # Latin-1
        b"b\0\n\0",  # UTF-16 without a mark
        b"\xff\xfeb",  # half a character
        b"\xff\xfe\0\0b\0\0\0",  # UTF-32
        b"PK\x03\x04\x14\0\x06\0",  # a spreadsheet
    ],
)
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(PGLError, match=r"^-exclude .*names\.txt: is not a text in UTF-8 \(.*\); save it as UTF-8$"):
        names_in(file, "-exclude")


def test_marks_alone_are_no_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbf\r\n")
    with pytest.raises(PGLError, match="holds no names; give one per line"):
        names_in(file, "-exclude")


@pytest.mark.parametrize("option", ["--epoch", "-epoch"])  # no abbreviations either
def test_unknown_option(
    nnunet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["pgl_pretrain", "-d", "501", option, "3"])
    with pytest.raises(SystemExit) as stop:
        cli.pretrain_entry()
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


def test_one_dash_or_two() -> None:
    parser = OptionParser()
    add_pretraining_options(parser)
    assert parser.parse_args(["-epochs", "7"]).epochs == parser.parse_args(["--epochs", "7"]).epochs == 7


def test_existing_run_is_not_overwritten(nnunet: Path, pgl_pretrain: Callable[..., str]) -> None:
    write_unlabelled_dataset(nnunet / "nnUNet_raw", 501, "Small", 1, 0, shape=(4, 8, 8), spacing=(70, 40, 40))
    folder = RunFolder.from_name("mine")
    folder.start(PretrainConfig(("Dataset501_Small",)))
    folder.latest.write_bytes(b"precious")
    message = pgl_pretrain("-d", "501", "-o", "mine", "-device", "cpu")
    assert "already holds a run" in message
    assert "--c" in message
    assert folder.latest.read_bytes() == b"precious"


def test_continue_without_a_run_and_with_changed_settings(nnunet: Path, pgl_pretrain: Callable[..., str]) -> None:
    message = pgl_pretrain("-o", "mine", "--c", "-device", "cpu")
    assert message.endswith("mine holds no run to continue; give -d to start one")
    folder = RunFolder.from_name("mine")
    folder.start(PretrainConfig(("Dataset501_Small",), epochs=500))
    assert pgl_pretrain("-o", "other", "--c", "-device", "cpu").endswith("or name one that is there with -o: mine")
    message = pgl_pretrain("-o", "mine", "--c", "-epochs", "7", "-gamma", "0.5", "2", "-device", "cpu")
    assert "epochs: the run has 500, you gave 7" in message
    assert "views.intensity.gamma: the run has [0.7, 1.5], you gave [0.5, 2.0]" in message
    folder.config_file.write_text('{"epochs": 3, "surprise": 1}')
    assert "config.json" in pgl_pretrain("-o", "mine", "--c", "-device", "cpu")


def test_config_survives_json() -> None:
    config = PretrainConfig(("a", "/b"), spacing=(3.0, 1.0, 1.0), strides=(8, 8, 8), learning_rate=0.1)
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PretrainConfig.from_dict(PretrainConfig(("a",)).to_dict()) == PretrainConfig(("a",))


def test_flips_as_given_by_options_and_by_old_settings() -> None:
    parser = OptionParser()
    add_pretraining_options(parser)
    for given, expected in [((), 0.5), (("0.2",), 0.2), (("0", "0.5", "1"), (0.0, 0.5, 1.0))]:
        arguments = ["-flip_probability", *given, "-no_flip", "lateral"] if given else []
        config = with_options(parser.parse_args(arguments), PretrainConfig(("a",)))
        assert config.views.flip_probability == expected
        assert config.views.no_flip == ("lateral" if given else None)
        check_config(config)
        assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = PretrainConfig(("a",)).to_dict()
    del old["views"]["no_flip"]  # release 0.1.0 has none
    assert PretrainConfig.from_dict(old) == PretrainConfig(("a",))


@pytest.mark.parametrize("views", [{"flip_probability": [0.5, 0.5]}, {"flip_probability": "0.5"}, {"no_flip": "z"}])
def test_flips_of_another_type_are_named(views: dict[str, Any]) -> None:
    values = PretrainConfig(("a",)).to_dict()
    with pytest.raises(TypeError, match=next(iter(views))):
        PretrainConfig.from_dict({**values, "views": {**values["views"], **views}})


def test_settings_without_a_map_to_align_are_refused() -> None:
    with pytest.raises(ValueError, match="-align_stages: name at least one stage"):
        check_config(PretrainConfig(("a",), align_stages=()))


@pytest.mark.parametrize("flips", [1.5, (0.5, float("nan"), 0.5), (0.0, 0.0, -1.0)])
def test_impossible_flips_of_old_settings_are_named(flips: float | tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"-flip_probability .*: must be from 0 to 1"):
        check_config(PretrainConfig(("a",), views=ViewSettings(flip_probability=flips)))


def test_paper_is_the_default() -> None:
    config = PretrainConfig(("a",))
    assert (config.epochs, config.batch_size) == (500, 128)
    assert (config.optimizer_name, config.peak_learning_rate) == ("lars", 0.2)
    assert (config.views.size, config.encoder_strides, config.warmup_epochs) == ((16, 96, 96), (8, 16, 16), 2)
    assert config.views.scale == (1.1, 1.4)


@pytest.mark.parametrize(
    ("patch", "strides"), [((16, 96, 96), (8, 16, 16)), ((8, 16, 31), (4, 8, 8)), ((1, 64, 64), (1, 16, 16))]
)
def test_a_small_view_keeps_two_cells(patch: tuple[int, int, int], strides: tuple[int, int, int]) -> None:
    from dataclasses import replace

    config = PretrainConfig(("a",))
    assert replace(config, views=replace(config.views, size=patch)).encoder_strides == strides


@pytest.mark.parametrize("given", ["a", "1.5", "0"])
def test_what_is_not_a_whole_number_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pgl_preview", "-d", "501", "-n", given])
    with pytest.raises(SystemExit):
        cli.preview_entry()
    assert f"argument -n/--n: must be a whole number of at least 1, got '{given}'" in capsys.readouterr().err


def test_preview_draws(nnunet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    write_unlabelled_dataset(nnunet / "nnUNet_raw", 501, "Small", 2, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
    output = nnunet / "preview.png"
    arguments = ["-d", "501", "-patch", "6", "12", "16", "-n", "2", "-np", "1", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["pgl_preview", *arguments])
    cli.preview_entry()
    assert imread(output).std() > 0.05
    *_, cells, flipped, unflipped, warning, last = capsys.readouterr().out.splitlines()
    assert cells.startswith("Cells of 2 x 4 x 8 voxels")
    assert flipped.startswith("Pairs with a relative flip: of the cells, ")
    assert unflipped.startswith("Pairs without a relative flip: of the cells, ")
    assert warning.startswith("WARNING: the scans are little larger than the views")
    assert last == str(output)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("resnet50", (12, 40, 36)), ("plain", (16, 48, 32)), ("resenc_l", (16, 48, 32))],  # ours takes any size
)
def test_preview_knows_the_maps_of_an_encoder_without_running_it(
    architecture: Any, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    config = PretrainConfig(("a",), architecture=architecture, views=ViewSettings(size=size))
    monkeypatch.setattr(
        "pretraining.training.preview.geometry_of_pairs",
        lambda *given: asked.append(given) or GeometryBaselines(*[None] * 4),
    )
    geometry_lines([CoordinateScan((20, 60, 60), channels=1)], config)
    ((_, grid, cells),) = asked
    with torch.device("meta"):
        encoder = make_encoder(config)
        (*_, map_) = encoder(torch.empty(1, 1, *size), config.stages[-1])
    assert tuple(cells) == tuple(map_.shape[2:])
    assert grid == encoder.feature_grid(size, config.stages[-1])
