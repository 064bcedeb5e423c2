"""What the environment says of a process, and what the process tells torch's process group; without other processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from nnunetv2_pgl.errors import PGLError
from pretraining.launching import distributed
from pretraining.launching.distributed import Processes
from pretraining.launching.errors import end
from tests.machine import Machine, output_of

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEETING = "MASTER_ADDR=localhost MASTER_PORT=29500"


def put(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("=", 1))


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ("", Processes(0, 1, 0, 1)),
        ("WORLD_SIZE=1", Processes(0, 1, 0, 1)),
        ("WORLD_SIZE=1 RANK=0", Processes(0, 1, 0, 1)),
        (f"WORLD_SIZE=4 RANK=3 {MEETING}", Processes(3, 4, 0, 4)),
        (f"WORLD_SIZE=8 RANK=7 LOCAL_WORLD_SIZE=4 LOCAL_RANK=3 {MEETING}", Processes(7, 8, 3, 4)),
    ],
)
def test_the_rank_of_a_process(environment: str, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    put(environment, monkeypatch)
    assert Processes.from_environment() == processes


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("WORLD_SIZE=2", "has WORLD_SIZE=2, but RANK is not set, so that"),
        ("RANK=1", "has RANK=1, but WORLD_SIZE is not set, so that"),
        ("WORLD_SIZE=2 RANK=1", "has WORLD_SIZE=2 and RANK=1, but MASTER_ADDR and MASTER_PORT are not set, so that"),
        ("WORLD_SIZE=2 RANK=1 MASTER_PORT=1 MASTER_ADDR=", "but MASTER_ADDR is not set, so that"),
        ("WORLD_SIZE=two", "has WORLD_SIZE=two, but RANK is not set, so that"),
        ("WORLD_SIZE= RANK=0", "has WORLD_SIZE= and RANK=0, but WORLD_SIZE is not set, so that"),
        ("WORLD_SIZE=1 RANK=1", "has WORLD_SIZE=1 and RANK=1, but MASTER_ADDR and MASTER_PORT are not set, so that"),
        (
            f"WORLD_SIZE=two RANK=1 {MEETING}",
            "has WORLD_SIZE=two and RANK=1 and MASTER_PORT=29500, which is impossible",
        ),
        (f"WORLD_SIZE=0 RANK=0 {MEETING}", "WORLD_SIZE=0 and RANK=0 and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=2 RANK=1.0 {MEETING}", "RANK=1.0 and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=2 RANK=-1 {MEETING}", "RANK=-1 and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=2 RANK=2 {MEETING}", "RANK=2 and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=1 RANK=1 {MEETING}", "RANK=1 and MASTER_PORT=29500, which is impossible"),
        ("WORLD_SIZE=2 RANK=1 MASTER_ADDR=a MASTER_PORT=b", "MASTER_PORT=b, which is impossible"),
        ("WORLD_SIZE=2 RANK=1 MASTER_ADDR=a MASTER_PORT=65536", "MASTER_PORT=65536, which is impossible"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_RANK=x {MEETING}", "LOCAL_RANK=x and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_RANK=2 {MEETING}", "LOCAL_RANK=2 and MASTER_PORT=29500, which is impossible"),
        (f"WORLD_SIZE=2 RANK=1 LOCAL_WORLD_SIZE=4 {MEETING}", "LOCAL_WORLD_SIZE=4 and MASTER_PORT=29500, which is"),
    ],
)
def test_an_incomplete_or_impossible_environment(
    environment: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(environment, monkeypatch)
    with pytest.raises(PGLError) as refused:
        Processes.from_environment()
    assert message in str(refused.value)
    unset = [name for name in ("WORLD_SIZE", "RANK") if f"{name}=" in environment]
    assert f"; unset {' and '.join(unset)} to train with this process alone" in str(refused.value)
    for name in unset:  # the advice helps
        monkeypatch.delenv(name)
    assert Processes.from_environment() == Processes()


def test_the_command_ends_with_one_line(machine: Machine) -> None:
    """Rather than train alone, as each of the others would."""
    impossible = {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for variables, why in (({"WORLD_SIZE": "2"}, "RANK is not set"), (impossible, "which is impossible")):
        output = output_of(machine.start("pgl_pretrain", "-d", "501", "-device", "cpu", **variables), 1)
        assert output.startswith("pgl_pretrain: the environment has WORLD_SIZE=2")
        assert why in output
        assert output.count("\n") == 1


@pytest.mark.parametrize("environment", ["WORLD_SIZE=2", "WORLD_SIZE=x", "RANK=1"])
def test_a_process_that_is_alone_ends_as_such(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary files are removed, whatever the environment holds."""
    put(environment, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        end("over", 3)
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("kind", "backend", "device"), [("cuda", "nccl", torch.device("cuda", 3)), ("cpu", "gloo", None)]
)
def test_the_group_gets_its_device(
    kind: str, backend: str, device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL would guess the device from the rank, which is another one on the second node."""

    class EnoughError(Exception):
        pass

    def init(*arguments: Any, **keywords: Any) -> None:
        assert arguments == (backend,)
        assert keywords["device_id"] == device
        assert (keywords["rank"], keywords["world_size"]) == (7, 8)
        raise EnoughError

    chosen: list[torch.device] = []
    put("RANK=7 WORLD_SIZE=8 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 MASTER_ADDR=localhost MASTER_PORT=1", monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, 7, 8)]))
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(EnoughError), distributed.process_group(kind):
        pass
    assert chosen == ([device] if device else [])
