"""pgl_info of one checkpoint and of two."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.export.weights_file import halved
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.info.command import info_entry
from tests.golden.make import GOLDEN, RUN
from tests.test_checkpoint import make_checkpoint

OLD = GOLDEN / "nnUNet_results" / "PGL" / RUN / "checkpoint_final.pth"


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*paths: Path, columns: int = 200) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["pgl_info", *map(str, paths)])
        info_entry()
        return capsys.readouterr().out.splitlines()

    return call


def small(**pgl: Any) -> EncoderCheckpoint:
    torch.manual_seed(0)
    described = {
        "num_scans": 7,
        "sources": [
            {"name": "Dataset501_Chest", "scans": 6, "held_out": 1, "licence": "CC-BY-SA 4.0", "reference": "there"},
            {"name": "ribs", "scans": 1, "held_out": 0, "licence": None},
        ],
        "config": {"batch_size": 4, "seed": 1, "weights": None, "views": {"size": [8, 8, 8]}},
        "metrics": {"loss": 2.0, "flipped_right": 0.5, "decoy": 0.25, "seconds": 3.0},
        "metrics_before": {"flipped_right": 0.125},
        "versions": {"torch": "2.9"},
    }
    return make_checkpoint(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)), **described | pgl)


def save(folder: Path, name: str, checkpoint: EncoderCheckpoint) -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    save_checkpoint(checkpoint, folder / name)
    return folder / name


def row(lines: list[str], name: str) -> list[str]:
    """The values of a row."""
    (line,) = (line for line in lines if line.strip().startswith(f"{name}  "))
    return [part.strip() for part in line.strip().removeprefix(name).split("  ") if part.strip()]


def test_one_checkpoint_with_its_licences(tmp_path: Path, info: Any) -> None:
    path = save(tmp_path, "a.pth", small())
    lines = info(path)
    assert row(lines, "sha256") == [sha256_of(path)]
    assert "data          Dataset501_Chest (6 scans, licence CC-BY-SA 4.0, there)" in lines
    assert "data          ribs (1 scan, licence not stated)" in lines
    assert row(lines, "last epoch") == ["loss 2, flipped_right 0.5, decoy 0.25"]
    assert row(lines, "at the start") == ["flipped_right 0.125"]
    assert row(lines, "precision") == ["float32"]
    assert row(info(save(tmp_path, "h.safetensors", halved(small()))), "precision") == ["rounded to float16"]


def test_only_what_differs_is_in_the_table(tmp_path: Path, info: Any) -> None:
    config = {"batch_size": 32, "seed": 1, "weights": [1, 2], "views": {"size": [8, 8, 16]}}
    sources = [{"name": "Dataset501_Chest", "scans": 6, "licence": "MIT", "reference": "there"}]
    metrics = {"loss": 1.5, "flipped_right": 0.5, "decoy": 0.125, "seconds": 9.0}
    other = small(config=config, sources=sources, metrics=metrics, method="byol", num_scans=6, versions={"torch": "3"})
    lines = info(save(tmp_path, "a/checkpoint_final.pth", small()), save(tmp_path, "b/checkpoint_final.pth", other))
    assert lines[0].split() == ["a/checkpoint_final.pth", "b/checkpoint_final.pth"]
    assert row(lines, "method") == ["pgl", "byol"]
    assert row(lines, "scans") == ["7", "6"]
    assert row(lines, "batch_size") == ["4", "32"]
    assert row(lines, "views.size") == ["[8, 8, 8]", "[8, 8, 16]"]
    assert row(lines, "weights") == ["not set", "[1, 2]"]
    assert row(lines, "Dataset501_Chest") == [
        "6 scans, licence CC-BY-SA 4.0, there",
        "6 scans, licence MIT, there",
    ]
    assert row(lines, "ribs") == ["1 scan, licence not stated", "not used"]
    assert row(lines, "loss") == ["2", "1.5 (-0.5)"]
    assert row(lines, "decoy") == ["0.25", "0.125 (-0.125)"]
    assert row(lines, "version of torch") == ["2.9", "3"]
    table = "\n".join(lines).split("The same in both: ")[0]
    for name in ("seed", "flipped_right", "seconds", "encoder", "citations"):
        assert name not in table, name
    assert "encoder" in "\n".join(lines).split("The same in both: ")[1]
    assert lines[-1] == "Weights: all tensors are equal"


def test_what_is_said_of_the_weights(tmp_path: Path, info: Any) -> None:
    made = small()
    path = save(tmp_path, "a.pth", made)
    assert info(path, path)[-1] == "Weights: the two files are the same, byte for byte"
    change = {**made.encoder_weights, "0.weight": made.encoder_weights["0.weight"] * 1.5}
    ending = info(path, save(tmp_path, "b.pth", replace(made, encoder_weights=change)))[-1]
    total = sum(float(value.double().square().sum()) for value in made.encoder_weights.values()) ** 0.5
    apart = 0.5 * float(made.encoder_weights["0.weight"].double().norm()) / total
    assert ending.endswith(f"6 of 7 tensors are equal; they differ by {apart:.2g} of the first's norm")
    assert "either fits where the other does" in ending
    wider = {**made.encoder_weights, "0.weight": torch.zeros(4, 1, 3, 3, 3), "more": torch.zeros(1)}
    ending = info(path, save(tmp_path, "c.pth", replace(made, encoder_weights=wider)))[-1]
    assert "6 tensors of the same name and shape, 1 others in the first, 2 in the second" in ending


def test_files_of_other_versions_and_programs(tmp_path: Path, info: Any) -> None:
    content = torch.load(OLD, weights_only=True)
    of_nnssl = tmp_path / "nnssl.pth"
    del content["pgl"]
    torch.save(content, of_nnssl)
    lines = info(save(tmp_path, "a.pth", small()), OLD)
    assert row(lines, "loss")[0] == "2"
    assert row(lines, "flipped_right") == ["0.5", "unknown"]
    assert row(lines, "Dataset601_Golden") == ["not used", "4 scans, licence not recorded"]
    lines = info(OLD, of_nnssl)
    assert row(lines, "scans") == ["3", "unknown"]
    assert lines[-1] == "Weights: all tensors are equal"
    assert any(line.startswith("data          Dataset601_Golden (4 scans, licence not recorded") for line in info(OLD))


def test_long_values_are_wrapped(tmp_path: Path, info: Any) -> None:
    first, second = (save(tmp_path, f"{n}.pth", small(method=f"m{n} " + "word " * 60)) for n in "ab")
    lines = info(first, second, columns=80)
    assert 60 < max(map(len, lines)) < 80
    assert "\n".join(lines).count("word") == 120


@pytest.mark.parametrize("arguments", [(), ("nothing.pth",), (OLD, "nothing.pth"), ("--x", OLD)])
def test_what_is_wrong_costs_one_line(arguments: tuple[Any, ...], info: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        info(*arguments)
    printed = capsys.readouterr()
    message = printed.err or f"{error.value.code}\n"
    assert (message[:10], message.count("\n"), printed.out) == ("pgl_info: ", 1, "")
    assert error.value.code not in (0, None)


def test_a_reader_that_ends_early(tmp_path: Path) -> None:
    code = "from nnunetv2_pgl.info.command import info_entry; info_entry()"
    shell = f'"{sys.executable}" -c "{code}" "{OLD}" | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
