from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_pgl.addresses import web
from tests.web_server import Server, served


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "_PAUSE", 0)
    with served(tmp_path / "cache", monkeypatch) as server:
        yield server
