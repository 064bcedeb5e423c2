"""``--slurm``: a script that submits the steps of a comparison as jobs that wait for each other."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from pretraining.comparison.comparison import Comparison, extension_path
from pretraining.comparison.files import write_file
from pretraining.comparison.runs import training_runs
from pretraining.launching.commands import find_command

_HEAD = """#!/bin/bash
# Written by pgl_compare --slurm. Edit the #SBATCH lines for your cluster, then: bash {script}
# The jobs go on where they stopped: submit again what was killed, with the same script.
set -euo pipefail

{exports}
log={log}
mkdir -p "$log"
"""
# A job runs also when some runs of the step before have failed (afterany): the others are to be compared all the same.
_JOB = """
{name}=$(sbatch --parsable{dependency} <<'JOB'
#!/bin/bash
#SBATCH --job-name=pgl_{name}
{lines}
set -euo pipefail
{command}
JOB
)
"""
_TAIL = 'echo "Submitted{jobs}; logs go to $log"\n'


def write_submit_script(comparison: Comparison) -> Path:
    """Writes ``submit.sh`` into the comparison's folder; preparing, if that is not done, is its first job."""
    comparison.settings.save(comparison.folder.settings)
    script = comparison.folder.path / "submit.sh"
    exports = {
        variable.env_var_name: os.fspath(variable) for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
    }
    exports[EXTENSION] = extension_path()
    text = _HEAD.format(
        script=shlex.quote(str(script)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        log=shlex.quote(str(comparison.folder.logs("slurm"))),
    )
    pretrainings = sum(bool(init.options) for init in comparison.inits)
    # The steps in their order with the size of their arrays; 0: one job.
    jobs = {"prepare": 0, "pretrain": pretrainings, "train": len(training_runs(comparison.settings)), "report": 0}
    if not pretrainings:
        del jobs["pretrain"]
    for (name, size), before in zip(jobs.items(), (None, *jobs), strict=False):
        text += _job(comparison, name, size, before)
    write_file(script, text + _TAIL.format(jobs="".join(f" {name} ${name}" for name in jobs)))
    return script


def _job(comparison: Comparison, name: str, size: int, before: str | None) -> str:
    on_gpu = name in ("pretrain", "train") and comparison.device == "cuda"
    log = comparison.folder.logs("slurm") / f"{name}_%{'A_%a' if size else 'j'}.txt"
    lines = [f'#SBATCH --output="{log}"', f"#SBATCH --cpus-per-task={comparison.processes}    # edit"]
    lines += ["#SBATCH --time=24:00:00    # edit", "#SBATCH --mem=32G    # edit"]
    lines += ["#SBATCH --gres=gpu:1    # edit"] if on_gpu else []
    lines += ["##SBATCH --partition=NAME    # edit, and remove one #"]
    lines += [f"#SBATCH --array=0-{size - 1}"] if size else []
    command = [find_command("pgl_compare"), "-o", comparison.folder.name, "--only", name]
    command += ["-device", comparison.device if size else "cpu", "-np", str(comparison.processes)]
    share = f' --part "$SLURM_ARRAY_TASK_ID" {size}' if size else ""
    wait = "" if before is None else f' --dependency="{"afterok" if before == "prepare" else "afterany"}:${before}"'
    return _JOB.format(name=name, dependency=wait, lines="\n".join(lines), command=shlex.join(command) + share)
