"""The command ``pgl_info``: an encoder checkpoint in words."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.addresses import locate, shown
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.errors import PGLError, one_line, size_text
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.methods import MEASURES

_METRICS = (
    *("loss", *MEASURES, "flipped_right", "unflipped_right", "decoy", "position_code", "ceiling"),
    *("correspondence", "chance", "miss_distance"),  # the first two: of version 0.1.0
)


def info_entry() -> None:
    """Entry point of ``pgl_info``."""
    parser = argparse.ArgumentParser(prog="pgl_info", description="Says what an encoder checkpoint is.")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="checkpoint_final.pth of pgl_pretrain, nnssl or nnU-Net; a path or an address, which is downloaded",
    )
    arguments = parser.parse_args()
    try:
        located = locate(arguments.checkpoint)
        checkpoint = load_checkpoint(located.path)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_info: {error}"))
    print("\n".join(describe(checkpoint)))
    if located.pinned is not None:
        print(f"file          {located.path}\naddress       {shown(located.pinned)}")
    print(f"sha256        {sha256_of(located.path)}")


def describe(checkpoint: EncoderCheckpoint) -> list[str]:
    """A checkpoint in words, one line per fact."""
    pgl, weights = checkpoint.pgl, {canonical(key): value for key, value in checkpoint.encoder_weights.items()}
    decoder = set(map(canonical, checkpoint.decoder_weights))
    parameters = sum(v.numel() for k, v in weights.items() if v.is_floating_point() and "running" not in k)
    architecture = checkpoint.architecture
    network = architecture.pop("network", None)
    metrics = pgl.get("metrics")
    facts: dict[str, Any] = {
        "method": pgl.get("method"),
        "encoder": _listed(architecture),
        "network": _network(network) if network else "3D ResNet-50 (the paper's)",
        "parameters": f"{parameters:,} in {len(weights)} tensors",
        "decoder": f"{len(decoder)} tensors" if decoder else "none",
        "data": _listed(pgl.get("datasets")),
        "scans": pgl.get("num_scans"),
        "epochs": pgl.get("epochs"),
        "views": _size(pgl.get("view_size"), "voxels"),
        "spacing": _size(pgl.get("spacing"), "mm"),
        "intensities": _listed(pgl.get("intensity")),
        "last epoch": _listed({k: metrics[k] for k in _METRICS if k in metrics}) if isinstance(metrics, dict) else None,
        "created": pgl.get("created"),
        "versions": _listed(pgl.get("versions")),
    }
    lines = [f"{name:<13} {'unknown' if value is None else one_line(value)}" for name, value in facts.items()]
    lines += [f"{'note':<13} {one_line(note)}" for note in pgl.get("notes") or ()]
    for citation in checkpoint.citations:
        lines += [f"{'cite':<13} {' '.join(reference.split())}" for reference in citation["apa_citations"]]
    return lines


def _network(network: dict[str, Any]) -> str:
    """One of nnU-Net's networks: class, and what its stages are."""
    kwargs = network["kwargs"]
    described = [str(network.get("class_name")).rsplit(".", 1)[-1], f"{kwargs.get('n_stages')} stages"]
    names = {"features_per_stage": "channels", "n_blocks_per_stage": "blocks", "n_conv_per_stage": "convolutions"}
    names |= {"kernel_sizes": "kernels", "strides": "strides"}
    return ", ".join([*described, *(f"{name} {kwargs[key]}" for key, name in names.items() if key in kwargs)])


def _size(values: Any, unit: str) -> str | None:
    if not values:
        return None
    return f"{size_text(values) if isinstance(values, list | tuple) else values} {unit} (z, y, x)"


def _listed(values: Any) -> Any:
    """The entries of a table or a list in a line, None if there are none; other values as they are."""
    if isinstance(values, dict):
        return ", ".join(f"{key} {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in values.items()) or None
    if isinstance(values, list | tuple):
        return ", ".join(map(str, values)) or None
    return values
