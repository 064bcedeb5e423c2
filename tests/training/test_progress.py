"""What the log, the curves and pgl_info tell of records, also of those that version 0.1.0 left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.info.command import describe
from pretraining.training.progress import epoch_lines, plot_progress

COMMON = {
    **{"loss": 1.5, "feature_std": 0.5, "within_views": 0.5, "learning_rate": 0.1, "tau": 0.99, "seconds": 1.0},
    **{"scans_per_second": 2.0, "views_per_second": 4.0, "waiting": 0.0},
}
OF_010 = {**COMMON, "epoch": 0, "correspondence": 0.25, "chance": 0.125, "miss_distance": 9.0}
UNFLIPPED = {"unflipped_right": 0.75, "unflipped_position_code": 0.625, "unflipped_ceiling": 0.875}
FLIPPED = {"flipped_right": 0.5, "decoy": 0.0625, "position_code": 0.03125, "ceiling": 0.96875}
RECORD = {**COMMON, "epoch": 1, "miss_distance": 3.0, **FLIPPED, **UNFLIPPED}


def curves(
    history: list[dict[str, Any]], baseline: dict[str, float] | None, path: Path, patch: pytest.MonkeyPatch
) -> dict[str, list[tuple[float, float]]]:
    """Points of each curve that is drawn, by its label."""
    drawn: list[Figure] = []
    save = Figure.savefig
    patch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or save(self, *args, **kwargs))
    plot_progress(history, baseline, path)
    assert path.stat().st_size > 0
    lines = [line for axes in drawn[0].axes for line in axes.get_lines()]
    return {
        str(line.get_label()).replace("\n", " "): [(float(x), float(y)) for x, y in line.get_xydata()] for line in lines
    }


def test_curves_of_a_run_that_began_with_the_first_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = {"correspondence": 0.2, "miss_distance": 9.0}
    found = curves([OF_010, RECORD], baseline, tmp_path / "a.png", monkeypatch)
    assert found["all pairs (version 0.1.0)"] == [(0, 0.25)]
    assert found["flipped pairs: cells matched to the right location"] == [(1, 0.5)]
    assert found["to the same position in the view instead"] == [(1, 0.0625)]
    assert found["upper bound"] == [(1, 0.96875)]
    assert found["pairs without a flip"] == [(1, 0.75)]
    assert found["position-only baseline"] == [(1, 0.625)]
    assert found["distance of the others"] == [(0, 9), (1, 3)]
    assert "before training" not in found


def test_curves_of_the_first_version_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = curves([OF_010], {"correspondence": 0.2, "miss_distance": 9.0}, tmp_path / "a.png", monkeypatch)
    assert "flipped pairs: cells matched to the right location" not in found
    assert found["training loss"] == [(0, 1.5)]


@pytest.mark.parametrize("kinds", [FLIPPED | UNFLIPPED, UNFLIPPED])
def test_curves_and_lines_with_and_without_flips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: dict[str, float]
) -> None:
    record = {**COMMON, "epoch": 0, "miss_distance": 3.0, **kinds}
    found = curves([record], dict(kinds), tmp_path / "a.png", monkeypatch)
    has_flips = "flipped_right" in kinds
    assert ("before training" in found) == ("flipped pairs: cells matched to the right location" in found) == has_flips
    text = "\n".join(epoch_lines(record, 60))
    assert "pairs without a flip: 75.0% (position-only baseline 62.5%, upper bound 87.5%)" in text
    assert ("flipped pairs: 50.0% of cells matched to the right location" in text) == has_flips
    assert ("6.2% to the same position in the view" in text) == has_flips


def test_lines_of_the_first_version() -> None:
    text = "\n".join(epoch_lines(OF_010, 60))
    assert "train_loss 1.5" in text
    assert "flip" not in text


def test_info_tells_the_metrics_of_either_version() -> None:
    def told(record: dict[str, Any]) -> str:
        pgl = {"method": "pgl", "architecture": {"name": "resnet50"}, "metrics": record}
        (line,) = [line for line in describe(EncoderCheckpoint({}, pgl, {})) if line.startswith("last epoch")]
        return line

    assert "correspondence 0.25, chance 0.125, miss_distance 9" in told(OF_010)
    assert "flipped_right 0.5, unflipped_right 0.75, decoy 0.0625, position_code 0.03125, ceiling 0.9688" in told(
        RECORD
    )
