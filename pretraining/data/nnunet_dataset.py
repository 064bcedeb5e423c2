"""Images of a dataset in nnU-Net's raw format (``$nnUNet_raw/DatasetXXX_Name``)."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_dataset_json
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_pgl.files import load_json
from pretraining.data.reading.headers import sitk_header, tiff_spacing_file
from pretraining.data.scan import (
    DEFAULT_READER,
    FILE_ENDINGS,
    DataError,
    Scan,
    Skipped,
    Source,
    escape_non_utf8,
    log_unused,
    path_problem,
    safe_name,
)

logger = logging.getLogger(__name__)

Cases = dict[tuple[str, str], dict[int, Path]]  # image folder and case: file of each channel


def find_in_dataset(source: Source, modality: str | None) -> tuple[list[Scan], list[Skipped]]:
    """Find the training and test images of an nnU-Net dataset; labels are not needed.

    Args:
        source: The dataset.
        modality: ``"ct"`` or ``"mr"`` overrides what the channel names say.

    Returns:
        Cases with all their channel files, named after the case, with the image folder's name in front in their
        identifier; and cases that lack a file.

    Raises:
        DataError: If ``dataset.json`` is missing, damaged, or names no channels.
    """
    path = source.folder / "dataset.json"
    dataset_json, channels = _read_dataset_json(path)
    ending = dataset_json["file_ending"]
    is_ct = tuple(name.casefold() == "ct" if modality is None else modality == "ct" for name in channels)  # as nnU-Net
    cases = _listed_cases(path, dataset_json) if "dataset" in dataset_json else {}
    skipped: list[Skipped] = []
    others: list[Path] = []
    for subfolder in ("imagesTs",) if "dataset" in dataset_json else ("imagesTr", "imagesTs"):
        cases |= _cases_in(source.folder / subfolder, ending, source.name, skipped, others)
    reader = _reader_name(path, dataset_json, [str(files[0]) for files in cases.values() if 0 in files])
    scans = []
    for (parent, case), files in cases.items():
        if reason := _incomplete(files, channels, case, ending):
            skipped.append(Skipped(case, source.name, reason))
            continue
        ordered = tuple(str(files[index]) for index in range(len(channels)))
        names = safe_name(case), safe_name(f"{parent}_{case}")
        scans.append(Scan(*names, source.name, source.store, ordered, channels, is_ct, reader))
    if reader == Tiff3DIO.__name__:
        spacing_files = {tiff_spacing_file(scan.files[0]) for scan in scans}
        others = [file for file in others if file not in spacing_files]
        if missing := sorted(path for path in spacing_files if not path.is_file()):
            logger.warning(
                "%s: %d of %d scans have no file with their spacing, such as %s, and are taken to be of 1 x 1 x 1 mm "
                'as in nnU-Net; to correct it, write {"spacing": [z, y, x]} there',
                *(source.name, len(missing), len(spacing_files), missing[0].name),
            )
    log_unused(source.name, others)
    return scans, skipped


def _read_dataset_json(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content, and the names of the channels in the order of their numbers."""
    if not path.is_file():
        raise DataError(f"{path} is missing: every nnU-Net dataset needs one")
    try:
        content = load_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): correct the file") from error
    ending = content.get("file_ending") if isinstance(content, dict) else None
    if not isinstance(ending, str) or not ending or Path(ending).name != ending:
        raise DataError(f'{path} has no "file_ending": add the ending of the image files, such as ".nii.gz"')
    names = content.get("channel_names", content.get("modality"))  # the latter in nnU-Net v1
    if not isinstance(names, dict) or not names:
        raise DataError(f'{path} has no "channel_names": add them, such as {{"0": "CT"}}')
    if sorted(names) != sorted(map(str, range(len(names)))) or not all(isinstance(n, str) for n in names.values()):
        raise DataError(f'{path}: "channel_names" must name the channels "0", "1", ...')
    return content, tuple(names[str(number)] for number in range(len(names)))


def _reader_name(path: Path, dataset_json: dict[str, Any], files: Sequence[str]) -> str:
    """The reader that nnU-Net takes, which opens the first file of a dataset to find it.

    Here two of three files decide, so that one bad scan does not.
    """
    ending, wanted = dataset_json["file_ending"], dataset_json.get("overwrite_image_reader_writer")
    try:
        first = determine_reader_writer_from_dataset_json(dataset_json, verbose=False).__name__
    except (RuntimeError, AttributeError, TypeError) as error:  # no reader for these files, or none with this name
        if wanted not in (None, "None"):
            raise DataError(f"{path}: nnU-Net has no reader {str(wanted)[:80]!r}") from error
        if ending in FILE_ENDINGS:
            return DEFAULT_READER  # SimpleITK reads more than nnU-Net's class for it lists
        raise DataError(f"{path}: nnU-Net has no reader for {ending!r} files") from error
    if sum(ending.lower() in known.supported_file_endings for known in LIST_OF_IO_CLASSES) == 1:
        return first
    chosen: Counter[str] = Counter()
    for file in dict.fromkeys((*files[:1], *files[len(files) // 2 :][:1], *files[-1:])):
        if 2 in chosen.values():
            break
        if first == DEFAULT_READER:  # the header is enough here; nnU-Net would read the whole file
            with suppress(RuntimeError):
                sitk_header(file)
                chosen[first] += 1
                continue
        with suppress(RuntimeError), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            chosen[determine_reader_writer_from_dataset_json(dataset_json, file, verbose=False).__name__] += 1
    return chosen.most_common(1)[0][0] if chosen else first


def _listed_cases(path: Path, dataset_json: dict[str, Any]) -> Cases:
    """Cases of nnU-Net's explicit form: dataset.json lists every image's path."""
    cases: Cases = {}
    try:
        for case, entry in dataset_json["dataset"].items():
            images = [Path(path.parent, os.path.expandvars(image)) for image in entry["images"]]
            cases["", case] = dict(enumerate(images))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f'{path}: "dataset" must give each case its list of "images" ({error!r})') from error
    return cases


def _cases_in(folder: Path, ending: str, source: str, skipped: list[Skipped], others: list[Path]) -> Cases:
    """Group the files of one image folder by case.

    Images with other names are added to ``skipped``, other files to ``others``.
    """
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    cases: Cases = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.name.endswith(ending):
            others.append(path)
        elif problem := path_problem(path):
            skipped.append(Skipped(escape_non_utf8(path.name), source, problem))
        elif match := pattern.fullmatch(path.name):
            cases.setdefault((folder.name, match[1]), {})[int(match[2])] = path
        else:
            reason = f"the file name lacks nnU-Net's channel number (_0000{ending})"
            skipped.append(Skipped(path.name, source, reason))
    return cases


def _incomplete(files: dict[int, Path], channels: tuple[str, ...], case: str, ending: str) -> str:
    """Which channel file a case lacks or has too many; empty if it is complete."""
    for index, channel in enumerate(channels):
        if index not in files:
            return f"channel file {case}_{index:04d}{ending} ({channel}) is missing"
        if not os.path.isfile(files[index]):  # Path.is_file raises if a name is too long
            return f"channel file {files[index]} ({channel}) is missing"
    extra = sorted(set(files) - set(range(len(channels))))
    return f"{files[extra[0]].name} has a channel number that dataset.json does not name" if extra else ""
