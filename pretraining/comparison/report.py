"""Writes the report of a comparison, in Markdown and as one HTML page, from the templates beside this module.

``report.jinja`` has the text; ``markdown.jinja`` and ``html.jinja`` define how its headings, paragraphs, tables and
figures are written.
"""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.trainers.plans import RANDOM
from pretraining.comparison.figures import draw_classes, draw_label_curve, draw_runs, percent, scans
from pretraining.comparison.files import write_file
from pretraining.comparison.qualitative import draw_cases
from pretraining.comparison.results import ROW, RUN, fractions_of
from pretraining.comparison.statistics import LEVEL, MIN_RUNS, run_tests
from pretraining.comparison.study import Study
from pretraining.comparison.tables import (
    Best,
    Column,
    averages_table,
    class_tables,
    counts_table,
    points_of,
    runs_table,
    tests_over_cases_table,
    tests_table,
    times_table,
    verdict,
)
from pretraining.comparison.training_curves import draw_training


def write_report(results: pd.DataFrame, study: Study, folder: Path) -> list[Path]:
    """Writes ``report.md``, ``report.html`` and ``figures/*.png``.

    Works with whatever is there: one fraction, seed, initialisation or class, runs or cases missing, no logs. What is
    missing is named in the report.

    Args:
        results: See `results`.
        study: What was compared.
        folder: Where the files go.

    Returns:
        The files written.

    Raises:
        PGLError: The results hold an initialisation or class that the study does not name, or a row twice.
    """
    for column, known in (("init", study.inits), ("class_name", study.classes)):
        if unknown := [name for name in results[column].unique() if name not in known]:
            raise PGLError(f"{unknown[0]} is in the results but not in the comparison; remove its rows, or add it")
    repeated = results[results.duplicated(ROW)]
    if not repeated.empty:
        row = ", ".join(map(str, repeated.iloc[0][ROW]))
        raise PGLError(f"the results have two rows of {row}; remove one of them")
    figures: dict[str, Path] = {}
    cases_caption = ""
    if not results.empty:
        place = folder / "figures"
        cases, cases_caption = draw_cases(results, study, place / "cases.png")
        drawn = [
            draw_label_curve(results, study, place / "label_fractions.png"),
            draw_runs(results, study, place / "runs.png"),
            draw_classes(results, study, place / "classes.png"),
            draw_training(study, place / "training.png"),
            cases,
        ]
        figures = {path.stem: path for path in drawn if path is not None}
    content = {**_content(results, study), "figures": figures, "cases_caption": cases_caption}
    markdown, html = folder / "report.md", folder / "report.html"
    text = _environment(folder, "markdown.jinja").get_template("report.jinja").render(content)
    write_file(markdown, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    write_file(html, _environment(folder, "html.jinja").get_template("report.jinja").render(content))
    return [markdown, html, *figures.values()]


def _environment(folder: Path, layout: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("pretraining.comparison"),
        autoescape=layout == "html.jinja",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    tables = (averages_table, class_tables, runs_table, tests_table, tests_over_cases_table)
    environment.globals |= {f.__name__: f for f in (Column, percent, scans, points_of, verdict, *tables)}
    environment.globals["layout"] = layout
    environment.filters["md"] = _markdown
    environment.filters["rows"] = lambda columns: zip(*columns, strict=True)
    environment.filters["relative"] = lambda path: path.relative_to(folder).as_posix()
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode("ascii")
    environment.tests["best"] = lambda cell: isinstance(cell, Best)
    return environment


def _markdown(text: str) -> str:
    """Text in one line, without what Markdown would take for markup; the best value of a column in bold."""
    escaped = re.sub(r"[\\`*|]|<(?=[A-Za-z/!])|\[(?=[^]]*\][(:\[])", r"\\\g<0>", " ".join(text.split()))
    return f"**{escaped}**" if isinstance(text, Best) else escaped


def _content(results: pd.DataFrame, study: Study) -> dict[str, Any]:
    """All values of the template but for the figures."""
    tests = run_tests(results, study.inits, study.reference)
    fractions = fractions_of(results)
    starts = results[RUN].drop_duplicates().groupby(["init", "fraction"])
    runs, folds = starts.size(), starts["fold"].nunique()
    cases = {key: set(rows["case"]) for key, rows in results.groupby(RUN)}
    lacking = {
        run: set(study.truths) - cases.get((run.init, run.fraction, run.fold, run.seed), set()) for run in study.runs
    }
    return {
        "results": results,
        "study": study,
        "baseline": RANDOM if RANDOM in study.inits else None,
        "without_results": [init for init in study.inits if init not in set(results["init"])],
        "lacking_cases": [(run, sorted(of_run)) for run, of_run in lacking.items() if of_run],
        "fractions": fractions,
        "tests": tests,
        "corrected": sum(not math.isnan(test.p) for test in tests),
        "min_runs": MIN_RUNS,
        "level": f"{LEVEL:g}",
        "counts": counts_table(results, study),
        "times": times_table(study),
        "one_run": (runs == 1).any(),
        "same_cases": (runs > folds).any() and 1.0 in fractions,  # several seeds of a fold
        "folds_and_seeds": ((runs > folds) & (folds > 1)).any(),
        "kinds": {init.partition(":")[0] for init in study.inits if ":" in init},
    }
