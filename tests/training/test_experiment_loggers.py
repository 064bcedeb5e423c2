"""TensorBoard and Weights & Biases have the numbers of metrics.jsonl, once, however the run was interrupted."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import Stopped
from pretraining.settings.table import RunOptions
from pretraining.training import experiment_loggers
from pretraining.training.experiment_loggers import ExperimentLoggers, require_loggers
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from tests.training.small_runs import CONFIG, log_of, records, told_to_stop

BOTH = RunOptions("", False, "cpu", 1, 1, tensorboard=True, wandb=True)
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "nnUNet_wandb_project", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def in_metrics(folder: RunFolder) -> Curves:
    curves: Curves = {}
    for record in records(folder):
        for name in record.keys() - {"epoch"}:
            curves.setdefault(name, []).append((record["epoch"], record[name]))
    return curves


def in_tensorboard(folder: RunFolder) -> Curves:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder.path / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(path: Path) -> Iterator[Any]:
    """The messages in an offline run: LevelDB's log format, after seven bytes."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = messages.Record()
            message.ParseFromString(parts)
            yield message
            parts = b""


def in_wandb(folder: RunFolder) -> Curves:
    sys.modules["wandb"].teardown()  # its process has written all when it has ended
    (path,) = (folder.path / "wandb" / "latest-run").glob("*.wandb")
    curves: Curves = {}
    for record in wandb_records(path):
        for item in record.history.item:
            if not item.nested_key[0].startswith("_"):
                step = record.history.step.num
                curves.setdefault(item.nested_key[0], []).append((step, float(json.loads(item.value_json))))
    return curves


def run(name: str, **changes: Any) -> RunFolder:
    pretrain(CONFIG, replace(BOTH, name=name, **changes))
    return RunFolder.from_name(name)


def require_same(folder: RunFolder) -> None:
    expected = in_metrics(folder)
    assert len(expected["loss"]) == CONFIG.epochs == 2
    assert len(expected) > 10
    assert in_wandb(folder) == expected
    rounded = {name: [(e, float(np.float32(v))) for e, v in curve] for name, curve in expected.items()}
    assert in_tensorboard(folder) == rounded  # which has 32 bits


def test_both_have_the_numbers_of_metrics(folders: Path) -> None:
    logged = run("logged")
    require_same(logged)
    plain = run("plain", tensorboard=False, wandb=False)
    assert not [name for name in ("tensorboard", "wandb", "wandb_id.txt") if (plain.path / name).exists()]
    assert plain.config_file.read_bytes() == logged.config_file.read_bytes()
    assert [r["loss"] for r in records(plain)] == [r["loss"] for r in records(logged)]


@pytest.mark.parametrize("on_before", [True, False])
def test_a_continued_run_has_each_epoch_once(folders: Path, monkeypatch: pytest.MonkeyPatch, on_before: bool) -> None:
    """Stopped within the second epoch, with loggers or without; the second time killed with an epoch more in them."""
    name = f"continued_{on_before}"
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(5)(patch)):
        run(name, tensorboard=on_before, wandb=on_before)
    folder = RunFolder.from_name(name)
    before = (folder.path / "wandb_id.txt").read_text() if on_before else None
    saved = folder.latest.read_bytes()
    run(name, resume=True)
    require_same(folder)
    folder.latest.write_bytes(saved)  # as if it had been killed before it saved the last epoch
    run(name, resume=True)
    require_same(folder)
    run(name, resume=True)  # nothing is left to train
    require_same(folder)
    assert before in (None, (folder.path / "wandb_id.txt").read_text())


def test_a_logger_that_fails_costs_one_warning(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards = pytest.importorskip("torch.utils.tensorboard")
    add = boards.SummaryWriter.add_scalar

    def full(self: Any, name: str, value: float, epoch: int) -> None:
        if epoch == 1:
            raise OSError(28, "No space left on device")
        add(self, name, value, epoch)

    monkeypatch.setattr(boards.SummaryWriter, "add_scalar", full)
    folder = run("failing")
    assert folder.final.is_file()
    (warning,) = [line for line in log_of(folder).splitlines() if "WARNING: TensorBoard" in line]
    assert "No space left on device" in warning
    assert warning.endswith("metrics.jsonl has all of them")
    assert in_wandb(folder) == in_metrics(folder)


class Service:
    """A stand-in for Weights & Biases that has got some epochs already."""

    def __init__(self, step: int) -> None:
        self.step, self.logged, self.codes, self.arguments = step, [], [], []  # type: ignore[var-annotated]
        self.settings = SimpleNamespace(mode="online")
        self.Settings = dict

    def init(self, **arguments: Any) -> Service:
        self.arguments.append(arguments)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=self.settings)

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return False

    def teardown(self) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service(step=1)
    monkeypatch.setitem(sys.modules, "wandb", made)  # type: ignore[arg-type]
    monkeypatch.setattr(experiment_loggers, "find_spec", lambda name: SimpleNamespace(origin=name))
    return made


def test_the_service_gets_what_it_lacks_and_no_paths(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_wandb_project", "encoders")
    config = replace(CONFIG, datasets=("Dataset501_A", "/home/someone/scans"), exclude=("a_name", "another"))
    history = [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0, "note": "text"}]
    options, lines = replace(BOTH, tensorboard=False), []  # type: ignore[var-annotated]
    ids = []
    for resume in (False, True, False):
        with ExperimentLoggers(options, tmp_path / "my_run", config, lines.append) as loggers:
            (tmp_path / "my_run").mkdir(exist_ok=True)
            loggers.start(history, resume)
            loggers.add({"epoch": 2, "loss": math.nan})
        ids.append(service.arguments[-1]["id"])
    assert not lines
    assert ids[0] == ids[1] != ids[2]  # a run that starts from the first step again is another curve
    assert service.logged[0] == (1, {"loss": 1.0})
    assert [step for step, _ in service.logged] == [1, 2] * 3
    arguments = service.arguments[0]
    assert (arguments["project"], arguments["mode"], arguments["name"]) == ("encoders", "offline", "my_run")
    assert arguments["config"]["datasets"] == ["Dataset501_A", "scans"]
    assert "someone" not in json.dumps(arguments["config"])
    assert "a_name" not in json.dumps(arguments["config"])
    assert service.codes == [0, 0, 0]
    stopped = ExperimentLoggers(options, tmp_path / "my_run", config, lines.append)
    stopped.start([], True)
    stopped.__exit__(Stopped, Stopped(), None)
    assert service.codes[-1] == 1


def test_an_account_is_needed_only_online(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    require_loggers(BOTH)
    monkeypatch.delenv("nnUNet_wandb_mode")
    with pytest.raises(PGLError, match=r"^--wandb: no account is set up: .* nnUNet_wandb_mode=offline$"):
        require_loggers(BOTH)
    require_loggers(replace(BOTH, wandb=False))
    service.settings.mode = "disabled"
    require_loggers(BOTH)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])  # the second is a folder of that name
def test_what_is_not_installed_is_named(name: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_loggers, "find_spec", lambda asked: found if asked == name else None)
    require_loggers(RunOptions())
    with pytest.raises(PGLError, match=rf'^--{name}: {name} is not installed: pip install "\.\[{name}\]"'):
        require_loggers(replace(RunOptions(), **{name: True}))
