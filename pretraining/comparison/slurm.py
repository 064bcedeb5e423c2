"""``--slurm``: a script that submits the steps of a comparison as jobs that wait for each other."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from pretraining.comparison.comparison import Comparison, extension_path
from pretraining.comparison.files import write_file
from pretraining.comparison.runs import training_runs
from pretraining.console_commands import find_command


def write_submit_script(comparison: Comparison) -> Path:
    """Writes ``submit.sh`` into the comparison's folder; preparing, if that is not done, is its first job."""
    folder = comparison.folder
    comparison.settings.save(folder.settings)
    # The steps in their order with the size of their arrays; 0: one job.
    pretrainings, trainings = sum(bool(init.options) for init in comparison.inits), training_runs(comparison.settings)
    jobs = {"prepare": 0, "pretrain": pretrainings, "train": len(trainings), "report": 0}
    if not pretrainings:
        del jobs["pretrain"]
    variables = {path.env_var_name: os.fspath(path) for path in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)}
    loader = PackageLoader("pretraining.comparison")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    script = folder.path / "submit.sh"
    text = environment.get_template("submit.jinja").render(
        name=folder.name,
        script=script,
        log=folder.logs("slurm"),
        exports={**variables, EXTENSION: extension_path()},
        command=find_command("pgl_compare"),
        device=comparison.device,
        processes=comparison.processes,
        jobs=jobs,
    )
    write_file(script, f"{text}\n")
    return script
