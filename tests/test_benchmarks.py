from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bare_networks import BareNetworks
from benchmarks.report import Figure
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import PGL

_ROOT = Path(__file__).parents[1]


def test_goals() -> None:
    assert Figure("a", 1.05, "", "", "<= 1.10").meets_goal is True
    assert Figure("a", 1.15, "", "", "<= 1.10").meets_goal is False
    assert Figure("a", 300, "", "", ">= 300").meets_goal is True
    assert Figure("a", 299, "", "", ">= 300").meets_goal is False
    assert Figure("a", 1, "", "").meets_goal is None


def test_flop_of_the_heads_by_hand() -> None:
    """What a pair costs beyond the encoder: heads of 1x1x1 convolutions on 72 cells, in three passes and in one."""
    torch.manual_seed(0)
    view = (16, 96, 96)
    narrow, wide = (BareNetworks(PGL(ResNet50Encoder(), view, width, 256), 1, view, None) for width in (1024, 2048))
    cells, views, more = 2 * 6 * 6, 2, 1024
    projector, predictor = more * (2048 + 256), more * (256 + 256)
    expected = 2 * views * cells * (3 * (projector + predictor) + projector)
    assert wide.flop() - narrow.flop() == expected


@pytest.mark.slow
def test_quick_run_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.pretraining", "--device", "cpu", "--quick", "--json", str(file)]
    done = subprocess.run(
        [*command, "--only", "step", "feeding", "--folder", str(tmp_path)], cwd=_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    for key in (
        "step_over_network",
        "network_over_hardware",
        "read_pairs_per_second_per_core",
        "feed_over_reference",
    ):
        assert figures[key] > 0
        assert key in done.stdout
    assert figures["machine"]["torch"] == torch.__version__
