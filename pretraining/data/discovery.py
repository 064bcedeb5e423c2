"""Find the scans that ``-d`` names: nnU-Net datasets and plain folders, pooled."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from pretraining.data.candidate import distinct, identifiers, safe_name
from pretraining.data.nnunet_dataset import find_in_dataset
from pretraining.data.plain_folder import find_in_folder
from pretraining.data.scan import FILE_ENDINGS, DataError, Scan, Skipped

MODALITIES = ("ct", "mr")


@dataclass(frozen=True)
class _Source:
    """One thing that ``-d`` named: an nnU-Net dataset or a plain folder."""

    name: str
    folder: Path
    is_dataset: bool

    @property
    def store(self) -> str:
        """Folder below nnUNet_preprocessed; plain folders of the same name are told apart by their path."""
        if self.is_dataset:
            return self.name
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return f"PGL_folders/{safe_name(self.name)}_{digest}"


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
    located = [_locate(source) for source in sources]
    _refuse_overlap(located)
    scans: list[Scan] = []
    skipped: list[Skipped] = []
    for source in located:
        found, left_out = _scans_of(source, modality, use_masks)
        scans += found
        skipped += left_out
    # Names that two sources share get the source in front; the files keep the identifier.
    names = distinct([s.identifier for s in scans], [f"{safe_name(s.source)}_{s.identifier}" for s in scans])
    return [replace(scan, name=name) for scan, name in zip(scans, names, strict=True)], skipped


def leave_out(scans: Sequence[Scan], skipped: Sequence[Skipped], names: Sequence[str]) -> list[Scan]:
    """The scans but for those with the given names (`Scan.name` or `Scan.identifier`), in all sources.

    Raises:
        DataError: If a name is that of no scan, or no scan is left: a test set that is misspelt must not be trained on.
    """
    unwanted = set(names)
    known = {name for scan in scans for name in (scan.name, scan.identifier)} | {item.name for item in skipped}
    unknown = sorted(unwanted - known)
    if unknown:
        raise DataError(
            f"-exclude: no scan is named {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''} "
            f"({len(unknown)} of {len(unwanted)} names are unknown; one that is known: {scans[0].identifier})"
        )
    left = [scan for scan in scans if not unwanted & {scan.name, scan.identifier}]
    if not left:
        raise DataError("-exclude: leaves no scan")
    return left


def _scans_of(source: _Source, modality: str | None, use_masks: bool) -> tuple[list[Scan], list[Skipped]]:
    if source.is_dataset:
        candidates, skipped = find_in_dataset(source.folder, modality)
    else:
        candidates, skipped = find_in_folder(source.folder, modality, use_masks)
    if not candidates:
        reason = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        expected = "imagesTr and imagesTs" if source.is_dataset else f"{', '.join(FILE_ENDINGS)} or DICOM files"
        raise DataError(f"{source.folder} holds no scan{reason}: looked for {expected}")
    scans = [
        Scan(
            identifier,
            identifier,
            source.name,
            source.store,
            c.files,
            c.channels,
            c.is_ct,
            c.reader,
            c.geometry,
            c.may_be_mask,
        )
        for identifier, c in zip(identifiers(candidates), candidates, strict=True)
    ]
    return scans, skipped


def _locate(source: str) -> _Source:
    """Tell a dataset from a folder: ids and DatasetXXX names first, as in nnU-Net's commands."""
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
    return _Source(folder.name, folder, is_dataset)


def _raw_folder(dataset_name: str) -> Path:
    return Path(nnUNet_raw.get() or "", dataset_name)


def _dataset(source: str) -> _Source:
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
    return _Source(name, Path(os.path.abspath(folder)), True)


def _refuse_overlap(sources: Sequence[_Source]) -> None:
    """A scan that counts twice is hardly ever meant."""
    for first, second in combinations([source.folder.resolve() for source in sources], 2):
        if first == second:
            raise DataError(f"{first} is named twice: name every source once")
        if first in second.parents or second in first.parents:
            raise DataError(f"{first} and {second} lie one inside the other: name only one of them")


def resolve_source(source: str) -> tuple[str, str]:
    """Name a source in full: its short name, and the dataset name or absolute folder that stands for it anywhere.

    Raises:
        DataError: If it does not exist.
    """
    located = _locate(source)
    return located.name, located.name if located.is_dataset else str(located.folder)


def resolve_store(source: str) -> str:
    """`Scan.store` of a source's scans, which no other source has.

    Raises:
        DataError: If it does not exist.
    """
    return _locate(source).store
