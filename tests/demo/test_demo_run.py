import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnunetv2_pgl.errors import PGLError
from pretraining.console_commands import CommandError, CommandRunner, CommandStopped, find_command
from pretraining.demo.phantoms import LABELS, make_phantom
from pretraining.demo.pictures import PredictedCase, Volume, draw_phantom, draw_predictions
from pretraining.demo.run import DemoFolder, demo_commands, demo_entry, dice_table, read_results

posix_only = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")


@pytest.fixture
def script_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def write_script(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@posix_only
def test_output_goes_to_console_and_numbered_logs(
    tmp_path: Path, script_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import os, sys; print(os.environ['WORD'], sys.argv[1:], flush=True); print('late', file=sys.stderr)"
    write_script(script_folder, "say_hello", code)
    runner = CommandRunner(tmp_path / "logs", {"PATH": os.environ["PATH"]})
    runner.set_variable("WORD", "gr\u00fc\u00df")
    runner.run(["say_hello", "two words"])
    runner.run(["say_hello"])
    console = capsys.readouterr().out
    assert "$ say_hello 'two words'\n" in console
    assert "gr\u00fc\u00df ['two words']" in console
    assert "late" in (tmp_path / "logs" / "01_say_hello.txt").read_text(encoding="utf-8")
    assert "gr\u00fc\u00df []" in (tmp_path / "logs" / "02_say_hello.txt").read_text(encoding="utf-8")


@posix_only
def test_a_failing_command_is_named_with_its_log(tmp_path: Path, script_folder: Path) -> None:
    write_script(script_folder, "fall_over", "import sys; print('why'); sys.exit(3)")
    with pytest.raises(CommandError, match=r"fall_over ended with exit code 3; .*01_fall_over\.txt$"):
        CommandRunner(tmp_path / "logs", os.environ).run(["fall_over"])
    assert "why" in (tmp_path / "logs" / "01_fall_over.txt").read_text()


@posix_only
def test_a_stopped_command_has_not_failed(tmp_path: Path, script_folder: Path) -> None:
    write_script(script_folder, "rest", "import sys; sys.exit(75)")
    with pytest.raises(CommandStopped, match=r"rest was stopped and has saved; .*01_rest\.txt$"):
        CommandRunner(tmp_path / "logs", os.environ).run(["rest"])


def test_a_missing_command_is_named() -> None:
    with pytest.raises(CommandError, match="no_such_command_of_ours is neither"):
        find_command("no_such_command_of_ours")


def test_commands_beside_the_interpreter_come_first(script_folder: Path) -> None:
    write_script(script_folder, "nnUNetv2_train", "")
    assert Path(find_command("nnUNetv2_train")).parent != script_folder


def test_demo_folder_spares_what_is_not_the_demos(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "work")
    folder.root.mkdir()
    (folder.root / "thesis.txt").write_text("all of it")
    with pytest.raises(PGLError, match="no former demo"):
        folder.prepare(overwrite=True)
    assert (folder.root / "thesis.txt").read_text() == "all of it"


def test_demo_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "demo")
    folder.prepare(overwrite=False)
    (folder.raw / "old").touch()
    (folder.root / "notes.txt").touch()
    with pytest.raises(PGLError, match="--overwrite"):
        folder.prepare(overwrite=False)
    assert (folder.raw / "old").exists()
    folder.prepare(overwrite=True)
    assert folder.raw.is_dir()
    assert not (folder.raw / "old").exists()
    assert (folder.root / "notes.txt").exists()


def test_commands_name_the_files_of_the_demo_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "a demo's folder")
    commands = demo_commands(folder, "cpu", 7)
    assert [command[0] for command in commands] == [
        "pgl_pretrain",
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_evaluate_folder",
    ]
    pretrain, _, _, predict, evaluate = commands
    assert pretrain[pretrain.index("-seed") + 1] == "7"
    assert predict[predict.index("-i") + 1] == str(folder.labelled / "imagesTs")
    assert evaluate[1:3] == [str(folder.labelled / "labelsTs"), str(folder.predictions)]


def test_entry_point_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").touch()
    monkeypatch.setattr(sys, "argv", ["pgl_demo", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^pgl_demo: .*no former demo[^\n]*$"):
        demo_entry()


def test_results_are_sorted_and_undefined_dice_is_left_out(tmp_path: Path) -> None:
    def case(name: str, dice: list[float]) -> dict[str, object]:
        metrics = {str(label): {"Dice": value} for label, value in zip(LABELS.values(), dice, strict=True)}
        return {"prediction_file": f"/somewhere/{name}.nii.gz", "metrics": metrics}

    summary = tmp_path / "summary.json"
    cases = [case("good", [0.9] * 7), case("bad", [0.2] * 6 + [float("nan")])]
    summary.write_text(json.dumps({"metric_per_case": cases}))
    results = read_results(summary)
    assert list(results.index) == ["bad", "good"]
    assert results["mean"]["bad"] == pytest.approx(0.2)
    table = dice_table(results).splitlines()
    assert len(table) == 1 + 7 + 1
    assert table[1].split() == ["liver", "0.550", "0.200", "0.900"]
    assert table[7].split() == ["lungs", "0.900", "0.900", "0.900"]


def test_slices_are_upright_with_the_right_aspect() -> None:
    voxels = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    volume = Volume(voxels, (6.0, 2.0, 1.0))
    assert np.array_equal(volume.cut("axial", 1), voxels[1])
    assert np.array_equal(volume.cut("coronal", 2), voxels[::-1, 2])  # the head, last in z, is on top
    assert np.array_equal(volume.cut("sagittal", 3), voxels[::-1, :, 3])
    assert [volume.aspect(plane) for plane in ("axial", "coronal", "sagittal")] == [2, 6, 3]


def test_pictures_are_written(tmp_path: Path) -> None:
    phantom = make_phantom(0, (12, 20, 24), (24.0, 16.0, 16.0))
    image, labels = Volume(phantom.image, phantom.spacing), Volume(phantom.labels, phantom.spacing)
    draw_phantom(image, labels, tmp_path / "new" / "phantom.png")
    draw_predictions([PredictedCase("Worst case", image, labels, labels)] * 2, tmp_path / "new" / "predictions.png")
    for name in ("phantom.png", "predictions.png"):
        pixels = imread(tmp_path / "new" / name)
        assert min(pixels.shape[:2]) > 600
        assert np.ptp(pixels[..., 0] - pixels[..., 2]) > 0.5  # colours, not grey alone
    assert len(list((tmp_path / "new").iterdir())) == 2
