"""KiTS19: 210 labelled CT scans of kidneys and kidney tumours (https://github.com/neheller/kits19)."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_pgl.dataset_conversion.collection import Collection, ConversionError
from nnunetv2_pgl.dataset_conversion.finding import files_by_case, labelled_cases
from nnunetv2_pgl.dataset_conversion.images import z_first
from nnunetv2_pgl.dataset_conversion.licences import KITS19
from nnunetv2_pgl.dataset_conversion.splits import DEFAULT_SEED, hold_out, make_folds

LABELS = {"background": 0, "kidney": 1, "tumour": 2}
NUM_LABELLED = 210
NUM_TEST = 105  # paper, section 4.2: divided equally and randomly


def read_kits19(folder: Path, seed: int = DEFAULT_SEED) -> Collection:
    """Find the labelled cases and draw the paper's 105 / 105.

    The files have their slices along the first NIfTI axis, which SimpleITK and nnU-Net call x; they are turned to z
    first, as all other scans are.

    Args:
        folder: The repository or its folder ``data``, which holds case_00000/imaging.nii.gz and segmentation.nii.gz.
        seed: Decides which cases are for testing and for validation.

    Raises:
        ConversionError: If there is no complete case, or this is a later KiTS.
    """
    names = [f"case_{number:05d}" for number in range(NUM_LABELLED)]
    images = files_by_case(folder, r"(case_\d{5})/imaging")
    labels = files_by_case(folder, r"(case_\d{5})/segmentation")
    if set(labels) - set(names):
        raise ConversionError(
            f"{folder} holds labels beyond {names[-1]} ({max(labels)}): this is not KiTS19 but a later KiTS, whose "
            "labels differ"
        )
    cases, missing = labelled_cases(names, images, labels)
    held_out = hold_out(names, NUM_TEST, seed)
    training = tuple(case for name, case in cases.items() if name not in held_out)
    if not training:
        raise ConversionError(
            f"{folder} holds no complete case for training: looked for case_00000/imaging.nii.gz and "
            "segmentation.nii.gz; python3 -m starter_code.get_imaging in the repository downloads the images"
        )
    unlabelled = len(set(images) - set(names))
    return Collection(
        "KiTS19",
        64,
        folder,
        KITS19,
        training=training,
        test=tuple(case for name, case in cases.items() if name in held_out),
        expected=NUM_LABELLED,
        labels=LABELS,
        folds=make_folds([case.name for case in training], seed),
        split={"rule": "random", "seed": seed},
        missing=tuple(missing),
        notes=(f"{unlabelled} scans without labels are not used",) if unlabelled else (),
        rewrite_image=z_first,
        rewrite_label=z_first,
    )
