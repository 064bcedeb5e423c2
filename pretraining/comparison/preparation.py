"""The step before the trainings: planning, splits, test images, names to exclude, plans that need no checkpoint."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import replacing
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.files import read_json, write_file, write_json
from pretraining.comparison.runs import training_runs, write_plans
from pretraining.comparison.settings import ComparisonSettings
from pretraining.data import find_scans
from pretraining.file_lock import FileLock
from pretraining.settings.table import DEFAULT_PLANS


def prepare(comparison: Comparison) -> None:
    """Makes all that a comparison needs before its first pre-training and training; quick where it is there.

    Args:
        comparison: The caller keeps other processes from preparing it, and has read it since, because another process
            may have extended it before.

    Raises:
        PGLError: The dataset cannot be compared on, or a command of nnU-Net has failed.
    """
    folder, settings, splits = comparison.folder, comparison.settings, comparison.splits
    for warning in comparison.warnings:
        print(f"WARNING: {warning}", flush=True)
    comparison.save()
    write_json(folder.splits, asdict(splits))
    write_file(folder.test_cases, "".join(f"{name}\n" for name in splits.test))
    write_file(folder.excluded, "".join(f"{name}\n" for name in names_to_exclude(comparison)))
    _link_test_images(comparison)
    with comparison.alone_with_dataset() as lock:
        _plan_and_preprocess(comparison, lock)
    for run in training_runs(settings):
        init = comparison.init(run.init)
        if init.source is None and (init.is_random or init.given):
            write_plans(comparison, run)


def is_prepared(comparison: Comparison) -> bool:
    """Whether `prepare` is done, with the present settings."""
    folder = comparison.folder
    if not folder.settings.is_file() or ComparisonSettings.load(folder.settings) != comparison.settings:
        return False
    return folder.splits.is_file() and folder.excluded.is_file() and comparison.base_plans.is_file()


def names_to_exclude(comparison: Comparison) -> list[str]:
    """The scans among those to pre-train on that are test cases.

    They are recognised by their files, however the dataset is named, and by the name of the case. A scan of another
    source that has the name of a test case by chance is excluded too: it may be a copy in another folder.
    """
    test = set(comparison.splits.test)
    files = {image.resolve() for case in test for image in comparison.dataset.case(case).images}
    scans, _ = find_scans(comparison.settings.pretrain_on)
    return sorted(
        scan.name
        for scan in scans
        if scan.identifier in test or not files.isdisjoint(Path(file).resolve() for file in scan.files)
    )


def _link_test_images(comparison: Comparison) -> None:
    """Links, or copies where links cannot be made, named as nnU-Net names images."""
    folder, dataset = comparison.folder.test_images, comparison.dataset
    folder.mkdir(parents=True, exist_ok=True)
    for case in comparison.splits.test:
        for channel, image in enumerate(dataset.case(case).images):
            link = folder / f"{case}_{channel:04d}{dataset.file_ending}"
            if link.exists():
                continue
            link.unlink(missing_ok=True)  # it may point to where the data were
            try:
                link.symlink_to(image.resolve())
            except OSError:
                with replacing(link, shared=True) as temporary:
                    shutil.copyfile(image, temporary)


def _plan_and_preprocess(comparison: Comparison, lock: FileLock) -> None:
    """Runs what is still missing of nnU-Net's planning and preprocessing.

    The fingerprint, and so the plans, also see the images of imagesTr that are held out as test cases: spacing and
    intensity statistics, the same for all initialisations.
    """
    settings, runner = comparison.settings, comparison.runner("prepare", lock)
    if os.environ.get("nnUNet_n_proc_DA") == "0":  # noqa: SIM112 - nnU-Net's name
        runner.set_variable("nnUNet_n_proc_DA", "1")  # nnU-Net's planner gives torch as many threads: 0 would fail
    options = ["-c", settings.configuration, "-np", str(comparison.processes)]
    if not comparison.base_plans.is_file():
        if settings.plans != DEFAULT_PLANS:
            raise PGLError(f"-p {settings.plans}: {comparison.base_plans} is missing; plan it with nnU-Net first")
        command = ["nnUNetv2_plan_and_preprocess", "-d", settings.dataset_id, *options]
        runner.run([*command, "-npfp", str(comparison.processes), "--verify_dataset_integrity"])
    elif missing_cases(comparison):
        runner.run(["nnUNetv2_preprocess", "-d", settings.dataset_id, "-plans_name", settings.plans, *options])
    if missing := missing_cases(comparison):
        raise PGLError(f"case {missing[0]} is not preprocessed ({len(missing)} are not); see the log of nnU-Net")


def missing_cases(comparison: Comparison) -> list[str]:
    """Cases to train or validate on that nnU-Net has not preprocessed for the configuration.

    Raises:
        PGLError: The plans do not have the configuration, or it is the second stage of a cascade.
    """
    settings = comparison.settings
    configurations = read_json(comparison.base_plans).get("configurations", {})
    name = settings.configuration
    if name not in configurations:
        raise PGLError(f"-c {name}: {comparison.base_plans} has the configurations {', '.join(configurations)}")
    if previous := configurations[name].get("previous_stage"):
        raise PGLError(
            f"-c {name}: needs the segmentations of {previous} for each training, which pgl_compare does not make; "
            f"compare 3d_fullres or {previous}"
        )
    while "data_identifier" not in configurations[name]:
        name = configurations[name]["inherits_from"]
    data = Path(nnUNet_preprocessed) / settings.dataset / configurations[name]["data_identifier"]
    wanted = {case for fold in comparison.splits.folds for case in (*fold.training_by_seed[0], *fold.validation)}
    if not data.is_dir() or not any(data.iterdir()):
        return sorted(wanted)
    return sorted(wanted - set(infer_dataset_class(str(data)).get_identifiers(str(data))))
