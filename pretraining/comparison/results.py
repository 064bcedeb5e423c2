"""results.csv: a table with a row for each run, test case and class.

Columns:

- ``init``, ``fraction``, ``fold``, ``seed``: the run: initialisation, share of the training cases, fold, repetition,
- ``training_cases``: number of cases that the run was trained on,
- ``case``, ``class_name``: the test case, and the class or region,
- ``dice``, ``iou``, ``surface_dice``: 0 to 1, the last one at the tolerance of the comparison,
- ``hd``, ``hd95``: Hausdorff distance and its 95th percentile in mm; like the others nan where the truth is empty,
- ``missed``: the truth is not empty but the prediction is: Dice 0, distances the diagonal of the image,
- ``truth_voxels``, ``predicted_voxels``: size of the class.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.files import write_file

COLUMNS: dict[str, type] = {
    "init": str,
    "fraction": float,
    "training_cases": int,
    "fold": int,
    "seed": int,
    "case": str,
    "class_name": str,
    "dice": float,
    "iou": float,
    "hd": float,
    "hd95": float,
    "surface_dice": float,
    "missed": bool,
    "truth_voxels": int,
    "predicted_voxels": int,
}
RUN = ["init", "fraction", "fold", "seed"]
ROW = [*RUN, "case", "class_name"]  # there is one row of each
_PATTERNS = {
    str: r"(?s:.+)",
    int: r"[+-]?\d+",
    float: r"nan|[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?",
    bool: "True|False",
}


def select(results: pd.DataFrame, init: str, fraction: float) -> pd.DataFrame:
    """The rows of an initialisation at a fraction; none if it has no run there."""
    return results[(results["init"] == init) & (results["fraction"] == fraction)]


def fractions_of(results: pd.DataFrame) -> list[float]:
    """All fractions, the smallest first."""
    return sorted(float(fraction) for fraction in results["fraction"].unique())


def write_results(results: pd.DataFrame, path: Path) -> None:
    """Writes rows in one step. Floats keep all their digits."""
    write_file(path, results.to_csv(index=False, columns=list(COLUMNS), na_rep="nan", lineterminator="\n"))


def read_results(path: Path) -> pd.DataFrame:
    """The inverse of `write_results`.

    Raises:
        PGLError: The file cannot be read, or is not such a table; the message names line and column.
    """
    try:
        lines = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, ValueError) as error:
        raise PGLError(f"{path}: cannot be read ({error})") from error
    header = list(lines.iloc[0])
    for name in [*COLUMNS, *header]:
        if header.count(name) != 1 or name not in COLUMNS:
            problem = "is unknown" if name not in COLUMNS else "is missing" if name not in header else "is there twice"
            raise PGLError(f"{path}: column {name} {problem}; the columns are {', '.join(COLUMNS)}")
    table = lines[1:].set_axis(header, axis="columns")[list(COLUMNS)].fillna("")
    for name, kind in COLUMNS.items():
        wrong = ~table[name].str.fullmatch(_PATTERNS[kind])
        if wrong.any():
            line = wrong.idxmax()
            text = table[name][line]
            raise PGLError(f"{path}, line {line + 1}, column {name}: {text!r} is not a value of this column")
        table[name] = table[name] == "True" if kind is bool else table[name].astype(kind)
    repeated = table.duplicated(ROW, keep=False)
    if repeated.any():
        first = table[repeated].iloc[0]
        same = table.index[(table[ROW] == first[ROW]).all(axis="columns")]
        raise PGLError(f"{path}: lines {same[0] + 1} and {same[1] + 1} are of the same run, case and class")
    return table.reset_index(drop=True)
