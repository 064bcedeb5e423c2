"""Find the scans that ``-d`` names, nnU-Net datasets and plain folders, and choose among them."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_pgl.errors import counted
from pretraining.data.nnunet_dataset import find_in_dataset
from pretraining.data.plain_folder import find_in_folder
from pretraining.data.scan import FILE_ENDINGS, DataError, Scan, Skipped, Source, safe_name, unique_names

logger = logging.getLogger(__name__)

MODALITIES = ("ct", "mr")


def find_scans(
    sources: Sequence[str], modality: str | None = None, use_masks: bool = False
) -> tuple[list[Scan], list[Skipped]]:
    """Find every scan of the given sources.

    Args:
        sources: nnU-Net dataset ids ("501"), names ("Dataset501_X") or folders of scans (.nii.gz, .nii, .nrrd, .nhdr,
            .mha, .mhd, DICOM series). Training and test images of a dataset are both used.
        modality: "ct" or "mr" for all sources. By default a dataset's channel is CT if it is named so (nnU-Net's
            rule), DICOM is what it says, and other files of a plain folder are CT.
        use_masks: Take files of a plain folder that look like segmentations, too.

    Returns:
        The scans with names unique in the pool, and what was found but cannot be used, with the reason.

    Raises:
        DataError: If a source does not exist, holds no scan, or is named twice.
    """
    if modality is not None and modality not in MODALITIES:
        raise DataError(f"unknown modality {modality!r}: choose from {', '.join(MODALITIES)}")
    if not sources:
        raise DataError("no scans named: give a dataset id, a dataset name or a folder (-d)")
    located = [resolve_source(source) for source in sources]
    for first, second in combinations([source.folder.resolve() for source in located], 2):
        if first == second:
            raise DataError(f"{first} is named twice: name every source once")
        if first in second.parents or second in first.parents:
            raise DataError(f"{first} and {second} lie one inside the other: name only one of them")
    scans: list[Scan] = []
    skipped: list[Skipped] = []
    for source in located:
        if source.is_dataset:
            found, left_out = find_in_dataset(source, modality)
        else:
            found, left_out = find_in_folder(source, modality, use_masks)
        if not found:
            reason = f" ({left_out[0].name}: {left_out[0].reason})" if left_out else ""
            expected = "imagesTr and imagesTs" if source.is_dataset else f"{', '.join(FILE_ENDINGS)} or DICOM files"
            raise DataError(f"{source.folder} holds no scan{reason}: looked for {expected}")
        names = unique_names([scan.name for scan in found], [scan.identifier for scan in found])
        scans += [replace(scan, identifier=name) for scan, name in zip(found, names, strict=True)]
        skipped += left_out
    # Names that two sources share get the source in front; the files keep the identifier.
    names = unique_names([s.identifier for s in scans], [f"{safe_name(s.source)}_{s.identifier}" for s in scans])
    return [replace(scan, name=name) for scan, name in zip(scans, names, strict=True)], skipped


def resolve_source(source: str) -> Source:
    """Find a dataset or a folder: ids and DatasetXXX names first, as in nnU-Net's commands.

    Raises:
        DataError: If it does not exist.
    """
    if source.isdigit():
        return _dataset(source)
    folder = Path(source).expanduser()
    named_dataset = source.startswith("Dataset") and "/" not in source and "\\" not in source
    if named_dataset and (not folder.is_dir() or _raw_folder(source).is_dir()):
        return _dataset(source)
    if not folder.is_dir():
        raise DataError(f"{source} is neither an nnU-Net dataset (id or DatasetXXX_Name) nor an existing folder")
    folder = Path(os.path.abspath(folder))
    is_dataset = nnUNet_raw.is_set() and _raw_folder(folder.name).resolve() == folder.resolve()
    return Source(folder.name, folder, is_dataset)


def _raw_folder(dataset_name: str) -> Path:
    return Path(nnUNet_raw.get() or "", dataset_name)


def _dataset(source: str) -> Source:
    if not nnUNet_raw.is_set():
        raise DataError(
            f"dataset {source} cannot be looked up, nnUNet_raw is not set: "
            "export nnUNet_raw=/path/to/nnUNet_raw (the folder that holds DatasetXXX_Name)"
        )
    try:
        name = str(maybe_convert_to_dataset_name(source))
    except RuntimeError as error:
        problem = "stands for several datasets" if "More than one" in str(error) else "does not exist"
        raise DataError(f"dataset {source} {problem} in nnUNet_raw ({nnUNet_raw}): check the id") from error
    folder = _raw_folder(name)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: dataset {source} has no raw images in nnUNet_raw")
    return Source(name, Path(os.path.abspath(folder)), True)


def leave_out(scans: Sequence[Scan], skipped: Sequence[Skipped], names: Sequence[str]) -> list[Scan]:
    """All scans except those with the given names (`Scan.name` or `Scan.identifier`), in all sources.

    Raises:
        DataError: If no scan has one of the names, or no scan is left: a misspelt test set must not be trained on.
    """
    unwanted = set(names)
    known = {name for scan in scans for name in (scan.name, scan.identifier)} | {item.name for item in skipped}
    if unknown := sorted(unwanted - known):
        raise DataError(
            f"-exclude: no scan is named {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''} "
            f"({len(unknown)} of {len(unwanted)} names are unknown; one that is known: {scans[0].identifier})"
        )
    left = [scan for scan in scans if not unwanted & {scan.name, scan.identifier}]
    if not left:
        raise DataError("-exclude names every scan: leave at least one")
    return left


def with_joint_channels(scans: Sequence[Scan], planned: int | None = None) -> tuple[list[Scan], list[Skipped]]:
    """Keep the scans that have the same number of channels, as an encoder needs that takes all channels at once.

    Args:
        scans: The pool.
        planned: Number of channels of a plan. None: the number that most scans have; of equally common ones, the
            largest.

    Returns:
        The scans kept, and the others with the reason.

    Raises:
        DataError: If no scan has the plan's number.
    """
    counts = Counter(len(scan.channels) for scan in scans)
    number = planned if planned is not None else max(counts, key=lambda count: (counts[count], count))
    kept = [scan for scan in scans if len(scan.channels) == number]
    wanted = counted(number, "channel")
    if not kept:
        found = ", ".join(map(str, sorted(counts)))
        raise DataError(
            f"-channels joint: the plan is for {wanted} and no scan has as many (found: {found}); use "
            "-channels each, or another plan"
        )
    origin = "of the plan" if planned is not None else "that most scans have"
    reason = f"-channels joint takes scans with {wanted}, the number {origin}"
    skipped = [
        Skipped(scan.name, scan.source, f"has {counted(len(scan.channels), 'channel')}; {reason}")
        for scan in scans
        if len(scan.channels) != number
    ]
    examples = {tuple(name.casefold() for name in scan.channels): scan for scan in reversed(kept)}
    if len(examples) > 1:
        named = "; ".join(f"{scan.source}: {', '.join(scan.channels)}" for scan in list(examples.values())[:3])
        logger.warning("-channels joint joins channels by number, but their names differ (%s)", named)
    return kept, skipped
