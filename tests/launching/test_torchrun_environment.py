"""What schedulers and job scripts leave in the environment: a place among other processes, or one clear line."""

from __future__ import annotations

import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import end
from pretraining.launching.torchrun_environment import ProcessRank, read_torchrun_environment
from tests.machine import Machine, output_of

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEETING = "MASTER_ADDR=localhost MASTER_PORT=29500"


def put(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("=", 1))


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ("", ProcessRank(0, 1, 0, 1)),
        ("WORLD_SIZE=1", ProcessRank(0, 1, 0, 1)),
        ("WORLD_SIZE=1 RANK=0", ProcessRank(0, 1, 0, 1)),
        (f"WORLD_SIZE=4 RANK=3 {MEETING}", ProcessRank(3, 4, 0, 4)),
        (f"WORLD_SIZE=8 RANK=7 LOCAL_WORLD_SIZE=4 LOCAL_RANK=3 {MEETING}", ProcessRank(7, 8, 3, 4)),
    ],
)
def test_the_place_of_a_process(environment: str, place: ProcessRank, monkeypatch: pytest.MonkeyPatch) -> None:
    put(environment, monkeypatch)
    assert read_torchrun_environment() == place


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("WORLD_SIZE=2", "has WORLD_SIZE=2, but RANK is not set, so that"),
        ("RANK=1", "has RANK=1, but WORLD_SIZE is not set, so that"),
        ("WORLD_SIZE=2 RANK=1", "has WORLD_SIZE=2 and RANK=1, but MASTER_ADDR and MASTER_PORT are not set, so that"),
        ("WORLD_SIZE=2 RANK=1 MASTER_PORT=1 MASTER_ADDR=", "but MASTER_ADDR is not set, so that"),
        ("WORLD_SIZE=two", "has WORLD_SIZE=two, which is not a whole number"),
        ("WORLD_SIZE= RANK=0", "has WORLD_SIZE=, which is not a whole number"),
        ("WORLD_SIZE=0", "has WORLD_SIZE=0, which is less than 1"),
        ("WORLD_SIZE=2 RANK=1.0", "has RANK=1.0, which is not a whole number"),
        ("WORLD_SIZE=2 RANK=-1", "has RANK=-1, which is less than 0"),
        ("WORLD_SIZE=2 RANK=2", "has RANK=2, but WORLD_SIZE is 2, so that it can be at most 1"),
        ("WORLD_SIZE=1 RANK=1", "has RANK=1, but WORLD_SIZE is 1, so that it can be at most 0"),
        ("WORLD_SIZE=2 RANK=1 MASTER_ADDR=a MASTER_PORT=b", "has MASTER_PORT=b, which is not a whole number"),
        ("WORLD_SIZE=2 RANK=1 MASTER_ADDR=a MASTER_PORT=65536", "has MASTER_PORT=65536, but a port is at most 65535"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_RANK=x {MEETING}", "has LOCAL_RANK=x, which is not a whole number"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_RANK=2 {MEETING}", "has LOCAL_RANK=2, but LOCAL_WORLD_SIZE is 2"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_WORLD_SIZE=4 {MEETING}", "has LOCAL_WORLD_SIZE=4, but WORLD_SIZE, which"),
    ],
)
def test_an_impossible_place(
    environment: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(environment, monkeypatch)
    with pytest.raises(PGLError) as refused:
        read_torchrun_environment()
    assert message in str(refused.value)
    unset = [name for name in ("WORLD_SIZE", "RANK") if f"{name}=" in environment]
    assert f"; unset {' and '.join(unset)} to train with this process alone" in str(refused.value)
    for name in unset:  # the advice helps
        monkeypatch.delenv(name)
    assert read_torchrun_environment() == ProcessRank()


def test_the_command_ends_with_one_line(machine: Machine) -> None:
    """Rather than train alone, as each of the others would."""
    for variables, why in (({"WORLD_SIZE": "2"}, "RANK is not set"), ({"WORLD_SIZE": "x"}, "is not a whole number")):
        output = output_of(machine.start("pgl_pretrain", "-d", "501", "-device", "cpu", **variables), 1)
        assert output.startswith(f"pgl_pretrain: the environment has WORLD_SIZE={variables['WORLD_SIZE']}, ")
        assert why in output
        assert output.count("\n") == 1


@pytest.mark.parametrize("environment", ["WORLD_SIZE=2", "WORLD_SIZE=x", "RANK=1"])
def test_a_process_that_stands_alone_ends_as_such(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary files are removed, whatever the environment holds."""
    put(environment, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        end("over", 3)
    assert ended.value.code == 3
