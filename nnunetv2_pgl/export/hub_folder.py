"""The command ``pgl_export``: a checkpoint as the folder of a Hugging Face repository that nnU-Net fine-tunes from.

nnU-Net (git version, ``maybe_download_pretrained_weights`` in ``nnunetv2.experiment_planning.like_nnssl``) asks a
repository for three files at its top: ``adaptation_plan.json``, whose being there says that the checkpoint suits these
tools; ``checkpoint_final.pth``, from which alone it then reads, the plan too; and ``config.json``, for the Hub's count
of downloads. It reads neither JSON file, so the keys of ``config.json`` are ours. ``README.md`` is the Hub's model card
and ``LICENSE`` the text of a licence that the Hub has no name for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.export.model_card import Licence, model_card
from nnunetv2_pgl.files import sha256_of, write_text

CHECKPOINT, PLAN, CONFIG = "checkpoint_final.pth", "adaptation_plan.json", "config.json"
CARD, LICENCE = "README.md", "LICENSE"
# Of the entry "pgl" of a checkpoint, what config.json has too.
_DESCRIBED = (
    "method", "architecture", "intensity", "spacing", "view_size", "num_scans", "epochs", "created", "versions",
)  # fmt: skip


def write_hub_folder(path: Path, folder: Path, licence: str, *, overwrite: bool = False) -> Path:
    """Writes the folder under a temporary name beside it and renames that when it is complete.

    The checkpoint is copied byte for byte, unless it holds absolute paths, which publishing weights must not reveal: of
    these only the last part is kept.

    Args:
        path: Encoder checkpoint.
        folder: The folder to write; may exist if it is empty.
        licence: Licence of the weights, an SPDX identifier or a text.
        overwrite: Replace an earlier export.

    Returns:
        The folder, with links resolved.

    Raises:
        PGLError: The checkpoint cannot be read or was not made by ``pgl_pretrain``, or the folder holds something.
        OSError: Something cannot be written; a former folder is intact.
    """
    checkpoint = load_checkpoint(path)
    pgl, plan = _relative(checkpoint.pgl), _relative(checkpoint.nnssl_adaptation_plan)
    if "format_version" not in pgl:  # which only our files have
        framework = pgl.get("framework", "another program")
        raise PGLError(f"{path}: made by {framework}, not by pgl_pretrain; only its authors can describe it")
    if not plan:
        raise PGLError(f"{path}: holds no nnssl_adaptation_plan; pre-train with this version, or share the file alone")
    folder = Path(os.path.realpath(folder))
    _require_free(folder, overwrite)
    with _replacing(folder) as temporary:
        if pgl == checkpoint.pgl and plan == checkpoint.nnssl_adaptation_plan:
            shutil.copyfile(path, temporary / CHECKPOINT)
        else:
            checkpoint = replace(checkpoint, pgl=pgl, nnssl_adaptation_plan=plan)
            save_checkpoint(checkpoint, temporary / CHECKPOINT)
        _describe(checkpoint, Licence.from_text(licence), temporary)
    return folder


def _describe(checkpoint: EncoderCheckpoint, licence: Licence, folder: Path) -> None:
    digest = sha256_of(folder / CHECKPOINT)
    config = {
        "library": "nnunetv2-pgl",
        "checkpoint": CHECKPOINT,
        "checkpoint_sha256": digest,
        "licence": licence.text,
        **{key: checkpoint.pgl.get(key) for key in _DESCRIBED},
    }
    for name, content in ((PLAN, checkpoint.nnssl_adaptation_plan), (CONFIG, config)):
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    write_text(folder / CARD, model_card(checkpoint, licence, digest))
    if not licence.is_known:
        write_text(folder / LICENCE, licence.text + "\n")


def _require_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise PGLError(f"{folder}: a file; give a folder")
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(found - {CHECKPOINT, PLAN, CONFIG, CARD, LICENCE})
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


def _relative(value: Any) -> Any:
    """The same table, list or value, with the last part alone of every absolute path."""
    if isinstance(value, dict):
        return {_relative(key): _relative(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_relative(entry) for entry in value)
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def export_entry() -> None:
    """Entry point of ``pgl_export``."""
    arguments = _parser().parse_args()
    try:
        if not (arguments.licence or "").strip():
            raise PGLError(
                "--licence is missing: name the licence of the weights, such as CC-BY-4.0, or give its text in quotes; "
                "it depends on the data, so only you can know it"
            )
        path = locate(arguments.checkpoint).path
        folder = write_hub_folder(path, arguments.hub, arguments.licence.strip(), overwrite=arguments.overwrite)
    except (PGLError, OSError) as error:
        sys.exit(one_line(f"pgl_export: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_export: interrupted; nothing was written")
    print(
        f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}\n"
        "Nothing was sent anywhere. Read README.md first: it names the datasets and the settings of the run, and has "
        "no contact yet.\n"
        "To publish it on the Hugging Face Hub, with its client (pip install huggingface_hub):\n"
        f'  hf upload OWNER/NAME "{folder}"'
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgl_export",
        allow_abbrev=False,
        description="Writes an encoder as the folder that nnU-Net's downloader expects: checkpoint_final.pth, "
        "adaptation_plan.json, config.json and a model card. Sends nothing.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run; a path or an address"
    )
    parser.add_argument("-hub", "--hub", type=Path, required=True, metavar="FOLDER", help="folder to write")
    licence_help = "licence of the weights: its SPDX identifier, or a text (required)"
    parser.add_argument("-licence", "--licence", "--license", metavar="LICENCE", help=licence_help)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    return parser
