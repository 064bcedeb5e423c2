"""The command ``pgl_info``: an encoder checkpoint in words, or what two of them differ in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.command_line import CommandParser, print_lines
from nnunetv2_pgl.difference import difference_lines
from nnunetv2_pgl.errors import PGLError, one_line, size_text
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.methods import MEASURES
from nnunetv2_pgl.recorded import number_text, sources_of, table

_METRICS = (
    *("loss", *MEASURES, "flipped_right", "unflipped_right", "decoy", "position_code", "ceiling"),
    *("correspondence", "chance", "miss_distance"),  # the first two: of version 0.1.0
)


def info_entry() -> None:
    """Entry point of ``pgl_info``."""
    parser = CommandParser(
        prog="pgl_info", description="Says what an encoder checkpoint is, or what two of them differ in."
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run or of nnssl"
    )
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="another one, to compare it with")
    arguments = parser.parse_args()
    try:
        print_lines(_lines(arguments.checkpoint, arguments.other))
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_info: {error}"))


def _lines(path: Path, other: Path | None) -> list[str]:
    checkpoint = load_checkpoint(path)
    digest = sha256_of(path)
    if other is None:
        return [*describe(checkpoint), f"{'file':<13} {path.stat().st_size / 1e6:.4g} MB", f"{'sha256':<13} {digest}"]
    compared = load_checkpoint(other)
    digests = (digest, sha256_of(other))
    return difference_lines((checkpoint, compared), (facts(checkpoint), facts(compared)), (path, other), digests)


def describe(checkpoint: EncoderCheckpoint) -> list[str]:
    """A checkpoint in words, one line per fact."""
    shown = facts(checkpoint)
    before, metrics = table(checkpoint.pgl, "metrics_before"), table(checkpoint.pgl, "metrics")
    shown |= {
        "data": [str(source) for source in sources_of(checkpoint.pgl)] or None,
        "at the start": _listed({name: before[name] for name in _METRICS if name in before}),
        "last epoch": _listed({name: metrics[name] for name in _METRICS if name in metrics}),
        "created": checkpoint.pgl.get("created"),
        "versions": _listed(checkpoint.pgl.get("versions")),
        "cite": [text for citation in checkpoint.citations for text in citation["apa_citations"]],
    }
    lines = []
    for name, value in shown.items():
        values = value if isinstance(value, list) else ["unknown" if value is None else value]
        lines += [f"{name:<13} {one_line(entry)}" for entry in values]
    return lines


def facts(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """What an encoder is and what it was made of, by name; None for what its file does not say."""
    pgl, weights = checkpoint.pgl, {canonical(key): value for key, value in checkpoint.encoder_weights.items()}
    decoder = set(map(canonical, checkpoint.decoder_weights))
    parameters = sum(v.numel() for k, v in weights.items() if v.is_floating_point() and "running" not in k)
    architecture = checkpoint.architecture
    network = architecture.pop("network", None)
    return {
        "method": pgl.get("method"),
        "encoder": _listed(architecture),
        "network": _network(network) if network else "3D ResNet-50 (the paper's)",
        "parameters": f"{parameters:,} in {len(weights)} tensors",
        "precision": "rounded to float16" if pgl.get("precision") == "float16" else "float32",
        "decoder": f"{len(decoder)} tensors" if decoder else "none",
        "scans": pgl.get("num_scans"),
        "epochs": pgl.get("epochs"),
        "views": _size(pgl.get("view_size"), "voxels"),
        "spacing": _size(pgl.get("spacing"), "mm"),
        "intensities": _listed(pgl.get("intensity")),
        "not trained": _listed(pgl.get("untrained_stages")) or "none",
    }


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
        return ", ".join(f"{key} {number_text(value)}" for key, value in values.items()) or None
    if isinstance(values, list | tuple):
        return ", ".join(map(str, values)) or None
    return values
