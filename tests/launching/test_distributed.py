"""What a process tells torch's process group, without other processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretraining.launching import distributed


@pytest.mark.parametrize(
    ("kind", "backend", "device"), [("cuda", "nccl", torch.device("cuda", 3)), ("cpu", "gloo", None)]
)
def test_the_group_is_told_its_device(
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
    place = {"RANK": 7, "WORLD_SIZE": 8, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4}
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, 7, 8)]))
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(EnoughError), distributed.process_group(kind):
        pass
    assert chosen == ([device] if device else [])
