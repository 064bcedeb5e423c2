"""Writes the report of a comparison, in Markdown and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pretraining.comparison.appearance import percent, scans
from pretraining.comparison.definitions import definitions
from pretraining.comparison.document import Block, Code, Heading, Items, Paragraph, Picture, table, to_markdown
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.figures import draw_classes, draw_label_curve, draw_runs
from pretraining.comparison.folder import write_atomically
from pretraining.comparison.page import to_html
from pretraining.comparison.qualitative import draw_cases
from pretraining.comparison.results import CaseResult, ResultSet
from pretraining.comparison.statistics import LEAST_RUNS, LEVEL, RunTest, run_tests
from pretraining.comparison.story import BASELINE, Story
from pretraining.comparison.tables import (
    averages_table,
    cases_table,
    class_tables,
    counts_table,
    interval_of,
    runs_table,
    tests_table,
    times_table,
    verdict,
)
from pretraining.comparison.training_figure import draw_training


def write_report(results: Sequence[CaseResult], story: Story, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` and ``figures/*.png``.

    Works with whatever is there: one fraction, seed, initialisation or class, runs or cases missing, no logs. What is
    missing is named in the report.

    Returns:
        The files written.

    Raises:
        ComparisonError: (a ValueError) The results hold an initialisation or class that the story does not name, or a
            row twice.
    """
    _require_known(results, story)
    found = ResultSet.of(results)
    tests = run_tests(found, story.inits, story.reference)
    pictures = _pictures(found, story, folder / "figures") if results else []
    blocks: list[Block] = [
        Heading(story.title, 1),
        *_in_short(tests, found, story),
        *_facts(found, results, story),
        *_fractions(found, story),
        *_tests(tests, found, story),
        *_section("Figures", pictures),
        *_counts(found, results, story),
        *_times(story),
        *_section("Commands", [Code(story.commands)] if story.commands else []),
        *definitions(story, found),
    ]
    files = [folder / "report.md", folder / "report.html"]
    write_atomically(files[0], to_markdown(blocks, folder))
    write_atomically(files[1], to_html(blocks, story.title))
    return [*files, *(block.path for block in pictures if isinstance(block, Picture))]


def _section(title: str, blocks: Sequence[Block]) -> list[Block]:
    """Blocks under a heading; nothing if there are none."""
    return [Heading(title), *blocks] if blocks else []


def _require_known(results: Sequence[CaseResult], story: Story) -> None:
    keys = set()
    for row in results:
        if row.init not in story.inits or row.class_name not in story.classes:
            name = row.init if row.init not in story.inits else row.class_name
            raise ComparisonError(f"{name} is in the results but not in the comparison; remove its rows, or add it")
        if row.key in keys:
            raise ComparisonError(f"the results have two rows of {', '.join(map(str, row.key))}; remove one of them")
        keys.add(row.key)


def _in_short(tests: Sequence[RunTest], results: ResultSet, story: Story) -> list[Block]:
    if not tests:
        return [Paragraph(f"No test of {story.reference} against another initialisation is possible yet.")]
    lines = []
    for fraction in sorted({test.fraction for test in tests}):
        found = "; ".join(_finding(test) for test in tests if test.fraction == fraction)
        lines.append(f"{percent(fraction)} of the labels ({scans(results.training_cases(fraction))}): {found}")
    text = (
        f"Average Dice of {story.reference} in short, differences in Dice points with 95 % confidence intervals over "
        "runs (fold and seed):"
    )
    return [Paragraph(text), Items(tuple(lines))]


def _finding(test: RunTest) -> str:
    if not test.differences:
        return f"against {test.init} {verdict(test)}"
    return f"against {test.init} {interval_of(test)}, {verdict(test)}"


def _facts(found: ResultSet, results: Sequence[CaseResult], story: Story) -> list[Block]:
    blocks: list[Block] = []
    if story.facts:
        blocks += [Heading("What is compared"), table(("what", "value"), story.facts)]
    lacks = _missing(found, results, story)
    return [*blocks, Heading("What is missing"), Items(lacks) if lacks else Paragraph("Nothing: all runs are done.")]


def _missing(found: ResultSet, results: Sequence[CaseResult], story: Story) -> tuple[str, ...]:
    """All that a reader may expect and will not find."""
    lines = []
    if story.missing:
        lines.append(f"Runs that are not done yet ({len(story.missing)}): {', '.join(story.missing)}")
    lines += [f"{init}: no results" for init in story.inits if init not in found.inits]
    cases: dict[tuple[str, float, int, int], set[str]] = {}
    for row in results:
        cases.setdefault((row.init, row.fraction, *row.run), set()).add(row.case)
    for run in story.runs:
        lacking = set(story.truths) - cases.get((run.init, run.fraction, run.fold, run.seed), set())
        if lacking:
            name = f"{run.init}, {percent(run.fraction)}, fold {run.fold}, seed {run.seed}"
            named = "all test cases" if len(lacking) == len(story.truths) else ", ".join(sorted(lacking))
            lines.append(f"{name}: no results of {named}")
    return tuple(lines)


def _fractions(results: ResultSet, story: Story) -> list[Block]:
    blocks: list[Block] = []
    for fraction in results.fractions:
        number = scans(results.training_cases(fraction))
        blocks += [
            Heading(f"{percent(fraction)} of the labels: {number}"),
            Paragraph("Averages over classes, cases and runs, with 95 % confidence intervals over runs:"),
            averages_table(results, story, fraction),
            Paragraph(f"Average Dice of each run in %{_gains(story)}:"),
            runs_table(results, story, fraction),
            Paragraph("Means of each class:" if len(story.classes) > 1 else "Means:"),
            *class_tables(results, story, fraction),
        ]
    if blocks:
        blocks.append(Paragraph("Bold: the best mean of a column. It says nothing about significance."))
    return blocks


def _gains(story: Story) -> str:
    return f", and its difference to {BASELINE} of the same run" if BASELINE in story.inits else ""


def _tests(tests: Sequence[RunTest], results: ResultSet, story: Story) -> list[Block]:
    if not tests:
        return []
    corrected = sum(not math.isnan(test.p) for test in tests)
    over_runs = (
        f"{story.reference} against each other initialisation, by average Dice. The units are the runs: of each fold "
        "and seed that both have, the difference of the means over the test cases that both have. Interval and p are "
        f"of Student's paired t test, two-sided; Holm's correction is for all p values ({corrected}). Better or worse: "
        f"at least {LEAST_RUNS} runs that agree in sign (all up to five; of more, three in four), an interval that "
        f"excludes 0, and p below {LEVEL:g} after Holm. Runs it takes: with so many of this mean, spread and share of "
        "signs there would be a verdict."
    )
    over_cases = (
        "Wilcoxon's signed-rank test over cases, two-sided, not corrected; each case's difference is averaged over the "
        "runs. It asks whether these very networks would differ on further cases. It does not tell how another seed "
        "would have come out: between two trainings from the same start it finds a difference nearly always."
    )
    return [
        Heading("Tests"),
        Paragraph(over_runs),
        tests_table(tests, results, story.reference),
        Heading("These runs on further cases", 3),
        Paragraph(over_cases),
        cases_table(tests, results),
    ]


def _pictures(results: ResultSet, story: Story, folder: Path) -> list[Block]:
    curve, classes = folder / "label_fractions.png", folder / "classes.png"
    blocks: list[Block] = [
        Picture(
            draw_label_curve(results, story, curve),
            "Average Dice by number of labelled scans",
            "Average Dice by number of labelled scans (logarithmic): means over runs, and 95 % confidence intervals "
            "over runs.",
        ),
        Picture(
            draw_runs(results, story, folder / "runs.png"),
            "Average Dice of each run",
            f"Average Dice of each run, {_compared_with(story)}: a line joins the runs of one fold and seed, which "
            "share the labelled cases. Black: means and 95 % confidence intervals over runs.",
        ),
        Picture(
            draw_classes(results, story, classes),
            "Dice of each class",
            "Dice of each class: means over runs, and 95 % confidence intervals over runs. Scales differ.",
        ),
    ]
    training = draw_training(story, folder / "training.png")
    if training is None:
        blocks.append(Paragraph("There are no training curves: no run has a log."))
    else:
        blocks.append(Picture(training, "Loss and pseudo Dice by epoch", _training_caption(story)))
    drawing = draw_cases(results, story, folder / "cases.png")
    if drawing.path is None:
        return [*blocks, Paragraph(drawing.caption)]
    return [*blocks, Picture(drawing.path, "Test cases with truth and predictions", drawing.caption)]


def _compared_with(story: Story) -> str:
    return f"less that of {BASELINE} with the same fold and seed" if BASELINE in story.inits else "in %"


def _training_caption(story: Story) -> str:
    with_log = sum(run.training_log is not None for run in story.runs)
    return (
        f"Loss and pseudo Dice as nnU-Net logs them, on patches; means over folds and seeds. {with_log} of "
        f"{len(story.runs)} runs have a log. Validation losses far above the others may lie outside the figure."
    )


def _counts(found: ResultSet, results: Sequence[CaseResult], story: Story) -> list[Block]:
    if not results:
        return []
    heading = Heading("Missed, empty and spurious structures")
    if not any(row.missed or row.empty for row in results):
        return [heading, Paragraph("Every test case has every class, and every prediction found something of each.")]
    text = (
        "Counted over runs, cases and classes. Missed: the truth has the class, the prediction does not; it counts "
        "with Dice 0 and the diagonal of the image as distance. Empty truth: the test case does not have the class; "
        "nothing is averaged there. Spurious: of these, the prediction has it nevertheless."
    )
    return [heading, Paragraph(text), counts_table(found, story)]


def _times(story: Story) -> list[Block]:
    times = times_table(story)
    return [] if times is None else [Heading("Times"), Paragraph("Hours, minutes, seconds of a run."), times]
