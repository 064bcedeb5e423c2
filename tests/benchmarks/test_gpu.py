"""What is to be measured on a GPU: its parts run through on a CPU, and none keeps the others from running."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.running import Part, Results, run_parts
from benchmarks.report import Settings

_ROOT = Path(__file__).parents[2]

GOOD = """
from benchmarks.report import Figure
def measure(settings):
    return [Figure("good_seconds", settings.seconds, "s", "its share")]
"""
FAILING = """
from benchmarks.report import Figure
def measure(settings):
    yield Figure("before_it_failed", 1.5, "", "")
    raise RuntimeError("no kernel of this kind\\nsecond line")
"""
DYING = """
import os, signal
def measure(settings):
    os.kill(os.getpid(), signal.SIGKILL)
    yield
"""
ENDLESS = """
import subprocess, time
from benchmarks.report import Figure
def measure(settings):
    child = subprocess.Popen(["sleep", "1000"])
    yield Figure("before_its_time_was_over", child.pid, "", "")
    time.sleep(1000)
"""


def test_parts_that_fail_do_not_stop_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that came before stay, and what a part has started ends with it."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {"good": GOOD, "failing": FAILING, "dying": DYING, "endless": ENDLESS}.items():
        (tmp_path / f"part_{name}.py").write_text(code)
    parts = {
        "failing": Part("part_failing", 1),
        "dying": Part("part_dying", 1),
        "endless": Part("part_endless", 0.3),
        "without time": Part("part_endless", 0),
        "depthwise": PARTS["depthwise"],
        "good": Part("part_good", 3),
    }
    out = tmp_path / "out"
    run_parts(parts, Settings(torch.device("cpu"), tmp_path, quick=True), 120, Results(out))
    figures, text = json.loads((out / "gpu.json").read_text()), (out / "gpu.txt").read_text()
    errors = figures.pop("errors")
    assert errors["failing"] == "RuntimeError: no kernel of this kind"
    assert "second line" in text
    assert errors["dying"] == "its process ended with exit code -9"
    assert errors["endless"].startswith("not done within its share of the time")
    assert errors["without time"].startswith("not done within its share of the time")
    assert errors.keys() == {"failing", "dying", "endless", "without time"}
    assert figures["before_it_failed"] == 1.5
    assert not Path(f"/proc/{figures['before_its_time_was_over']}/cwd").exists()
    assert figures["machine"]["torch"] == torch.__version__
    assert figures["depthwise_seconds_fp16_channels_last"] > 0
    assert 20 < figures["good_seconds"] < 120  # what the others have left
    assert "good_seconds" in text


@pytest.mark.slow
def test_all_parts_run_through_on_a_cpu(tmp_path: Path) -> None:
    command = [
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--seconds",
        "3600",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, *command, "--folder", str(tmp_path)], cwd=_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert figures["errors"] == {}
    for key in (
        "step_over_network",
        "network_over_hardware",
        "samples_per_second_at_largest_batch",
        "paper_schedule_minutes",
        "memory_gib_recommended_2",
        "kernel_5_share",
        "finetune_over_resenc_l",
        "inference_over_default",
        "network_graph_over_eager_2",
        "network_compiled_over_eager_2",
    ):
        assert figures[key] > 0
