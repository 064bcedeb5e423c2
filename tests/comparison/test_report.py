"""The pages of a report: Markdown and HTML, what is missing, and that stored reports come out again."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.image import imread

from pretraining.comparison.report import write_report
from pretraining.comparison.results import read_results
from pretraining.comparison.study import Study
from tests.example_comparison import Compared, markdown_tables

PAGES = Path(__file__).parents[2] / "docs" / "results"


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


def test_what_is_missing_is_named(compared: Compared, tmp_path: Path) -> None:
    results, study = compared
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


def test_the_least_there_can_be(compared: Compared, tmp_path: Path) -> None:
    results, study = compared
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


def test_no_results_at_all(compared: Compared, tmp_path: Path) -> None:
    files = write_report(compared[0][:0], replace(compared[1], runs=()), tmp_path)
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


@pytest.mark.parametrize("change", [{"init": "unheard"}, {"class_name": "tail"}])
def test_names_that_the_study_does_not_know(compared: Compared, tmp_path: Path, change: dict[str, Any]) -> None:
    results, study = compared
    with pytest.raises(ValueError, match=f"{next(iter(change.values()))} is in the results but not in the comparison"):
        write_report(pd.concat([results, results[:1].assign(**change)]), study, tmp_path)
    with pytest.raises(ValueError, match="two rows of random"):
        write_report(pd.concat([results, results[:1]]), study, tmp_path)
