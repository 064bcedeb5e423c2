"""What an encoder has learned: anatomy, or where a cell lies in the view?

python -m benchmarks.anatomy CHECKPOINT -d 4 --only held_out.txt --labels --json anatomy.json

Reads scans that the encoder has not seen, draws 64 pairs of views as in its pre-training (half of them with a relative
flip), and writes, beside the same for random weights, the voxels themselves and a code of the place in the view:

flipped_right, unflipped_right  cells that find their place in the other view, in pairs with and without relative flip
decoy           flipped pairs: cells that find the same place of the view instead
position_code   flipped_right of a code of the place in the view, by geometry alone (unflipped_position_code likewise)
ceiling         that of a perfect code of the place in the scan, by geometry alone (unflipped_ceiling likewise)
axes            along each axis, in pairs flipped along it: cells found at the right place, and at the mirrored one
noise_match     pairs of views of unrelated smoothed noise: cells whose nearest is the one at the same place of the view
chance          what guessing gives in noise_match

and with --labels, from cells of other scans, the R2 of the share of each label per cell: knn5, knn20 (cosine), probe
(ridge regression); on views with the flips of the pre-training and on the same without flips.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.anatomy_figures import measure
from benchmarks.frozen_features import MIN_SCANS
from benchmarks.held_out_labels import labels_of
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_encoder_network, untrained_encoder
from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.files import write_text
from nnunetv2_pgl.formats.weights_only import CheckpointError
from pretraining.data import DataError, find_scans
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import OptionParser, adder, positive
from pretraining.settings.table import SpacingSetting
from pretraining.settings.values import names_in
from pretraining.training.pool import prepare_volumes


def main() -> None:
    """Entry point."""
    parser = OptionParser(prog="benchmarks.anatomy", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint_final.pth of pgl_pretrain")
    add = adder(parser)
    add("d", nargs="+", required=True, metavar="ID", help="as in pgl_pretrain: datasets or folders of scans")
    add("only", type=Path, metavar="FILE", help="names of the held-out scans, one a line (default: all)")
    add("labels", action="store_true", help="measure the transfer of labels, too (labelsTr of nnU-Net datasets)")
    add("flip_probability", nargs="+", type=float, metavar="P", help="of the views (default: as in the pre-training)")
    add("all_flips", action="store_true", help="flip along the lateral axis, even if the pre-training did not")
    add("padding", choices=("zeros", "replicate"), help="of the convolutions (default: as in the pre-training)")
    add("pairs", type=positive, default=64, metavar="N", help="pairs of views (default: 64)")
    add("modality", choices=("ct", "mr"), help="as in pgl_pretrain")
    add("np", type=positive, default=2, metavar="N", help="preprocessing processes (default: 2)")
    add("json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    try:
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise PGLError(f"--json {arguments.json}: there is no such folder")
        figures = measure_checkpoint(arguments)
        print(table(figures))
        if arguments.json is not None:
            write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(one_line(f"benchmarks.anatomy: {error}"))


def measure_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of the command."""
    encoder, checkpoint = load_encoder_network(arguments.checkpoint)
    if arguments.padding is not None:
        architecture = {**checkpoint.architecture, "padding": arguments.padding}
        checkpoint = replace(checkpoint, pgl={**checkpoint.pgl, "architecture": architecture})
        weights, encoder = encoder.state_dict(), untrained_encoder(checkpoint, str(arguments.checkpoint))
        encoder.load_state_dict(weights)
    config = _settings(checkpoint, arguments)
    views = config.views
    if arguments.flip_probability is not None:
        given = tuple(arguments.flip_probability)
        if len(given) not in (1, 3) or not all(0 <= p <= 1 for p in given):
            raise PGLError("-flip_probability: give one or three (z, y, x) numbers from 0 to 1")
        views = replace(views, flip_probability=given[0] if len(given) == 1 else given)
    if arguments.all_flips:
        views = replace(views, no_flip=None)
    config = replace(config, views=views, modality=arguments.modality or config.modality)
    if arguments.only is not None:
        config = replace(config, exclude=all_but(config, names_in(arguments.only, "-only")))
    volumes, skipped = prepare_volumes(replace(config, spacing=_spacing(checkpoint, config)), arguments.np)
    for item in skipped:
        print(f"WARNING: {item}")
    if config.channels == "joint" and volumes[0].shape[0] != config.encoder_channels:
        raise DataError(f"the encoder takes {config.encoder_channels} channels, the scans have {volumes[0].shape[0]}")
    if arguments.labels and min(len(volumes), (arguments.pairs + 1) // 2) < MIN_SCANS:
        raise DataError(f"--labels: needs at least {MIN_SCANS} scans and two pairs of views of each")
    torch.manual_seed(2)  # of the random weights
    untrained = untrained_encoder(checkpoint, str(arguments.checkpoint))
    labelled = labels_of(volumes, config) if arguments.labels else None
    print(f"{len(volumes)} scans, {arguments.pairs} pairs of views", flush=True)
    return measure(encoder, untrained, volumes, config, arguments.pairs, labelled)


def _settings(checkpoint: EncoderCheckpoint, arguments: argparse.Namespace) -> PretrainConfig:
    """Those of the pre-training, on other scans."""
    stored = checkpoint.pgl.get("config")
    if stored is None:
        raise CheckpointError(f"{arguments.checkpoint}: not of pgl_pretrain, it does not say how views were drawn")
    others = {"datasets": list(arguments.d), "exclude": [], "weights": None}
    try:
        return PretrainConfig.from_dict({**stored, **others})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{arguments.checkpoint}: not the settings of a pre-training ({error})") from error


def _spacing(checkpoint: EncoderCheckpoint, config: PretrainConfig) -> SpacingSetting:
    """The voxels that the encoder knows: the median was that of the scans of the pre-training."""
    known = checkpoint.pgl.get("spacing")
    if config.spacing != "median" or known is None:
        return config.spacing
    z, y, x = (float(f"{value:.3g}") for value in known)  # resampled to whole voxels, scans are off in further digits
    return (z, y, x)


def all_but(config: PretrainConfig, names: Sequence[str]) -> tuple[str, ...]:
    """All scans of the settings' sources but those named.

    Raises:
        PGLError: A name is that of no scan.
    """
    scans, _ = find_scans(config.datasets, config.modality, config.use_masks)
    wanted = set(names)
    unknown = sorted(wanted - {name for scan in scans for name in (scan.name, scan.identifier)})
    if unknown:
        raise PGLError(f"-only names {unknown[0]}, which is not a scan of -d ({len(unknown)} are not)")
    return tuple(scan.name for scan in scans if scan.name not in wanted and scan.identifier not in wanted)


def table(figures: dict[str, Any]) -> str:
    """The figures as a table, one row for each that is measured."""
    columns: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("flipped_right", "unflipped_right", "decoy", "noise_match")
    }
    if "flips" in figures:
        keys = [(flips, kind) for flips in ("flips", "no_flips") for kind in ("knn5", "knn20", "probe")]
        columns |= {f"{kind} {flips}": (flips, kind, "mean") for flips, kind in keys}
    rows = {"checkpoint": figures, **figures["beside"]}
    lines = ["", " " * 30 + "".join(f"{name:>17}" for name in columns)]
    for name, row in rows.items():
        cells = [_at(row, path) for path in columns.values()]
        lines.append(f"{name:<30}" + "".join(f"{'-' if c is None else f'{c:.3f}':>17}" for c in cells))
    for kind in ("", "unflipped_"):
        if figures[f"{kind}ceiling"] is not None:
            right = f"{kind or 'flipped_'}right"
            lines.append(
                f"{right} by geometry: code of the place in the view {figures[f'{kind}position_code']:.3f}, "
                f"perfect code of the place in the scan {figures[f'{kind}ceiling']:.3f}"
            )
    lines.append(f"noise_match by chance: {figures['chance']:.3f}")
    for axis, shares in figures["axes"].items():
        if shares is not None:
            lines.append(f"flipped along {axis}: {shares['right']:.1%} right, {shares['mirrored']:.1%} mirrored")
    return "\n".join(lines)


def _at(figures: dict[str, Any], path: Sequence[str]) -> float | None:
    value: Any = figures
    for key in path:
        value = value[key]
    return value


if __name__ == "__main__":
    main()
