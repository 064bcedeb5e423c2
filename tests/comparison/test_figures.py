"""The figures of a report: cases, curves from logs, colours, and texts that do not overlap."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure

from pretraining.comparison import figures
from pretraining.comparison.figures import looks
from pretraining.comparison.qualitative import read_slice
from pretraining.comparison.report import write_report
from pretraining.comparison.training_curves import read_training
from tests.example_comparison import LOG, Compared, head_of


def test_the_worst_and_the_median_case_are_drawn(report: list[Path]) -> None:
    # pgl finds a head that case_2 has not, shifts case_5 in both runs, case_8 in none, the others in one. So the order
    # is 2, 5, then by name 0, 1, 10, 3 (the sixth of eleven), 4, 6, 7, 9, and 8.
    text = report[0].read_text(encoding="utf-8")
    assert "Median test case (case_3) and worst test case (case_2) of pgl at 20 % of the labels" in text
    assert "predictions (fold 0, seed 0)" in text


def test_drawn_is_what_still_has_its_predictions(compared: Compared, tmp_path: Path) -> None:
    results, study = compared
    gone = [
        replace(run, predictions=tmp_path / "deleted") if run.fraction == 0.2 and run.init == "random" else run
        for run in study.runs
    ]
    text = write_report(results, replace(study, runs=tuple(gone)), tmp_path)[0].read_text(encoding="utf-8")
    assert "of pgl at 100 % of the labels" in text
    all_gone = [replace(run, predictions=tmp_path / "deleted") for run in study.runs]
    text = write_report(results, replace(study, runs=tuple(all_gone)), tmp_path)[0].read_text(encoding="utf-8")
    assert "of pgl at 20 % of the labels" in text


def test_logs_are_read_with_those_of_earlier_starts(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_1.txt").write_text(LOG)
    later = tmp_path / "training_log_2026_2.txt"
    later.write_text("x: Epoch 1\nx: train_loss 0.125\nx: val_loss inf\nx: Pseudo dice [0.5, 0.7]\nx: Epoch 2\n")
    first = read_training(tmp_path / "training_log_2026_1.txt")
    assert first.index.tolist() == [0, 1]
    assert first.loc[0].tolist() == [0.5, 20.5, 0.25]
    assert first.loc[1].tolist() == [0.125, np.inf, pytest.approx(0.6)]  # repeated by the later start
    assert read_training(later).equals(first)
    (tmp_path / "training_log_2026_3.txt").write_text("x: Epoch 0\nx: train_loss 0.75\n")
    assert read_training(later)["train_loss"].tolist() == [0.75]  # what was trained before it started again is gone
    with pytest.raises(ValueError, match=r"none\.txt: cannot be read"):
        read_training(tmp_path / "none.txt")


def test_a_slice_is_the_one_with_most_truth_and_lies_as_a_patient(tmp_path: Path) -> None:
    truth = np.zeros((5, 40, 40), np.uint8)
    truth[3, 5:9, 4:8], truth[1, 20, 20] = 1, 1
    truth[3, 5, 4] = 0  # the corner at the left and at the back
    image = sitk.GetImageFromArray(truth)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # stored from left to right, from back to front
    sitk.WriteImage(image, str(tmp_path / "truth.nii.gz"))
    path = tmp_path / "truth.nii.gz"
    plane = read_slice(path, path, {"pgl": path, "byol": tmp_path / "none.nii.gz"}, {"it": 1})
    assert plane.truth.sum() == 15
    assert plane.predictions["byol"] is None
    assert np.array_equal(plane.image, plane.truth)
    assert plane.aspect == 2
    # The margin is 40 % of the 8 mm in y: 2 voxels of 2 mm, 3 of 1 mm. Left is on the right, the back below.
    assert plane.truth.shape == (4 + 2 * 2, 4 + 2 * 3)
    assert np.argwhere(plane.truth[2:-2, 3:-3] == 0).tolist() == [[3, 3]]


def test_a_large_structure_does_not_hide_the_small_ones(tmp_path: Path) -> None:
    truth = np.zeros((3, 20, 20), np.uint8)
    truth[0, 2:18, 2:18], truth[1, 4:16, 4:16], truth[1, 8:10, 8:10] = 1, 1, 2
    path = tmp_path / "truth.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(path))
    assert set(np.unique(read_slice(path, path, {}, {"large": 1, "small": 2}).truth)) == {0, 1, 2}
    assert read_slice(path, path, {}, {"absent": 7}).truth.shape == (20, 20)


def test_an_init_keeps_its_colour() -> None:
    assert looks(("random", "pgl"))["pgl"].colour == looks(("pgl", "mine", "byol"))["pgl"].colour
    controls = looks(("random", "pgl_nce", "shuffled:pgl_nce", "longer:pgl_nce", "decoder:pgl_nce"))
    assert len({look.colour for look in controls.values()}) == 5
    many = looks(("random", "models_genesis", "byol", "pgl", "pgl_mae", "mae", "a", "b"))
    assert len({look.colour for look in many.values()}) == len({look.marker for look in many.values()}) == 8


@pytest.mark.parametrize(
    ("inits", "fractions"),
    [
        (("byol", "pgl"), (0.2, 1.0)),
        (("random", "pgl"), (1.0,)),
        (("random", "pgl_nce", "shuffled:pgl_nce", "longer:pgl_nce", "decoder:mae"), (0.2, 0.5, 1.0)),
        (("random", "a_long_name_that_someone_has_defined", f"shuffled:{'x' * 60}"), (0.2, 1.0)),
        (("random", "pgl"), (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)),
    ],
)
def test_what_is_written_in_the_figures_of_results_can_be_read(
    inits: tuple[str, ...],
    fractions: tuple[float, ...],
    compared: Compared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = head_of(compared[0])
    results = pd.DataFrame(
        [
            {
                **row,
                "init": init,
                "fraction": fraction,
                "training_cases": round(40 * fraction),
                "seed": seed,
                "dice": 0.1 * seed,
            }
            for init in inits
            for fraction in fractions
            for seed in range(5)
        ]
    )
    drawn: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(figures, "save", keep)
    for draw in (figures.draw_label_curve, figures.draw_runs, figures.draw_classes):
        draw(results, replace(compared[1], inits=inits), tmp_path / "figure.png")
    for figure in drawn:
        figure.draw_without_rendering()
        [legend] = figure.legends
        panels = [axes.get_window_extent() for axes in figure.axes]
        for box in (legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)):
            assert box is not None
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
        assert min(panel.height for panel in panels) > 0.25 * figure.bbox.height / len(fractions)
    below = [text.get_window_extent() for text in drawn[0].axes[0].get_xticklabels()]
    slanted = drawn[0].axes[0].get_xticklabels()[0].get_rotation() != 0
    assert slanted or not any(a.overlaps(b) for a, b in pairwise(below))
