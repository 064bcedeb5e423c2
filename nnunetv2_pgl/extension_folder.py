"""How nnU-Net finds the trainers: by an environment variable, or by a link in its trainer folder; ``pgl_extension``."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from nnunetv2_pgl.command_line import CommandParser
from nnunetv2_pgl.environment import nnunet_version
from nnunetv2_pgl.errors import one_line
from nnunetv2_pgl.files import write_text

VARIABLE = "nnUNet_extTrainer"
EXPORT_LINE = f'export {VARIABLE}="$(pgl_extension)"'  # what to type in a shell
_LINK_NAME = "nnUNetTrainerPGL_link.py"
_MARK = "# Written by pgl_extension --link; pgl_extension --unlink removes it."
_LINK = f'''{_MARK}
"""Shows the trainers of nnunetv2-pgl to nnU-Net as long as that package is installed."""

import importlib.util

if importlib.util.find_spec("nnunetv2_pgl") is not None:
    from nnunetv2_pgl import trainers

    globals().update({{name: getattr(trainers, name) for name in trainers.__all__}})
'''


def extension_folder() -> Path:
    """The folder for ``nnUNet_extTrainer``."""
    return Path(__file__).parent / "extension"


def link_file() -> Path:
    """Where a link in nnU-Net's own trainer folder lies; a FileNotFoundError if nnU-Net is not installed."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("nnunetv2 is not installed in this environment: pip install nnunetv2")
    folder = Path(spec.submodule_search_locations[0]) / "training" / "nnUNetTrainer" / "variants"
    return folder / _LINK_NAME


def link() -> Path:
    """Writes the link and returns its path; an OSError if it cannot, or another's file is in the way."""
    file = link_file()
    _require_ours(file)
    write_text(file, _LINK)
    return file


def unlink() -> Path | None:
    """Removes the link and returns its path, None if there was none; an OSError if it cannot, or it is another's."""
    file = link_file()
    if not file.exists():
        return None
    _require_ours(file)
    file.unlink()
    return file


def check() -> tuple[list[str], bool]:
    """What nnU-Net will find in this shell, line by line, and whether that is the trainers."""
    import nnunetv2
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    value = os.environ.get(VARIABLE)
    lines = [f"nnunetv2 {nnunet_version()} in {nnunetv2.__path__[0]}"]
    lines.append(f"{VARIABLE} is not set in this shell" if value is None else f"{VARIABLE}={value}")
    missing = [folder for folder in (value or "").split(os.pathsep) if folder and not os.path.isdir(folder)]
    lines += [f"  {folder} does not exist (nnU-Net ignores it silently)" for folder in missing]
    lines.append(f"link in nnU-Net's own folder: {link_file() if link_file().exists() else 'none'}")
    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints each module it looks into
            found = recursive_find_trainer_class_by_name("nnUNetTrainerPGL")
    except Exception as error:  # whatever a trainer folder raises on import is what the user needs to see
        lines.append(f"nnU-Net does not find nnUNetTrainerPGL: {type(error).__name__}: {error}")
        lines.append("nnUNetv2_train and nnUNetv2_predict both need it. Type, in every shell or job that runs them:")
        lines.append(f"  {EXPORT_LINE}")
        return lines, False
    lines.append(f"nnU-Net finds nnUNetTrainerPGL in {found.__module__}: ready to train and to predict")
    return lines, True


def _require_ours(file: Path) -> None:
    if file.exists() and not file.read_text().startswith(_MARK):
        raise FileExistsError(f"{file} was not written by pgl_extension and is left as it is; move it away first")


def extension_entry() -> None:
    """Entry point of ``pgl_extension``."""
    parser = CommandParser(
        prog="pgl_extension",
        description="Prints the folder in which nnU-Net finds nnUNetTrainerPGL. nnUNetv2_train and nnUNetv2_predict "
        f"both need it, in every shell and job: {EXPORT_LINE}",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="say what nnU-Net finds in this shell and what is missing")
    link_help = "for those who cannot set variables: write a small module into nnU-Net's own trainer folder"
    choice.add_argument("--link", action="store_true", help=link_help)
    choice.add_argument("--unlink", action="store_true", help="remove that module")
    arguments = parser.parse_args()
    try:
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
    except OSError as error:
        sys.exit(one_line(f"pgl_extension: {error}"))
