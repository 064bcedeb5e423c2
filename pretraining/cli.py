"""The commands ``pgl_pretrain`` and ``pgl_preview``."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from nnunetv2_pgl.errors import PGLError, one_line
from pretraining.data import resolve_source
from pretraining.data.scan import summarise_skipped
from pretraining.launching.errors import STOPPED_EXIT_CODE, ProcessLost, Stopped, end, end_after_another
from pretraining.launching.launcher import launch
from pretraining.option_fields import given_values, require_ranges
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import (
    OptionParser,
    add_pretraining_options,
    adder,
    positive,
    settings_of,
    with_options,
)
from pretraining.settings.table import SCANS, VIEWS, RunOptions
from pretraining.training.experiment_loggers import require_loggers
from pretraining.training.pool import prepare_volumes
from pretraining.training.pretrain import pretrain
from pretraining.training.preview import draw_pairs, geometry_lines
from pretraining.training.run_folder import RunFolder
from pretraining.views.body_axes import axis_warnings

_EPILOG = """examples:
  pgl_pretrain -d 501                                  one GPU, the recommended settings
  pgl_pretrain -d 501 --paper                          the paper's settings
  pgl_pretrain -d 501 502 /data/scans -o pool          two nnU-Net datasets and a folder, pooled
  pgl_pretrain -d 501 -b 32 -num_gpus 4                four GPUs, 8 pairs each
  pgl_pretrain -d 501 -plans_from 17 -p nnUNetResEncUNetLPlans    the encoder, patches and voxels of an nnU-Net plan
  pgl_pretrain -d 501 --c                              continue where it stopped
  torchrun --nproc_per_node=4 -m pretraining -d 501 -b 32    the same by torchrun, which also runs on several nodes

Scans come from $nnUNet_raw, volumes go to $nnUNet_preprocessed, the run to $nnUNet_results/PGL/NAME. Data loading uses
nnUNet_n_proc_DA workers. Options may be written with one dash or two.
"""


def _default_name(config: PretrainConfig) -> str:
    names = "_".join(resolve_source(source).name for source in config.datasets)
    return f"{config.method}_{config.architecture}_{names}".replace(" ", "_")


def _run(arguments: argparse.Namespace) -> None:
    options = RunOptions(**given_values(arguments, RunOptions))
    require_ranges(options)
    if arguments.datasets is None and not (options.resume and options.name):
        raise PGLError("-d is missing: give dataset ids, names or folders of scans")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise PGLError("no CUDA device was found: add -device cpu (or mps)")
    if os.environ.get("RANK", "0") == "0":
        require_loggers(options)
    folder = RunFolder.from_name(options.name or _default_name(settings_of(arguments)))
    if options.resume and folder.config_file.exists():
        config = PretrainConfig.load(folder.config_file)
        folder.require_same(with_options(arguments, config), config)
    elif arguments.datasets is None:
        raise PGLError(f"--c: {folder.path} holds no run to continue; give -d to start one{folder.neighbours()}")
    else:
        config = settings_of(arguments)
    check_config(config)
    if options.num_gpus > 1:
        if options.device == "cuda" and options.num_gpus > torch.cuda.device_count():
            raise PGLError(f"-num_gpus {options.num_gpus}, but this machine has {torch.cuda.device_count()}")
        launch(["-m", "pretraining", *sys.argv[1:], "-num_gpus", "1"], options.num_gpus)
    else:
        pretrain(config, replace(options, name=folder.path.name))


def pretrain_entry() -> None:
    """Entry point of ``pgl_pretrain`` and of ``torchrun -m pretraining``."""
    parser = OptionParser(
        prog="pgl_pretrain",
        description="Pre-trains an encoder with PGL on images alone and writes a checkpoint for nnUNetTrainerPGL.",
        epilog=_EPILOG,
    )
    add_pretraining_options(parser)
    try:
        _run(parser.parse_args())
    except Stopped as stopped:
        end(f"pgl_pretrain: {stopped}", STOPPED_EXIT_CODE)
    except KeyboardInterrupt:
        end("pgl_pretrain: interrupted; add --c to continue from the last saved state")
    except ProcessLost as lost:
        end_after_another(f"pgl_pretrain: {lost}" if str(lost) else "")
    except (PGLError, OSError) as error:
        end(one_line(f"pgl_pretrain: {error}"))


def preview_entry() -> None:
    """Entry point of ``pgl_preview``."""
    parser = OptionParser(
        prog="pgl_preview",
        description="Draws pairs of views of your scans: their boxes on the scan, the views, and the aligned overlap.",
    )
    add_pretraining_options(parser, (SCANS, VIEWS))
    add = adder(parser.add_argument_group("picture"))
    add("o", type=Path, default=Path("pgl_preview.png"), metavar="FILE", help="default: pgl_preview.png")
    add("n", type=positive, default=4, metavar="N", help="number of pairs (default: 4)")
    arguments = parser.parse_args()
    try:
        if arguments.datasets is None:
            raise PGLError("-d is missing: give dataset ids, names or folders of scans")
        config = settings_of(arguments)
        options = RunOptions(**given_values(arguments, RunOptions))
        require_ranges(options)
        check_config(config)
        volumes, skipped = prepare_volumes(config, options.preprocessing_processes, options.verify)
        draw_pairs(volumes, config.views, config.seed, arguments.o, arguments.n)
        for line in [*summarise_skipped(skipped), *axis_warnings(volumes, config.views)]:
            print(f"WARNING: {line}")
        print(*geometry_lines(volumes, config), arguments.o, sep="\n")
    except MemoryError:
        sys.exit("pgl_preview: not enough memory for views of this size: use a smaller -patch")
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_preview: {error}"))
