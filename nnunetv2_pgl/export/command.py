"""The command ``pgl_export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunetv2_pgl.checkpoint import CheckpointError
from nnunetv2_pgl.errors import one_line
from nnunetv2_pgl.export.hub_folder import ExportError, write_hub_folder


def export_entry() -> None:
    """Entry point of ``pgl_export``."""
    arguments = _parser().parse_args()
    try:
        if not (arguments.licence or "").strip():
            raise ExportError(
                "--licence is missing: name the licence of the weights, such as CC-BY-4.0, or give its text in quotes; "
                "it depends on the data, so nobody but you can tell"
            )
        folder = write_hub_folder(
            arguments.checkpoint, arguments.hub, arguments.licence.strip(), overwrite=arguments.overwrite
        )
    except (CheckpointError, ExportError, OSError) as error:
        sys.exit(one_line(f"pgl_export: {error}"))
    except KeyboardInterrupt:
        sys.exit("pgl_export: interrupted; nothing was written")
    print("\n".join(_next_steps(folder)))


def _next_steps(folder: Path) -> list[str]:
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    return [
        f"{folder}: {names}",
        "Nothing was sent anywhere. Read README.md first: it tells the names of the data sets and the settings of the "
        "run, and has no contact yet.",
        "To publish it on the Hugging Face Hub, with its client (pip install huggingface_hub):",
        f'  hf upload OWNER/NAME "{folder}"',
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgl_export",
        allow_abbrev=False,
        description="Writes an encoder as the folder that nnU-Net's downloader expects: checkpoint_final.pth, "
        "adaptation_plan.json, config.json and a model card. Uses no network.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pgl_pretrain run"
    )
    parser.add_argument("-hub", "--hub", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "-licence",
        "--licence",
        "--license",
        metavar="LICENCE",
        help="licence of the weights: its SPDX identifier, or a text (required)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    return parser
