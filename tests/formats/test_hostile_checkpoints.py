"""Checkpoints that somebody has made to harm or that have come to harm: read right or refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import Environment

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.export.hub_folder import write_hub_folder
from nnunetv2_pgl.export.weights_file import PublishedWeights
from nnunetv2_pgl.formats.weights_only import CheckpointError, load_weights_only
from nnunetv2_pgl.info.command import describe, facts
from nnunetv2_pgl.info.difference import difference_lines
from nnunetv2_pgl.networks import PlanError, PlannedEncoder, PlannedNetwork
from nnunetv2_pgl.trainers.plans import ModelNetwork
from nnunetv2_pgl.trainers.preprocessing_check import intensity_difference, spacing_difference
from nnunetv2_pgl.transfer import load_encoder
from pretraining.settings.table import RunOptions
from pretraining.training.pretrain import pretrain
from pretraining.training.state import TrainingState, initial_state
from tests.golden.make import FOLDERS, GOLDEN, RUN, config, machine
from tests.hostile import harmed, variants
from tests.planned_networks import small_network

FINAL = GOLDEN / "nnUNet_results" / "PGL" / RUN / "checkpoint_final.pth"
STATE = FINAL.with_name("checkpoint_latest.pth")
GOOD = load_checkpoint(FINAL)


@pytest.fixture(autouse=True)
def templates_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the template of the model card would take half of the time."""
    compile_template, compiled = Environment.compile, {}

    def once(self: Environment, source: Any, *arguments: Any) -> Any:
        if source not in compiled:
            compiled[source] = compile_template(self, source, *arguments)
        return compiled[source]

    monkeypatch.setattr(Environment, "compile", once)


def use(path: Path) -> None:
    """All that a checkpoint is read for."""
    checkpoint = load_checkpoint(path)
    describe(checkpoint)
    difference_lines((GOOD, checkpoint), (facts(GOOD), facts(checkpoint)), (FINAL, path), ("0", "1"))
    ModelNetwork.from_dict(checkpoint.architecture)
    load_encoder(PlannedEncoder(small_network(features=(4, 8))), checkpoint.encoder_weights, str(path))
    spacing_difference(checkpoint.pgl.get("spacing"), (1, 1, 1))
    ct = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1.0, "percentile_99_5": 1.0}
    intensity_difference(checkpoint.pgl.get("intensity"), ["CTNormalization"], {"0": ct})
    shutil.rmtree(path.parent / "hub", ignore_errors=True)
    write_hub_folder(PublishedWeights.from_file(path), path.parent / "hub", "MIT")


def is_refused(use: Callable[[Path], None], path: Path, what: str) -> bool:
    """Whether it is refused as it should be; any other error fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of unusual pickle protocols
            use(path)
    except PGLError:
        return True
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return False


def repacked(change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The encoder with another pickle in it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(FINAL) as good, zipfile.ZipFile(packed, "w", method) as archive:
        for name in good.namelist():
            content = good.read(name)
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return packed.getvalue()


def test_whatever_bytes_it_has(tmp_path: Path) -> None:
    """1,000 in the archive, 1,000 in the pickle, which would else hide behind the archive's checksums."""
    rng, path = random.Random(0), tmp_path / "harmed.pth"
    refused = 0
    for number in range(1000):
        path.write_bytes(harmed(FINAL.read_bytes(), rng))
        refused += is_refused(use, path, f"archive {number}")
        path.write_bytes(repacked(lambda content: harmed(content, rng)))
        refused += is_refused(use, path, f"pickle {number}")
    assert 1000 < refused < 2000


@pytest.mark.parametrize("entry", ["pgl", "nnssl_adaptation_plan", "citations", "network_weights"])
def test_whatever_it_says_of_itself(tmp_path: Path, entry: str) -> None:
    content, path = torch.load(FINAL, weights_only=True), tmp_path / "wrong.pth"
    content["pgl"]["config"] = {"datasets": ["x"], "views": {"size": [8, 8, 8]}}  # of hundreds that are only shown
    content["pgl"]["untrained_stages"] = ["stages.3"]
    content["pgl"]["sources"] = [{"name": "x", "scans": 3, "held_out": 1, "channels": ["CT"], "licence": "MIT"}]
    content["pgl"]["metrics_before"] = {"flipped_right": 0.1}
    content["nnssl_adaptation_plan"]["architecture_plans"] = {"arch_class_name": "x", "arch_kwargs": {"n_stages": 2}}
    refused = accepted = 0
    for what, value in variants(content[entry]):
        torch.save({**content, entry: value}, path)
        if is_refused(use, path, f"{entry} {what}"):
            refused += 1
        else:
            accepted += 1
    assert refused
    assert accepted or entry == "network_weights"


def test_whatever_a_state_says(tmp_path: Path) -> None:
    """Of the run that --c continues."""
    content, path = torch.load(STATE, weights_only=True), tmp_path / "checkpoint_latest.pth"
    state = fresh_state()
    assert not is_refused(lambda path: restore(state, path), STATE, "good")
    small = {key: value for key, value in content.items() if key not in ("objective", "optimizer", "config")}
    small["history"] = [dict(islice(record.items(), 3)) for record in small["history"]]
    for what, value in variants(small):
        torch.save({**content, **value} if isinstance(value, dict) else value, path)
        is_refused(lambda path: restore(state, path), path, what)
    for entry in ("objective", "optimizer"):
        for what, value in islice(variants(content[entry]), 100):
            torch.save({**content, entry: value}, path)
            is_refused(lambda path: restore(fresh_state(), path), path, f"{entry} {what}")


def fresh_state() -> TrainingState:
    state = initial_state(config(), torch.device("cpu"), None)
    state.scans = torch.load(STATE, weights_only=True)["scans"]
    state.steps_per_epoch = 2
    return state


def restore(state: TrainingState, path: Path) -> None:
    state.restore(path)
    assert state.step == len(state.history) * state.steps_per_epoch + state.so_far.steps
    assert state.so_far.steps >= 0


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "hostile.pth"
    hostile = Payload(witness)
    for content in (hostile, {"pgl": hostile}, {"network_weights": {"encoder.x": hostile}, "pgl": {}}, [hostile]):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="could run code"):
            load_checkpoint(path)
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_checkpoint(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists(), "the payload is none"


def test_a_run_is_not_continued_from_pickled_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for folder in FOLDERS:
        shutil.copytree(GOLDEN / folder, tmp_path / folder)
    state = tmp_path / "nnUNet_results" / "PGL" / RUN / "checkpoint_latest.pth"
    torch.save({"training_state": 2, "objective": Payload(witness)}, state)
    with machine(tmp_path), pytest.raises(CheckpointError, match="could run code"):
        pretrain(config(), RunOptions(RUN, True, "cpu", 1, 1))
    assert not witness.exists()


def test_a_plan_cannot_name_what_is_to_be_called(tmp_path: Path) -> None:
    """nnU-Net calls what its plans name; with Popen as activation that is any program."""
    witness = tmp_path / "witness"
    for name in ("subprocess.Popen", "torch.nn.modules.module.functools.partial", "nowhere.LeakyReLU", ["x"], 3):
        network = small_network(nonlin=name, nonlin_kwargs={"args": ["touch", str(witness)]})
        with pytest.raises(PlanError, match=r"its nonlin is .*, which is not a layer of PyTorch"):
            PlannedNetwork.from_dict(network.to_dict(), "plans.json")
    assert not witness.exists()


def test_whatever_a_plan_says_of_a_network() -> None:
    for what, values in variants(small_network(features=(4, 8)).to_dict()):

        def build(_: Path, values: Any = values) -> None:
            PlannedEncoder(PlannedNetwork.from_dict(values, "plans.json"))

        is_refused(build, FINAL, what)


def test_bombs(tmp_path: Path) -> None:
    """Small files that would take the memory of many."""
    path = tmp_path / "bomb.pth"
    path.write_bytes(repacked(lambda content: content + bytes(10**8), zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match=r"bomb\.pth: would unpack to 1000\d{5} bytes"):
        load_weights_only(path)
    content = torch.load(FINAL, weights_only=True)
    one, at = torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64)
    repeated, nowhere = one.expand(10**12), torch.empty(10**12, device="meta")
    sparse = torch.sparse_coo_tensor(at, one, (10**12,), check_invariants=True)
    for bomb in (repeated, nowhere, sparse):
        torch.save({**content, "network_weights": {"encoder.stages.0": bomb}}, path)
        with pytest.raises(CheckpointError, match=r"bomb\.pth: "):
            load_checkpoint(path)
