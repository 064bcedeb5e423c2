"""The single datasets of the paper's experiment: RibFrac, KiTS19 and BCV; the decathlon's tasks are in ``msd``."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_pgl.dataset_conversion.downloaded import (
    DEFAULT_SEED,
    DownloadedDataset,
    Licence,
    complete_cases,
    divide,
    files_by_case,
    hold_out,
)
from nnunetv2_pgl.dataset_conversion.writing import one_class, z_first
from nnunetv2_pgl.errors import PGLError

RIBFRAC = Licence(
    "CC BY-NC 4.0",
    "https://ribfrac.grand-challenge.org",
    "a checkpoint that was pre-trained on it is for non-commercial use",
)
KITS19 = Licence(
    "CC BY-NC-SA 4.0",
    "https://kits19.grand-challenge.org/data",
    "for non-commercial use; pass on what is derived from it under the same licence",
)
BCV = Licence(
    "terms of use of the Synapse project syn3193805",
    "https://www.synapse.org/#!Synapse:syn3193805",
    "the terms that you agreed to when you registered there apply to scans and checkpoints",
)

# The numbers of RibFrac's scans say which part of the challenge they belong to.
RIBFRAC_TRAINING, RIBFRAC_VALIDATION, RIBFRAC_TEST = (
    [f"RibFrac{number}" for number in numbers] for numbers in (range(1, 421), range(421, 501), range(501, 661))
)

KITS19_NAMES = [f"case_{number:05d}" for number in range(210)]
KITS19_TEST = 105  # paper, section 4.2: divided equally and randomly
KITS19_LABELS = {"background": 0, "kidney": 1, "tumour": 2}

BCV_ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
BCV_LABELS = {"background": 0, **{organ: value for value, organ in enumerate(BCV_ORGANS, start=1)}}
BCV_NAMES = [f"img{number:04d}" for number in (*range(1, 11), *range(21, 41))]
BCV_TEST = 15  # paper, section 4.2: divided equally and randomly
# The split that the paper's group published with a later paper: 21 for training, these 9 for testing.
BCV_PUBLISHED_TEST = frozenset(f"img{number:04d}" for number in range(32, 41))
BCV_SPLITS = ("random", "published")


def read_ribfrac(folder: Path, with_labels: bool = False) -> DownloadedDataset:
    """RibFrac, 660 chest CT scans with rib fractures (https://ribfrac.grand-challenge.org).

    Without labels all scans become training images, for pre-training. With labels, training and validation scans become
    fold 0 and the test scans, whose labels are not public, imagesTs. The masks hold a number per fracture, the csv
    files its type (-1: unclear); here all are one class, fracture.

    Args:
        folder: A folder that holds all of them, at any depth: RibFrac1-image.nii.gz, RibFrac1-label.nii.gz, ...
        with_labels: Take the fracture masks as well.

    Raises:
        PGLError: If there is no scan, or one of them twice.
    """
    images = files_by_case(folder, r".*/(RibFrac\d+)-image")
    if not images:
        raise PGLError(f"{folder} holds no RibFrac scan: looked for files such as RibFrac1-image.nii.gz")
    names = RIBFRAC_TRAINING + RIBFRAC_VALIDATION + RIBFRAC_TEST
    notes = tuple(f"{name} is not one of the 660 scans: left out" for name in sorted(set(images) - set(names)))
    if not with_labels:
        cases, missing = complete_cases(names, images)
        training = tuple(cases.values())
        return DownloadedDataset("RibFrac", 15, folder, RIBFRAC, training, (), len(names), missing=missing, notes=notes)
    labels = files_by_case(folder, r".*/(RibFrac\d+)-label")
    cases, missing = complete_cases(RIBFRAC_TRAINING + RIBFRAC_VALIDATION, images, labels)
    if not cases:
        raise PGLError(f"{folder} holds no RibFrac label: looked for files such as RibFrac1-label.nii.gz")
    test, missing_test = complete_cases(RIBFRAC_TEST, images)
    parts = {"train": RIBFRAC_TRAINING, "val": RIBFRAC_VALIDATION}
    fold = {part: [name for name in published if name in cases] for part, published in parts.items()}
    return DownloadedDataset(
        *("RibFrac", 15, folder, RIBFRAC, tuple(cases.values()), tuple(test.values()), len(names)),
        labels={"background": 0, "fracture": 1},
        folds=(fold,) if all(fold.values()) else (),
        split={"rule": "the challenge's training and validation scans"},
        missing=missing + missing_test,
        notes=notes,
        rewrite_label=one_class,
    )


def read_kits19(folder: Path, seed: int = DEFAULT_SEED) -> DownloadedDataset:
    """KiTS19, 210 labelled CT scans of kidneys and kidney tumours (https://github.com/neheller/kits19), 105 / 105.

    The files have their slices along the first NIfTI axis, which SimpleITK and nnU-Net call x; they are turned to z
    first, as all other scans are.

    Args:
        folder: The repository or its folder ``data``, which holds case_00000/imaging.nii.gz and segmentation.nii.gz.
        seed: Decides which cases are for testing and for validation.

    Raises:
        PGLError: If there is no complete case, or this is a later KiTS.
    """
    images = files_by_case(folder, r"(case_\d{5})/imaging")
    labels = files_by_case(folder, r"(case_\d{5})/segmentation")
    if set(labels) - set(KITS19_NAMES):
        raise PGLError(
            f"{folder} holds labels beyond {KITS19_NAMES[-1]} ({max(labels)}): this is not KiTS19 but a later KiTS, "
            "whose labels differ"
        )
    cases, missing = complete_cases(KITS19_NAMES, images, labels)
    divided = divide(cases, hold_out(KITS19_NAMES, KITS19_TEST, seed), seed)
    if not divided["training"]:
        raise PGLError(
            f"{folder} holds no complete case for training: looked for case_00000/imaging.nii.gz and "
            "segmentation.nii.gz; python3 -m starter_code.get_imaging in the repository downloads the images"
        )
    return DownloadedDataset(
        *("KiTS19", 64, folder, KITS19),
        expected=len(KITS19_NAMES),
        labels=KITS19_LABELS,
        missing=missing,
        notes=_unlabelled(images, KITS19_NAMES),
        rewrite_image=z_first,
        rewrite_label=z_first,
        **divided,
    )


def read_bcv(folder: Path, split: str = "random", seed: int = DEFAULT_SEED) -> DownloadedDataset:
    """BCV, also BTCV: 30 labelled abdominal CT scans, 13 organs (https://www.synapse.org/#!Synapse:syn3193805).

    Args:
        folder: A folder that holds Training/img/img0001.nii.gz and Training/label/label0001.nii.gz at any depth.
        split: "random", the paper's 15 / 15, or "published", 21 / 9.
        seed: Decides which scans are for testing (only if the split is random) and for validation.

    Raises:
        PGLError: If there is no complete scan, or the folder holds the averaged images of that project.
    """
    images = files_by_case(folder, r".*/(img\d{4})")
    labels = {f"img{number}": path for number, path in files_by_case(folder, r".*/label(\d{4})").items()}
    if not images and files_by_case(folder, r".*/(DET\d+)_avg"):
        raise PGLError(
            f"{folder} holds averaged images (DET..._avg.nii.gz), about 1 MB each: these are not the abdominal scans; "
            "download Abdomen/RawData.zip"
        )
    if not images:
        raise PGLError(f"{folder} holds no BCV scan: looked for files such as Training/img/img0001.nii.gz")
    cases, missing = complete_cases(BCV_NAMES, images, labels)
    held_out = BCV_PUBLISHED_TEST if split == "published" else hold_out(BCV_NAMES, BCV_TEST, seed)
    divided = divide(cases, held_out, seed, rule=split)
    if not divided["training"]:
        raise PGLError(f"{folder} holds no training scan with a label: looked for img0001 and label0001")
    return DownloadedDataset(
        *("BCV", 17, folder, BCV),
        expected=len(BCV_NAMES),
        labels=BCV_LABELS,
        missing=missing,
        notes=_unlabelled(images, BCV_NAMES),
        **divided,
    )


def _unlabelled(images: dict[str, Path], names: list[str]) -> tuple[str, ...]:
    others = len(set(images) - set(names))
    return (f"{others} scans without labels are not used",) if others else ()
