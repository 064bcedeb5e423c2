"""BCV, also BTCV: 30 labelled abdominal CT scans with 13 organs (https://www.synapse.org/#!Synapse:syn3193805)."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_pgl.dataset_conversion.collection import Collection, ConversionError
from nnunetv2_pgl.dataset_conversion.finding import files_by_case, labelled_cases
from nnunetv2_pgl.dataset_conversion.licences import BCV
from nnunetv2_pgl.dataset_conversion.splits import DEFAULT_SEED, hold_out, make_folds

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
LABELS = {"background": 0, **{organ: value for value, organ in enumerate(ORGANS, start=1)}}
NAMES = [f"img{number:04d}" for number in (*range(1, 11), *range(21, 41))]
NUM_TEST = 15  # paper, section 4.2: divided equally and randomly
# The split that the paper's group published with a later paper: 21 for training, these 9 for testing.
PUBLISHED_TEST = frozenset(f"img{number:04d}" for number in range(32, 41))
SPLITS = ("random", "published")


def read_bcv(folder: Path, split: str = "random", seed: int = DEFAULT_SEED) -> Collection:
    """Find the labelled scans and divide them.

    Args:
        folder: A folder that holds Training/img/img0001.nii.gz and Training/label/label0001.nii.gz at any depth.
        split: "random", the paper's 15 / 15, or "published", 21 / 9.
        seed: Decides which scans are for testing (only if the split is random) and for validation.

    Raises:
        ConversionError: If there is no complete scan, or the folder holds the averaged images of that project.
    """
    images = files_by_case(folder, r".*/(img\d{4})")
    labels = {f"img{number}": path for number, path in files_by_case(folder, r".*/label(\d{4})").items()}
    if not images:
        raise ConversionError(_nothing_found(folder))
    cases, missing = labelled_cases(NAMES, images, labels)
    held_out = PUBLISHED_TEST if split == "published" else hold_out(NAMES, NUM_TEST, seed)
    training = tuple(case for name, case in cases.items() if name not in held_out)
    if not training:
        raise ConversionError(f"{folder} holds no training scan with a label: looked for img0001 and label0001")
    unlabelled = len(set(images) - set(NAMES))
    return Collection(
        "BCV",
        17,
        folder,
        BCV,
        training=training,
        test=tuple(case for name, case in cases.items() if name in held_out),
        expected=len(NAMES),
        labels=LABELS,
        folds=make_folds([case.name for case in training], seed),
        split={"rule": split, "seed": seed},
        missing=tuple(missing),
        notes=(f"{unlabelled} scans without labels are not used",) if unlabelled else (),
    )


def _nothing_found(folder: Path) -> str:
    if files_by_case(folder, r".*/(DET\d+)_avg"):
        return (
            f"{folder} holds averaged images (DET..._avg.nii.gz), about 1 MB each: these are not the abdominal scans; "
            "download Abdomen/RawData.zip"
        )
    return f"{folder} holds no BCV scan: looked for files such as Training/img/img0001.nii.gz"
