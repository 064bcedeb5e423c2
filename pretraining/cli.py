"""The commands ``pgl_pretrain`` and ``pgl_preview``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from nnunetv2_pgl.checkpoint import CheckpointError
from nnunetv2_pgl.errors import one_line
from pretraining.data import DataError, resolve_source
from pretraining.data.scan import in_few_lines
from pretraining.launching.errors import STOPPED_EXIT_CODE, ProcessLost, Stopped, TrainingError, end, end_after_another
from pretraining.launching.launcher import launch
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import (
    OptionParser,
    add_data_options,
    add_plan_options,
    add_run_options,
    add_training_options,
    add_view_options,
    adder,
    positive,
    settings_of,
    with_options,
)
from pretraining.training.pool import prepare_volumes
from pretraining.training.pretrain import RunOptions, pretrain
from pretraining.training.preview import draw_pairs, geometry_lines
from pretraining.training.run_folder import RunError, RunFolder, require_same
from pretraining.views.body_axes import axis_warnings

_EPILOG = """examples:
  pgl_pretrain -d 501                                  one GPU, the recommended settings
  pgl_pretrain -d 501 --paper                          the paper to the letter
  pgl_pretrain -d 501 502 /data/scans -o pool          two nnU-Net data sets and a folder, pooled
  pgl_pretrain -d 501 -b 32 -num_gpus 4                four GPUs, 8 pairs each
  pgl_pretrain -d 501 -plans_from 17 -p nnUNetResEncUNetLPlans    the encoder, patches and voxels of an nnU-Net plan
  pgl_pretrain -d 501 --c                              continue where it stopped
  torchrun --nproc_per_node=4 -m pretraining -d 501    the same four processes by torchrun, also over several nodes

Scans come from $nnUNet_raw, volumes go to $nnUNet_preprocessed, the run to $nnUNet_results/PGL/NAME. Data loading uses
nnUNet_n_proc_DA workers. Options may be written with one dash or two.
"""


def _default_name(config: PretrainConfig) -> str:
    names = "_".join(resolve_source(source)[0] for source in config.datasets)
    return f"{config.method}_{config.architecture}_{names}".replace(" ", "_")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.d is None and not (arguments.c and arguments.o):
        raise RunError("-d is missing: give data set ids, names or folders of scans")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError("no CUDA device was found: add -device cpu (or mps)")
    folder = RunFolder.named(arguments.o or _default_name(settings_of(arguments)))
    if arguments.c and folder.config_file.exists():
        config = PretrainConfig.load(folder.config_file)
        require_same(with_options(arguments, config), config, folder)
    elif arguments.d is None:
        raise RunError(f"--c: {folder.path} holds no run to continue; give -d to start one{folder.neighbours()}")
    else:
        config = settings_of(arguments)
    check_config(config)
    options = RunOptions(
        name=folder.path.name,
        resume=arguments.c,
        device=arguments.device,
        preprocessing_processes=arguments.np,
        save_every=arguments.save_every,
        verify=arguments.verify_dataset_integrity,
    )
    if arguments.num_gpus > 1:
        if arguments.device == "cuda" and arguments.num_gpus > torch.cuda.device_count():
            raise RunError(f"-num_gpus {arguments.num_gpus}, but this machine has {torch.cuda.device_count()}")
        launch(["-m", "pretraining", *sys.argv[1:], "-num_gpus", "1"], arguments.num_gpus)
    else:
        pretrain(config, options)


def pretrain_entry() -> None:
    """Entry point of ``pgl_pretrain`` and of ``torchrun -m pretraining``."""
    parser = OptionParser(
        prog="pgl_pretrain",
        description="Pre-trains an encoder with PGL on images alone and writes a checkpoint for nnUNetTrainerPGL.",
        epilog=_EPILOG,
    )
    for add_options in (add_data_options, add_plan_options, add_view_options, add_training_options, add_run_options):
        add_options(parser)
    try:
        _run(parser.parse_args())
    except Stopped as stopped:
        end(f"pgl_pretrain: {stopped}", STOPPED_EXIT_CODE)
    except KeyboardInterrupt:
        end("pgl_pretrain: interrupted; add --c to go on from what was saved last")
    except ProcessLost as lost:
        end_after_another(f"pgl_pretrain: {lost}" if str(lost) else "")
    except (DataError, RunError, TrainingError, CheckpointError, OSError, ValueError) as error:
        end(one_line(f"pgl_pretrain: {error}"))


def preview_entry() -> None:
    """Entry point of ``pgl_preview``."""
    parser = OptionParser(
        prog="pgl_preview",
        description="Draws pairs of views of your scans: their boxes on the scan, the views, and the aligned overlap.",
    )
    add_data_options(parser)
    add_view_options(parser)
    add = adder(parser.add_argument_group("picture"))
    add("o", type=Path, default=Path("pgl_preview.png"), metavar="FILE", help="default: pgl_preview.png")
    add("n", type=positive, default=4, metavar="N", help="number of pairs (default: 4)")
    arguments = parser.parse_args()
    try:
        if arguments.d is None:
            raise RunError("-d is missing: give data set ids, names or folders of scans")
        output = arguments.o
        del arguments.o
        config = settings_of(arguments)
        check_config(config)
        volumes, skipped = prepare_volumes(config, arguments.np, arguments.verify_dataset_integrity)
        draw_pairs(volumes, config.views, config.seed, output, arguments.n)
        for line in [*in_few_lines(skipped), *axis_warnings(volumes, config.views)]:
            print(f"WARNING: {line}")
        print(*geometry_lines(volumes, config), output, sep="\n")
    except (DataError, RunError, OSError, ValueError) as error:
        sys.exit(one_line(f"pgl_preview: {error}"))
