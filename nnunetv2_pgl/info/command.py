"""The command ``pgl_info``: an encoder checkpoint in words, or what two of them differ in."""

from __future__ import annotations

import sys
from typing import Any

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.addresses import locate, shown
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint
from nnunetv2_pgl.command_line import CommandParser, print_lines
from nnunetv2_pgl.errors import PGLError, one_line, size_text
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.info.difference import difference_lines
from nnunetv2_pgl.info.recorded import number_text, sources_of, table
from nnunetv2_pgl.methods import MEASURES

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
        "checkpoint",
        metavar="CHECKPOINT",
        help="checkpoint_final.pth of pgl_pretrain, nnssl or nnU-Net; a path or an address, which is downloaded",
    )
    parser.add_argument("other", nargs="?", metavar="OTHER", help="another one, to compare it with")
    arguments = parser.parse_args()
    try:
        print_lines(_lines(*(given for given in (arguments.checkpoint, arguments.other) if given is not None)))
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_info: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_info: interrupted; what was downloaded so far is kept")


def _lines(*addresses: str) -> list[str]:
    """What to print of one encoder, or of two."""
    located = [locate(address) for address in addresses]
    paths = [where.path for where in located]
    checkpoints = [load_checkpoint(path) for path in paths]
    digests = [sha256_of(path) for path in paths]
    downloaded = [
        line
        for where in located
        if where.pinned is not None
        for line in (f"{'file':<13} {where.path}", f"{'address':<13} {shown(where.pinned)}")
    ]
    if len(paths) == 1:
        size = f"{'size':<13} {paths[0].stat().st_size / 1e6:.4g} MB"
        return [*describe(checkpoints[0]), *downloaded, size, f"{'sha256':<13} {digests[0]}"]
    first, second = checkpoints
    of_both = (facts(first), facts(second)), (paths[0], paths[1]), (digests[0], digests[1])
    return [*downloaded, *difference_lines((first, second), *of_both)]


def describe(checkpoint: EncoderCheckpoint) -> list[str]:
    """A checkpoint in words, one line per fact."""
    said = facts(checkpoint)
    before, metrics = table(checkpoint.pgl, "metrics_before"), table(checkpoint.pgl, "metrics")
    said |= {
        "data": [str(source) for source in sources_of(checkpoint.pgl)] or None,
        "at the start": _listed({name: before[name] for name in _METRICS if name in before}),
        "last epoch": _listed({name: metrics[name] for name in _METRICS if name in metrics}),
        "note": list(checkpoint.pgl.get("notes") or ()),
        "created": checkpoint.pgl.get("created"),
        "versions": _listed(checkpoint.pgl.get("versions")),
        "cite": [text for citation in checkpoint.citations for text in citation["apa_citations"]],
    }
    lines = []
    for name, value in said.items():
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
        "precision": f"rounded to {pgl['precision']}" if pgl.get("precision") else "float32",
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
