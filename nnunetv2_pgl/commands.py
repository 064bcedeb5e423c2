"""The commands ``pgl_extension`` and ``pgl_info``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.checkpoint import CheckpointError, EncoderCheckpoint, load_checkpoint, sha256_of
from nnunetv2_pgl.errors import one_line
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
        sys.exit(one_line(f"pgl_extension: {error}"))


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
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run or of nnssl"
    )
    arguments = parser.parse_args()
    try:
        checkpoint = load_checkpoint(arguments.checkpoint)
    except CheckpointError as error:
        sys.exit(one_line(f"pgl_info: {error}"))
    print("\n".join(describe(checkpoint)))
    print(f"sha256        {sha256_of(arguments.checkpoint)}")


def describe(checkpoint: EncoderCheckpoint) -> list[str]:
    """A checkpoint in words, one line per fact."""
    pgl, weights = checkpoint.pgl, {canonical(key): value for key, value in checkpoint.encoder_weights.items()}
    decoder = set(map(canonical, checkpoint.decoder_weights))
    parameters = sum(v.numel() for k, v in weights.items() if v.is_floating_point() and "running" not in k)
    architecture = checkpoint.architecture
    network = architecture.pop("network", None)
    facts: dict[str, Any] = {
        "method": pgl.get("method"),
        "encoder": ", ".join(f"{key} {value}" for key, value in architecture.items()),
        "network": _network(network) if network else "the paper's",
        "parameters": f"{parameters:,} in {len(weights)} tensors",
        "decoder": f"{len(decoder)} tensors" if decoder else "none",
        "data": ", ".join(map(str, pgl.get("datasets") or [])) or None,
        "scans": pgl.get("num_scans"),
        "epochs": pgl.get("epochs"),
        "views": f"{pgl['view_size']} voxels (z, y, x)" if pgl.get("view_size") else None,
        "spacing": f"{pgl['spacing']} mm (z, y, x)" if pgl.get("spacing") else None,
        "intensities": pgl.get("intensity"),
        "last epoch": _metrics(pgl.get("metrics")),
        "made": pgl.get("created"),
        "with": ", ".join(f"{name} {version}" for name, version in (pgl.get("versions") or {}).items()) or None,
    }
    lines = [f"{name:<13} {'unknown' if value is None else value}" for name, value in facts.items()]
    for citation in checkpoint.citations:
        lines += [f"{'cite':<13} {' '.join(reference.split())}" for reference in citation["apa_citations"]]
    return lines


def _network(network: dict[str, Any]) -> str:
    """One of nnU-Net's networks: class, and what its stages are."""
    kwargs = network["kwargs"]
    described = [str(network["class_name"]).rsplit(".", 1)[-1], f"{kwargs.get('n_stages')} stages"]
    for key, name in (
        ("features_per_stage", "channels"),
        ("n_blocks_per_stage", "blocks"),
        ("n_conv_per_stage", "convolutions"),
        ("kernel_sizes", "kernels"),
        ("strides", "strides"),
    ):
        if key in kwargs:
            described.append(f"{name} {kwargs[key]}")
    return ", ".join(described)


def _metrics(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return "unknown"
    wanted = (
        *("loss", "feature_std", "flipped_right", "unflipped_right", "decoy", "position_code", "ceiling"),
        *("correspondence", "chance", "miss_distance", "deformed", "restoration"),  # the former two of version 0.1.0
    )
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in wanted if key in metrics)
