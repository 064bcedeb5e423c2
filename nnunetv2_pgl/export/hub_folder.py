"""The command ``pgl_export``: a checkpoint as a file, or as the folder of a Hugging Face repository.

nnU-Net (git version, ``maybe_download_pretrained_weights`` in ``nnunetv2.experiment_planning.like_nnssl``) asks a
repository for three files at its top: ``adaptation_plan.json``, whose being there says that the checkpoint suits these
tools; ``checkpoint_final.pth``, from which alone it then reads, the plan too; and ``config.json``, for the Hub's count
of downloads. It reads neither JSON file, so the keys of ``config.json`` are ours. ``README.md`` is the Hub's model card
and ``LICENSE`` the text of a licence that the Hub has no name for. ``model.safetensors`` is the checkpoint once more,
for those who open no pickled files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.command_line import CommandParser, print_lines
from nnunetv2_pgl.errors import PGLError, counted, one_line
from nnunetv2_pgl.export.model_card import Licence, model_card
from nnunetv2_pgl.export.weights_file import ENDINGS, PublishedWeights
from nnunetv2_pgl.files import sha256_of, write_text
from nnunetv2_pgl.info.recorded import sources_of

CHECKPOINT, PLAN, CONFIG = "checkpoint_final.pth", "adaptation_plan.json", "config.json"
SAFETENSORS, CARD, LICENCE = "model.safetensors", "README.md", "LICENSE"
# Of the entry "pgl" of a checkpoint, what config.json has too.
_DESCRIBED = (
    *("method", "architecture", "intensity", "spacing", "view_size", "num_scans", "sources", "epochs", "precision"),
    *("created", "versions"),
)


def write_hub_folder(
    weights: PublishedWeights, folder: Path, licence: str, *, safetensors: bool = False, overwrite: bool = False
) -> Path:
    """Writes the folder under a temporary name beside it and renames that when it is complete.

    Args:
        weights: The encoder.
        folder: The folder to write; may exist if it is empty.
        licence: Licence of the weights, an SPDX identifier or a text.
        safetensors: Write ``model.safetensors``, too.
        overwrite: Replace an earlier export.

    Returns:
        The folder, with links resolved.

    Raises:
        PGLError: The checkpoint holds no plan for nnU-Net's tools, or the folder holds something.
        OSError: Something cannot be written; a former folder is intact.
    """
    if not weights.checkpoint.nnssl_adaptation_plan:
        raise PGLError(
            f"{weights.source}: holds no nnssl_adaptation_plan; pre-train with this version, or share the file alone "
            "(-o FILE)"
        )
    folder = Path(os.path.realpath(folder))
    _require_free(folder, overwrite)
    with _replacing(folder) as temporary:
        names = (CHECKPOINT, SAFETENSORS) if safetensors else (CHECKPOINT,)
        for name in names:
            weights.write(temporary / name)
        _describe(weights, Licence.from_text(licence), {name: sha256_of(temporary / name) for name in names}, temporary)
    return folder


def _describe(weights: PublishedWeights, licence: Licence, digests: dict[str, str], folder: Path) -> None:
    checkpoint = weights.checkpoint
    config = {
        "library": "nnunetv2-pgl",
        "checkpoint": CHECKPOINT,
        "checkpoint_sha256": digests[CHECKPOINT],
        "sha256": digests,
        "licence": licence.text,
        **{key: checkpoint.pgl.get(key) for key in _DESCRIBED},
    }
    for name, content in ((PLAN, checkpoint.nnssl_adaptation_plan), (CONFIG, config)):
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    write_text(folder / CARD, model_card(checkpoint, licence, digests))
    if not licence.is_known:
        write_text(folder / LICENCE, licence.text + "\n")


def write_file(weights: PublishedWeights, path: Path, *, overwrite: bool = False) -> Path:
    """Writes the encoder as one file, in the format of its ending.

    Raises:
        PGLError: It exists and is not to be replaced, or its ending is none of those known.
        OSError: It cannot be written; a former file is intact.
    """
    path = Path(os.path.realpath(path))
    if path.suffix not in ENDINGS:
        raise PGLError(f"{path}: give the file the ending {' or '.join(ENDINGS)}, which names its format")
    if path.is_dir():
        raise PGLError(f"{path}: a folder; give the name of a file, or -hub for a folder to publish")
    if path.exists() and not overwrite:
        raise PGLError(f"{path}: exists; give another name, or --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write(path)
    return path


def _require_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise PGLError(f"{folder}: a file; give a folder")
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(found - {CHECKPOINT, PLAN, CONFIG, SAFETENSORS, CARD, LICENCE})
    if found and not overwrite:
        raise PGLError(f"{folder}: not empty; give a new folder, or --overwrite to replace an earlier export")
    if others:
        raise PGLError(f"{folder}: holds {others[0]}, which pgl_export did not write; give a new folder")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` if all goes well, and vanishes if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            os.replace(folder, former)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not folder.exists():
            os.replace(former, folder)
        raise
    shutil.rmtree(former, ignore_errors=True)


def export_entry() -> None:
    """Entry point of ``pgl_export``."""
    arguments = _parser().parse_args()
    try:
        lines = _export(arguments)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_export: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_export: interrupted; nothing was written")
    print_lines(lines)


def _export(arguments: argparse.Namespace) -> list[str]:
    """Writes what is asked for; what to print."""
    licence = (arguments.licence or "").strip()
    if arguments.hub and not licence:
        raise PGLError(
            "--licence is missing: name the licence of the weights, such as CC-BY-4.0, or give its text in quotes; "
            "it depends on the data, so only you can know it"
        )
    if arguments.o and (licence or arguments.safetensors):
        option = "--licence" if licence else "--safetensors"
        remedy = "leave it out" if licence else f"with -o the ending of FILE names the format ({', '.join(ENDINGS)})"
        raise PGLError(f"{option} is for -hub; {remedy}")
    target = arguments.o or arguments.hub
    if str(target).lower().startswith(("hf:/", "https:/", "http:/")):
        raise PGLError(f"{target}: an address; give a file or a folder here, and upload it afterwards")
    weights = PublishedWeights.from_file(locate(arguments.checkpoint).path, arguments.half)
    lines = []
    if in_float32 := weights.in_float32() if arguments.half else 0:
        kept = counted(in_float32, "convolution")
        lines = [f"In float32 as before, because float16 cannot hold them: the weights of {kept}"]
    if arguments.o:
        file = write_file(weights, arguments.o, overwrite=arguments.overwrite)
        return [f"{file}: {_size(file)}, sha256 {sha256_of(file)}", *lines]
    folder = write_hub_folder(
        weights, arguments.hub, licence, safetensors=arguments.safetensors, overwrite=arguments.overwrite
    )
    licences = "; ".join(f"{s.name}: {s.licence or 'not recorded'}" for s in sources_of(weights.checkpoint.pgl))
    return [
        f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))} ({CHECKPOINT}: "
        f"{_size(folder / CHECKPOINT)})",
        *lines,
        one_line(f"Licences of the scans: {licences or 'not recorded'}. Check that they allow {licence}."),
        "Nothing was sent anywhere. Read README.md first: it names the datasets and the settings of the run, and has "
        "no contact yet.",
        "To publish it on the Hugging Face Hub, with its client (pip install huggingface_hub):",
        f'  hf upload OWNER/NAME "{folder}"',
    ]


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.4g} MB"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="pgl_export",
        description="Writes an encoder to share: with -hub a folder to publish, which has what nnU-Net's downloader "
        "expects (checkpoint_final.pth, adaptation_plan.json, config.json) and a model card; with -o one file. "
        "Absolute paths are removed from it. Sends nothing.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run; a path or an address"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-hub", "--hub", type=Path, metavar="FOLDER", help="folder to write")
    file_help = "file to write: .pth or .safetensors"
    target.add_argument("-o", "--o", type=Path, metavar="FILE", help=file_help)
    licence_help = "licence of the weights: its SPDX identifier, or a text (required with -hub)"
    parser.add_argument("-licence", "--licence", "--license", metavar="LICENCE", help=licence_help)
    half_help = "weights in float16: half the size; whatever reads the file converts them to float32"
    parser.add_argument("-half", "--half", action="store_true", help=half_help)
    safetensors_help = "with -hub: write model.safetensors, too, beside the checkpoint_final.pth that nnU-Net asks for"
    parser.add_argument("-safetensors", "--safetensors", action="store_true", help=safetensors_help)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser
