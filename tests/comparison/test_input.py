"""Wrong input ends in one line before anything runs; doubts about it are warnings."""

from __future__ import annotations

import json
import os

import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from pretraining.settings.config import PretrainConfig
from tests.nnunet_models import nnunet_content, plans_of
from tests.planned_networks import small_network
from tests.stand_in_commands import NAME, TINY, CompareCommand, studies, tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-device", "cpu"), "-d is missing"),
        (("-o", "nothing", "-device", "cpu"), "-d is missing: there is no comparison"),
        (("-d", "8", "-device", "cpu"), "dataset 8 does not exist"),
        ((*TINY, "-o", "a__b"), "-o 'a__b'"),
        ((*TINY, "-tr", "nnUNetTrainer"), "-tr nnUNetTrainer: cannot start from the checkpoints"),
        ((*TINY, "-tr", "nnUNetTrainerPGLScratch"), "-tr nnUNetTrainerPGLScratch: cannot start from the checkpoints"),
        ((*TINY, "-tr", "nnUNetTrainerPGX"), "-tr nnUNetTrainerPGX: nnU-Net finds no such trainer"),
        ((*TINY, "--part", "0", "2"), "add --only pretrain or --only train"),
        ((*TINY, "--only", "train", "--part", "2", "2"), "--part 2 2: I runs from 0 to N - 1"),
        ((*TINY, "--folds", "5"), "--folds 5: folds are 0 to 4"),
        ((*TINY, "--checkpoint", "pgl"), "--checkpoint 'pgl': give NAME=PATH"),
        ((*TINY, "--test_cases", "/none.txt"), "--test_cases /none.txt: cannot be read"),
        ((*TINY, "--only", "report"), "not prepared"),
        ((*TINY, "--dry_run", "--results", "a.csv"), "--results adds runs, --dry_run and --slurm change none"),
        ((*TINY, "--slurm", "--results", "a.csv"), "--results adds runs, --dry_run and --slurm change none"),
        ((*TINY, "--init", "pgl", "simclr"), "--init simclr: unknown"),
        ((*TINY, "--fractions", "0"), "--fractions 0: must be above 0 and at most 1"),
        ((*TINY, "--seeds", "0"), "--seeds 0: must be at least 1"),
        ((*TINY, "-c", "2d"), "-c 2d: PGL's encoder is 3D; use 3d_fullres or 3d_lowres"),
    ],
)
def test_wrong_input_ends_in_one_line(compare: CompareCommand, words: tuple[str, ...], message: str) -> None:
    before = tree(compare.root)
    assert message in compare.refused(*words)
    assert tree(compare.root) == before


def test_a_cascade_is_refused_before_anything_is_trained(compare: CompareCommand) -> None:
    """Its previous stage would have to be trained for each of the runs."""
    configurations = {
        "3d_fullres": {"data_identifier": "data"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    folder = compare.root / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    plans = {"plans_name": "nnUNetPlans", "configurations": configurations}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for words in (TINY, (*TINY, "--dry_run")):
        line = compare.refused(*words, "-c", "3d_cascade_fullres")
        assert "-c 3d_cascade_fullres: needs the segmentations of 3d_lowres for each training" in line


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_missing_variables(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    assert f"export {variable}=" in compare.refused(*TINY)


def test_one_dash_or_two_and_options_as_values(compare: CompareCommand, capsys: pytest.CaptureFixture[str]) -> None:
    for dash in ("-", "--"):
        words = (f"{dash}init", "random", f"{dash}predict_options", "--disable_tta", f"{dash}o", f"name{len(dash)}")
        _, code = compare.call("-d", "7", "-device", "cpu", *words, "--only", "prepare")
        assert code == 0
    stored = [
        json.loads((compare.folder.parent / name / "settings.json").read_text())["predict_options"]
        for name in ("name1", "name2")
    ]
    assert stored == ["--disable_tta", "--disable_tta"]
    _, code = compare.call(*TINY, "--fraction", "0.5")  # no abbreviations
    assert code == 2


def test_without_a_gpu_what_needs_none_still_runs(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("-d", "7", "--init", "random", "-np", "1")
    assert compare.refused(*words) == "pgl_compare: no CUDA device was found: add -device cpu (or mps)"
    ran, code = compare.call(*words, "--only", "prepare")
    assert (len(ran), code) == (1, 0)


def test_a_random_start_beside_encoders_of_two_kinds_is_announced(compare: CompareCommand) -> None:
    words = ("-d", "7", "-device", "cpu", "--only", "prepare", "--init", "random", "pgl", "other")
    _, code = compare.call(*words, "--define", "other=-m pgl -norm batch")
    assert code == 0
    assert "the random start has that of pgl" in compare.output


@pytest.mark.parametrize(
    ("number", "listed", "doubt"),
    [
        (3, ("scan_1", "scan_2", "another"), None),
        (3, ("scan_1", "another", "one"), "test cases too"),
        (2, None, "perhaps on test cases"),
        (1, None, "test cases too"),
    ],
)
def test_a_checkpoint_that_has_seen_test_cases_is_announced(
    compare: CompareCommand, number: int, listed: tuple[str, ...] | None, doubt: str | None
) -> None:
    names = compare.root / "test.txt"
    names.write_text("scan_1\nscan_2\n")
    architecture = {"name": "resnet50", "norm": "batch", "centred": True, "strides": [8, 8, 8], "in_channels": 1}
    pgl = {"architecture": architecture, "datasets": [NAME], "config": {"exclude": number}}
    save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1)}, pgl, {}), compare.root / "mine.pth")
    if listed is not None:
        (compare.root / "config.json").write_text(json.dumps(PretrainConfig((NAME,), exclude=listed).to_dict()))
    words = (
        "--init",
        "random",
        "mine",
        "--checkpoint",
        f"mine={compare.root / 'mine.pth'}",
        "--test_cases",
        str(names),
    )
    ran, code = compare.call("-d", "7", "-device", "cpu", "--seeds", "1", "--fractions", "1", *words)
    assert code == 0
    assert not [line for line in ran if line.startswith("pgl_pretrain")]
    warned = dict(studies[-1].facts).get("Warning")
    if doubt is None:
        assert "WARNING" not in compare.output
        assert warned is None
    else:
        assert f"WARNING: {warned}" in compare.output
        assert f"pre-trained on {NAME}, {doubt}" in warned


@pytest.mark.parametrize("dataset", [NAME, "Dataset901_Other"])
def test_a_model_that_has_seen_labels_is_announced(compare: CompareCommand, dataset: str) -> None:
    network = small_network()
    torch.save(nnunet_content(network, plans=plans_of(network, dataset_name=dataset)), compare.root / "model.pth")
    words = ("--init", "random", "model", "--checkpoint", f"model={compare.root / 'model.pth'}")
    ran, code = compare.call("-d", "7", "-device", "cpu", "--seeds", "1", "--fractions", "1", *words)
    assert code == 0
    assert not [line for line in ran if line.startswith("pgl_pretrain")]
    assert ("was trained with labels of" in compare.output) is (dataset == NAME)
    warned = dict(studies[-1].facts).get("Warning", "")
    assert warned.endswith(f"was trained with labels of {NAME}, perhaps with those of test cases") is (dataset == NAME)
