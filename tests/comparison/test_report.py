import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure
from matplotlib.image import imread

from pretraining.comparison import figures
from pretraining.comparison.figures import looks
from pretraining.comparison.metrics import measure_case
from pretraining.comparison.qualitative import read_slice
from pretraining.comparison.report import write_report
from pretraining.comparison.results import COLUMNS, read_results
from pretraining.comparison.statistics import Interval, RunTest
from pretraining.comparison.study import RunRecord, Study
from pretraining.comparison.tables import verdict
from pretraining.comparison.training_curves import read_training

CLASSES: dict[str, Any] = {"head": 1, "whole": (1, 2)}
PAGES = Path(__file__).parents[2] / "docs" / "results"
INITS = ("random", "byol", "pgl")
SPACING = (1.2, 1.1, 2.0)  # x, y, z
LOG = """
2026-01-01 00:00:00.000001: Epoch 0
2026-01-01 00:00:00.000001: Current learning rate: 0.01
2026-01-01 00:00:01.000001: train_loss 0.5
2026-01-01 00:00:01.000001: val_loss 20.5
2026-01-01 00:00:01.000001: Pseudo dice [np.float32(0.25), np.float32(nan)]
2026-01-01 00:00:01.000001: Epoch time: 1.0 s
2026-01-01 00:00:01.000001: Epoch 1
2026-01-01 00:00:02.000001: train_loss -0.25
2026-01-01 00:00:02.000001: val_loss -1e-05
2026-01-01 00:00:02.000001: Pseudo dice [0.5, 0.7]
"""


def write_image(voxels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))
    return path


def labels(shift: int) -> np.ndarray:
    voxels = np.zeros((8, 20, 16), np.uint8)
    voxels[2:6, 4 + shift : 12 + shift, 3:9] = 1
    voxels[2:6, 12 + shift : 16 + shift, 3:9] = 2
    return voxels


def run_of(root: Path, init: str, fraction: float, seed: int, cases: Sequence[str]) -> RunRecord:
    """Predictions that are worse, by the shift of a box, for random and for some cases."""
    folder = root / f"{init}_{fraction}_{seed}"
    for number, case in enumerate(cases):
        shift = 1 + (number % 3 == seed) + (number == 5)
        write_image(labels({"random": shift + 1, "byol": shift, "pgl": shift - 1}[init]), folder / f"{case}.nii.gz")
    log = folder / "training_log_2026.txt"
    log.write_text(LOG)
    return RunRecord(init, fraction, 0, seed, folder, ".nii.gz", log, 60.0 + seed)


def measured(run: RunRecord, study: Study) -> pd.DataFrame:
    where = dict(zip(COLUMNS, (run.init, run.fraction, round(40 * run.fraction), run.fold, run.seed), strict=False))
    of_cases = {
        case: measure_case(truth, run.prediction(case), study.classes, study.tolerance_mm)
        for case, truth in study.truths.items()
    }
    return pd.concat([of_case.assign(case=case, **where) for case, of_case in of_cases.items()])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Study]:
    root = tmp_path_factory.mktemp("comparison")
    cases = [f"case_{i}" for i in range(11)]
    noise = np.random.default_rng(0).normal(size=(8, 20, 16)).astype(np.float32)
    images = {case: write_image(noise + labels(0), root / "images" / f"{case}.nii.gz") for case in cases}
    truths = {case: write_image(labels(0), root / "truths" / f"{case}.nii.gz") for case in cases}
    write_image(np.where(labels(0) == 1, 0, labels(0)), truths["case_2"])  # without a head
    runs = [run_of(root, init, f, seed, cases) for init in INITS for f in (0.2, 1.0) for seed in range(2)]
    write_image(0 * labels(0), runs[0].prediction("case_4"))  # random at 20 %, seed 0 misses both classes
    study = Study(
        title="A <b>bold</b> | title",
        facts=(("Dataset", "Dataset001_A|B"), ("Trainer", "a * b <c>")),
        commands=("pgl_compare -d 1 > log",),
        inits=INITS,
        reference="pgl",
        tolerance_mm=1.5,
        runs=tuple(runs),
        missing=("pgl_50pct_fold0_seed7",),
        images=images,
        truths=truths,
        classes=CLASSES,
    )
    return pd.concat([measured(run, study) for run in runs], ignore_index=True)[list(COLUMNS)], study


def head_of(results: pd.DataFrame) -> dict[str, Any]:
    """A row of a head that is there."""
    row: dict[str, Any] = results.query("class_name == 'head' and truth_voxels > 0").iloc[0].to_dict()
    return row


@pytest.fixture(scope="module")
def report(comparison: tuple[pd.DataFrame, Study], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report(*comparison, tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Collects what a page shows and refers to, and checks that its tags are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f"**{data}**" if "strong" in self.open else data


def markdown_tables(text: str) -> list[list[list[str]]]:
    parts = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines()] for part in parts]
    return [[[cell.strip() for cell in row] for i, row in enumerate(table) if i != 1] for table in rows]


def test_the_files_are_there(report: list[Path]) -> None:
    assert [path.name for path in report[:2]] == ["report.md", "report.html"]
    assert {path.name for path in report[2:]} == {
        "label_fractions.png",
        "runs.png",
        "classes.png",
        "training.png",
        "cases.png",
    }
    for path in report[2:]:
        assert imread(path)[..., :3].std() > 0.01
    left = {path for path in report[0].parent.rglob("*") if path.is_file()}
    assert left == set(report)  # nothing temporary


def test_the_page_needs_nothing_else(report: list[Path]) -> None:
    page = Page(report[1].read_text(encoding="utf-8"))
    assert not {"script", "link", "b"} & {tag for tag, _ in page.attributes}
    sources = [values["src"] for _, values in page.attributes if "src" in values]
    prefix = "data:image/png;base64,"
    assert all(source and source.startswith(prefix) for source in sources)
    embedded = {base64.b64decode(source.removeprefix(prefix)) for source in sources if source}
    assert embedded == {path.read_bytes() for path in report[2:]}
    assert not any(re.match(r"https?:", str(value)) for _, values in page.attributes for value in values.values())


def test_markdown_links_its_pictures_and_has_the_same_tables(report: list[Path]) -> None:
    text = report[0].read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert {report[0].parent / link for link in links} == set(report[2:])
    plain = [[[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in table] for table in markdown_tables(text)]
    assert plain == Page(report[1].read_text(encoding="utf-8")).tables
    assert all(len(row) == len(table[0]) for table in plain for row in table)


def test_means_are_those_of_pandas(report: list[Path], comparison: tuple[pd.DataFrame, Study]) -> None:
    table = comparison[0]
    tables = markdown_tables(report[0].read_text(encoding="utf-8"))
    averages = [t for t in tables if t[0][0] == "init" and "runs" in t[0]]
    of_classes = [t for t in tables if t[0][0] == "init" and "runs" not in t[0]]
    for number, fraction in enumerate((0.2, 1.0)):
        for init, row, class_row in zip(INITS, averages[number][1:], of_classes[number][1:], strict=True):
            part = table[(table["init"] == init) & (table["fraction"] == fraction)]
            of_cases = part.groupby(["seed", "case"])[["dice", "hd", "surface_dice"]].mean()
            found = dict(zip(averages[number][0], (cell.strip("*").split(" [")[0] for cell in row), strict=True))
            assert found["init"] == init
            assert found["Dice, %"] == f"{100 * of_cases['dice'].mean():.2f}"
            assert found["HD, mm"] == f"{of_cases['hd'].mean():.2f}"
            assert found["surface Dice at 1.5 mm, %"] == f"{100 * of_cases['surface_dice'].mean():.2f}"
            found = dict(zip(of_classes[number][0], (cell.strip("*") for cell in class_row), strict=True))
            assert found["IoU head"] == f"{100 * part[part['class_name'] == 'head']['iou'].mean():.2f}"


def test_the_best_is_bold_and_the_missed_are_counted(report: list[Path]) -> None:
    text = report[0].read_text(encoding="utf-8")
    first = next(t for t in markdown_tables(text) if "runs" in t[0] and t[0][0] == "init")
    dice, missed = first[0].index("Dice, %"), first[0].index("missed")
    for column in (dice, first[0].index("HD, mm")):
        assert [row[column].startswith("**") for row in first[1:]] == [False, False, True]
    assert [row[missed] for row in first[1:]] == ["2 of 42", "0 of 42", "0 of 42"]
    counts = next(t for t in markdown_tables(text) if "spurious" in t[0])
    assert counts[1] == ["20 %", "random", "2 of 42", "2 of 44", "2 of 2"]


def test_two_runs_are_too_few_for_a_verdict(report: list[Path]) -> None:
    text = report[0].read_text(encoding="utf-8")
    tests = next(t for t in markdown_tables(text) if "pgl is" in t[0])
    assert [row[:2] for row in tests[1:]] == [[f, i] for f in ("20 % (8 scans)", "100 % (40 scans)") for i in INITS[:2]]
    found = [dict(zip(tests[0], row, strict=True)) for row in tests[1:]]
    assert {row["pgl is"] for row in found} == {"no verdict: 2 runs, it takes at least 3"}
    assert all(row["difference, Dice points"].startswith("+") and row["runs it takes"] for row in found)
    over_cases = next(t for t in markdown_tables(text) if "p over cases" in t[0])
    assert all(row[3] == "11" and float(row[4].strip("< ")) < 0.05 for row in over_cases[1:])
    assert "better" not in text.split("## Tests")[0]


def test_more_runs_have_one_and_their_differences_are_listed(
    comparison: tuple[pd.DataFrame, Study], tmp_path: Path
) -> None:
    results, study = comparison
    # Four runs of each: random at 20, 21, 22, 23 %, pgl 10 points higher, give and take one; byol now above, now below.
    values = {"random": (20, 21, 22, 23), "pgl": (30, 32, 31, 33), "byol": (20, 50, 10, 60)}
    row = head_of(results)
    rows = [
        {**row, "init": init, "fraction": 0.2, "seed": seed, "dice": dice / 100}
        for init, of_seeds in values.items()
        for seed, dice in enumerate(of_seeds)
    ]
    text = write_report(pd.DataFrame(rows), replace(study, runs=()), tmp_path)[0].read_text(encoding="utf-8")
    tables = markdown_tables(text)
    tests = next(t for t in tables if "pgl is" in t[0])
    found = {row[1]: dict(zip(tests[0], row, strict=True)) for row in tests[1:]}
    assert found["random"]["by run"] == "+10.00, +11.00, +9.00, +10.00"
    assert found["random"]["difference, Dice points"] == "+10.00 [+8.70, +11.30]"  # 3.182 x 0.8165 / 2
    assert found["random"]["pgl is"] == "better"
    assert found["random"]["runs it takes"] == "\N{EN DASH}"
    assert found["byol"]["pgl is"] == "undecided, above in 2 of 4 runs"
    assert found["byol"]["runs it takes"] == "more than 100"
    assert "for all p values (2)" in text
    runs = next(t for t in tables if t[0][0] == "run")
    assert runs[2] == ["fold 0, seed 1", "21.00", "50.00 (+29.00)", "32.00 (+11.00)"]
    assert "against random +10.00 [+8.70, +11.30], better" in text


@pytest.mark.parametrize(
    ("fraction", "runs", "same_cases", "folds"),
    [
        (1.0, [(0, 0), (0, 1), (0, 2)], True, False),
        (0.2, [(0, 0), (0, 1), (0, 2)], False, False),
        (1.0, [(0, 0), (1, 0), (2, 0)], False, False),
        (1.0, [(0, 0), (0, 1), (1, 0), (1, 1)], True, True),
    ],
)
def test_what_the_runs_do_not_cover_is_said(
    fraction: float,
    runs: list[tuple[int, int]],
    same_cases: bool,
    folds: bool,
    comparison: tuple[pd.DataFrame, Study],
    tmp_path: Path,
) -> None:
    row = head_of(comparison[0])
    results = pd.DataFrame([{**row, "fraction": fraction, "fold": fold, "seed": seed} for fold, seed in runs])
    text = write_report(results, replace(comparison[1], runs=()), tmp_path)[0].read_text(encoding="utf-8")
    assert ("seeds of a fold all train on the same cases" in text) == same_cases
    assert ("take all runs for independent" in text) == folds


@pytest.mark.parametrize(
    ("differences", "holm_p", "words"),
    [
        ((0.1, 0.2, 0.15), 0.049, "better"),
        ((-0.1, -0.2, -0.15), 0.001, "worse"),
        ((0.1, 0.2, 0.15), 0.05, "undecided after Holm's correction, above in all 3 runs"),
        ((-0.1, -0.2, -0.15), 0.2, "undecided after Holm's correction, above in none of 3 runs"),
        ((0.1, 0.2, -0.15), 0.001, "undecided, above in 2 of 3 runs"),
        ((0.1,), 0.001, "no verdict: 1 run, it takes at least 3"),
        ((), 0.001, "not compared: no run and case in common"),
    ],
)
def test_verdicts(differences: tuple[float, ...], holm_p: float, words: str) -> None:
    runs = tuple((0, seed) for seed in range(len(differences)))
    mean = float(np.mean(differences)) if differences else 0.0
    beside = Interval(mean, mean - abs(mean) / 2, mean + abs(mean) / 2)
    assert verdict(RunTest("byol", 0.2, runs, differences, beside, holm_p / 2, holm_p, 0.025, 9, 0.001)) == words


def test_the_worst_and_the_median_case_are_drawn(report: list[Path]) -> None:
    # pgl finds a head that case_2 has not, shifts case_5 in both runs, case_8 in none, the others in one. So the order
    # is 2, 5, then by name 0, 1, 10, 3 (the sixth of eleven), 4, 6, 7, 9, and 8.
    text = report[0].read_text(encoding="utf-8")
    assert "Median test case (case_3) and worst test case (case_2) of pgl at 20 % of the labels" in text
    assert "predictions (fold 0, seed 0)" in text


def test_drawn_is_what_still_has_its_predictions(comparison: tuple[pd.DataFrame, Study], tmp_path: Path) -> None:
    results, study = comparison
    gone = [
        replace(run, predictions=tmp_path / "deleted") if run.fraction == 0.2 and run.init == "random" else run
        for run in study.runs
    ]
    text = write_report(results, replace(study, runs=tuple(gone)), tmp_path)[0].read_text(encoding="utf-8")
    assert "of pgl at 100 % of the labels" in text
    all_gone = [replace(run, predictions=tmp_path / "deleted") for run in study.runs]
    text = write_report(results, replace(study, runs=tuple(all_gone)), tmp_path)[0].read_text(encoding="utf-8")
    assert "of pgl at 20 % of the labels" in text


def test_what_is_missing_is_named(comparison: tuple[pd.DataFrame, Study], tmp_path: Path) -> None:
    results, study = comparison
    kept = results.query("init != 'byol' and not (init == 'pgl' and seed == 1 and case == 'case_3')")
    kept = kept.query("not (init == 'random' and fraction == 1 and seed == 0)")
    runs = [replace(run, training_log=None, seconds=None) for run in study.runs]
    files = write_report(kept, replace(study, runs=tuple(runs), images={}), tmp_path)
    text = files[0].read_text(encoding="utf-8")
    for line in (
        "not done yet (1): pgl_50pct_fold0_seed7",
        "- byol: no results",
        "pgl, 20 %, fold 0, seed 1: no results of case_3",
        "random, 100 %, fold 0, seed 0: no results of all test cases",
        "no training curves: no run has a log",
        "No case is drawn: image or truth of case_",
    ):
        assert line in text
    assert "## Times" not in text
    assert {path.name for path in files[2:]} == {"label_fractions.png", "runs.png", "classes.png"}


def test_the_least_there_can_be(comparison: tuple[pd.DataFrame, Study], tmp_path: Path) -> None:
    results, study = comparison
    row = results[results["init"] == "random"][:1]
    dice = row["dice"].item()
    small = replace(
        study, inits=("random",), runs=study.runs[:1], classes={"head": 1}, facts=(), commands=(), missing=()
    )
    assert dice > 0
    text = write_report(row, small, tmp_path)[0].read_text(encoding="utf-8")
    assert f"| random | 1 | {100 * dice:.2f} |" in text
    assert "No test of pgl against another initialisation is possible yet" in text
    assert "nan" not in text


def test_no_results_at_all(comparison: tuple[pd.DataFrame, Study], tmp_path: Path) -> None:
    files = write_report(comparison[0][:0], replace(comparison[1], runs=()), tmp_path)
    assert [path.name for path in files] == ["report.md", "report.html"]
    assert "- pgl: no results" in files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["openkbp", "hippocampus", "hippocampus_0.1.0", "resenc_hippocampus", "torso"])
def test_the_stored_reports_have_the_same_numbers(name: str, tmp_path: Path) -> None:
    """Of all tables that are made from results.csv alone."""
    stored = (PAGES / name / "report.md").read_text(encoding="utf-8")
    results = read_results(PAGES / name / "results.csv")
    title = stored.splitlines()[0].removeprefix("# ")
    of_interest = [
        t for t in markdown_tables(stored) if t[0][0] in ("init", "run") or "by run" in t[0] or "spurious" in t[0]
    ]
    reference = re.search(r"^Average Dice of (\S+) in short", stored, re.MULTILINE)
    assert reference is not None
    study = Study(
        title=title,
        facts=(),
        commands=(),
        inits=tuple(title.split(": ")[1].split(", ")),
        reference=reference[1],
        tolerance_mm=1.0,
        runs=(),
        missing=(),
        images={},
        truths={},
        classes={class_name: 1 for class_name in results["class_name"].unique()},
    )
    found = markdown_tables(write_report(results, study, tmp_path)[0].read_text(encoding="utf-8"))
    assert len(of_interest) >= 4
    for table in of_interest:
        assert table in found


def test_many_classes_have_a_table_per_measure(comparison: tuple[pd.DataFrame, Study], tmp_path: Path) -> None:
    results, study = comparison
    names = [f"organ_{i}" for i in range(5)]
    head = results.query("class_name == 'head' and fraction == 1")
    rows = pd.concat([head.assign(class_name=name) for name in names])
    few = replace(study, runs=(), classes={name: 1 for name in names})
    tables = markdown_tables(write_report(rows, few, tmp_path)[0].read_text(encoding="utf-8"))
    of_classes = [t for t in tables if t[0][0] == "init" and "runs" not in t[0]]
    assert [t[0][1] for t in of_classes] == ["Dice organ_0", "IoU organ_0", "HD organ_0", "HD95 average"]
    assert [len(t[0]) for t in of_classes] == [7, 7, 7, 4]


@pytest.mark.parametrize("change", [{"init": "unheard"}, {"class_name": "tail"}])
def test_names_that_the_study_does_not_know(
    comparison: tuple[pd.DataFrame, Study], tmp_path: Path, change: dict[str, Any]
) -> None:
    results, study = comparison
    with pytest.raises(ValueError, match=f"{next(iter(change.values()))} is in the results but not in the comparison"):
        write_report(pd.concat([results, results[:1].assign(**change)]), study, tmp_path)
    with pytest.raises(ValueError, match="two rows of random"):
        write_report(pd.concat([results, results[:1]]), study, tmp_path)


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
    comparison: tuple[pd.DataFrame, Study],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = head_of(comparison[0])
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
        draw(results, replace(comparison[1], inits=inits), tmp_path / "figure.png")
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
