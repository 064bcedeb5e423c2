"""The commands ``pgl_extension`` and ``pgl_info``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunetv2_pgl.checkpoint import CheckpointError, EncoderCheckpoint, load_checkpoint, sha256_of
from nnunetv2_pgl.extension_folder import check, export_line, extension_folder, link, unlink


def extension_entry() -> None:
    """Entry point of ``pgl_extension``."""
    parser = argparse.ArgumentParser(
        prog="pgl_extension",
        description="Prints the folder that tells nnU-Net where nnUNetTrainerPGL is. nnUNetv2_train and "
        f"nnUNetv2_predict both need it, in every shell and job: {export_line()}",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="say what nnU-Net finds in this shell and what is missing")
    choice.add_argument(
        "--link",
        action="store_true",
        help="for those who cannot set variables: write a small module into nnU-Net's own trainer folder",
    )
    choice.add_argument("--unlink", action="store_true", help="remove that module")
    arguments = parser.parse_args()
    try:
        _extension(arguments)
    except OSError as error:
        sys.exit(f"pgl_extension: {error}")


def _extension(arguments: argparse.Namespace) -> None:
    if arguments.check:
        lines, found = check()
        print("\n".join(lines))
        sys.exit(0 if found else 1)
    elif arguments.link:
        print(f"Wrote {link()}")
    elif arguments.unlink:
        removed = unlink()
        print(f"Removed {removed}" if removed else "There was no link")
    else:
        print(extension_folder())


def info_entry() -> None:
    """Entry point of ``pgl_info``."""
    parser = argparse.ArgumentParser(prog="pgl_info", description="Says what an encoder checkpoint is.")
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run"
    )
    arguments = parser.parse_args()
    try:
        checkpoint = load_checkpoint(arguments.checkpoint)
    except CheckpointError as error:
        sys.exit(f"pgl_info: {error}")
    print("\n".join(describe(checkpoint)))
    print(f"sha256        {sha256_of(arguments.checkpoint)}")


def describe(checkpoint: EncoderCheckpoint) -> list[str]:
    """A checkpoint in words, one line per fact."""
    pgl = checkpoint.pgl
    parameters = sum(
        v.numel() for k, v in checkpoint.encoder_weights.items() if v.is_floating_point() and "running" not in k
    )
    facts: dict[str, Any] = {
        "method": pgl.get("method"),
        "encoder": ", ".join(f"{key} {value}" for key, value in checkpoint.architecture.items()),
        "parameters": f"{parameters:,} in {len(checkpoint.encoder_weights)} tensors",
        "decoder": f"{len(checkpoint.decoder_weights)} tensors" if checkpoint.decoder_weights else "none",
        "data": ", ".join(map(str, pgl.get("datasets", []))),
        "scans": pgl.get("num_scans"),
        "epochs": pgl.get("epochs"),
        "views": f"{pgl.get('view_size')} voxels (z, y, x)",
        "spacing": f"{pgl.get('spacing')} mm (z, y, x)",
        "intensities": pgl.get("intensity"),
        "last epoch": _metrics(pgl.get("metrics")),
        "made": pgl.get("created"),
        "with": ", ".join(f"{name} {version}" for name, version in (pgl.get("versions") or {}).items()),
    }
    lines = [f"{name:<13} {value}" for name, value in facts.items()]
    for citation in checkpoint.citations:
        lines += [f"{'cite':<13} {reference}" for reference in citation.get("apa_citations", [])]
    return lines


def _metrics(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return "unknown"
    wanted = ("loss", "feature_std", "correspondence", "chance", "miss_distance", "deformed", "restoration")
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in wanted if key in metrics)
