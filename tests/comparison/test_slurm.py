"""The submit script, run with a stand-in for sbatch that works the jobs off at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.comparison.command import write_submit_script
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.files import ComparisonFolder
from pretraining.comparison.settings import ComparisonSettings

pytestmark = pytest.mark.skipif(os.name != "posix" or shutil.which("bash") is None, reason="needs bash")

NAME = "Dataset007_Small"
SBATCH = r"""
import json, os, re, subprocess, sys
from pathlib import Path

here = Path(os.environ["HERE"])
jobs = json.loads((here / "jobs.json").read_text()) if (here / "jobs.json").exists() else []
body = sys.stdin.read()
# As Slurm does: an option ends where a comment begins.
head = body.split("\n")[0]
assert head == "#!/bin/bash", head
lines = [line.removeprefix("#SBATCH ") for line in body.split("\n") if line.startswith("#SBATCH ")]
options = [line.split(" #")[0].strip() for line in lines]
jobs.append({"arguments": sys.argv[1:], "options": options})
(here / "jobs.json").write_text(json.dumps(jobs))
size = [int(option.split("-")[-1]) + 1 for option in options if option.startswith("--array=0-")]
for index in range(size[0] if size else 1):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index)} if size else dict(os.environ)
    subprocess.run(["bash"], input=body, text=True, env=environment, check=True)
print(100 + len(jobs))
"""
COMPARE = r"""
import json, os, sys
from pathlib import Path

with open(Path(os.environ["HERE"], "calls"), "a") as calls:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")
    calls.write(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]) + "\n")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "a place with blanks"
    (place / "bin").mkdir(parents=True)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(place / name))
    monkeypatch.setenv("nnUNet_extTrainer", "/own/trainers")
    monkeypatch.setenv("HERE", str(place))
    monkeypatch.setenv("PATH", str(place / "bin"), prepend=os.pathsep)
    for name, code in (("sbatch", SBATCH), ("pgl_compare", COMPARE)):
        script = place / "bin" / name
        script.write_text(f"#!{sys.executable} -IS\n{code}")
        script.chmod(0o755)
    monkeypatch.setattr("pretraining.comparison.command.find_command", lambda name: str(place / "bin" / name))
    return place


def submitted(
    place: Path, settings: ComparisonSettings, device: str
) -> tuple[list[dict], list[tuple[list[str], dict]], str]:
    """The jobs, the calls of pgl_compare with their variables, and what the script prints."""
    script = write_submit_script(Comparison(ComparisonFolder.from_name(NAME), settings, device, 4))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    variables = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    output = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, check=True).stdout
    calls = [json.loads(line) for line in (place / "calls").read_text().splitlines()]
    return json.loads((place / "jobs.json").read_text()), calls, output


def test_all_runs_are_submitted_in_order(place: Path) -> None:
    settings = ComparisonSettings(NAME, (NAME,), inits=("random", "byol", "pgl"), fractions=(0.5, 1.0), seeds=2)
    jobs, calls, output = submitted(place, settings, "cuda")
    dependencies = [re.findall(r"--dependency=(\w+):(\d+)", " ".join(job["arguments"])) for job in jobs]
    assert dependencies == [[], [("afterok", "101")], [("afterany", "102")], [("afterany", "103")]]
    for job, name, on_gpu in zip(
        jobs, ("prepare", "pretrain", "train", "report"), (False, True, True, False), strict=True
    ):
        assert f"--job-name=pgl_{name}" in job["options"]
        assert ("--gres=gpu:1" in job["options"]) == on_gpu
        assert not any("NAME" in option for option in job["options"])  # to be filled in by the user
    words = [call for call, _ in calls]
    parts = {
        step: [call[call.index("--part") + 1 :] for call in words if step in call] for step in ("pretrain", "train")
    }
    assert parts["pretrain"] == [[str(index), "2"] for index in range(2)]
    assert parts["train"] == [[str(index), "12"] for index in range(12)]
    assert words[0] == ["-o", NAME, "--only", "prepare", "-device", "cpu", "-np", "4"]
    assert words[1][:8] == ["-o", NAME, "--only", "pretrain", "-device", "cuda", "-np", "4"]
    assert words[-1][:4] == ["-o", NAME, "--only", "report"]
    for _, variables in calls:
        assert variables["nnUNet_results"] == str(place / "nnUNet_results")
        assert variables["nnUNet_extTrainer"].endswith(f"{os.pathsep}/own/trainers")
    assert "train 103" in output
    log = [option for option in jobs[2]["options"] if option.startswith("--output=")]
    assert Path(log[0].removeprefix("--output=").strip("'\"")).parent.is_dir()


def test_no_pretraining_no_job(place: Path) -> None:
    jobs, calls, _ = submitted(place, ComparisonSettings(NAME, (NAME,), inits=("random",), seeds=1), "cpu")
    assert len(jobs) == 3
    assert not [call for call, _ in calls if "pretrain" in call]
    assert jobs[1]["arguments"][-1] == "--dependency=afterok:101"
    assert not any("gres" in option for job in jobs for option in job["options"])


def test_the_jobs_find_the_settings(place: Path) -> None:
    """They are called with the name alone."""
    settings = ComparisonSettings(NAME, (NAME,), inits=("random",), tolerance=2.5)
    write_submit_script(Comparison(ComparisonFolder.from_name(NAME), settings, "cpu", 4))
    assert ComparisonSettings.load(ComparisonFolder.from_name(NAME).settings) == settings
