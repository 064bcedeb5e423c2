"""Files of the Hub, from a server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.formats.weights_only import CheckpointError
from tests.web_server import COMMIT, LATER, File, Server

CONTENT, NEWER = os.urandom(300_000), os.urandom(300_000)
REPO = "me/encoder"
ADDRESS = f"hf://{REPO}"
PINNED = f"hf://{REPO}@{COMMIT}/checkpoint_final.pth"


@pytest.fixture
def hub(server: Server) -> Server:
    server.put_on_hub(REPO, "checkpoint_final.pth", CONTENT)
    return server


def refused(address: str, **options: bool) -> str:
    with pytest.raises(CheckpointError) as error:
        locate(address, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_checkpoint_of_a_repository(hub: Server) -> None:
    lines: list[str] = []
    located = locate(ADDRESS, log=lines.append)
    assert located.path.read_bytes() == CONTENT
    assert located.pinned == PINNED
    assert lines == [f"Downloading {PINNED}, 0.3 MB, from {hub.address} to {constants.HF_HUB_CACHE}"]
    hub.requests.clear()
    for again in (ADDRESS, f"{ADDRESS}@main", f"https://huggingface.co/{REPO}", PINNED):
        assert locate(again, log=lines.append) == located
    assert len(lines) == 1
    assert {request.method for request in hub.requests} == {"HEAD"}  # of the branch; the commit needs none
    hub.requests.clear()
    assert locate(PINNED) == locate(ADDRESS, download=False) == located
    assert hub.requests == []


def test_a_file_with_its_name_and_one_of_tensors_only(server: Server) -> None:
    server.put_on_hub(REPO, "model.safetensors", CONTENT)
    server.put_on_hub(REPO, "runs/best one.pth", NEWER)
    assert locate(ADDRESS).pinned == f"hf://{REPO}@{COMMIT}/model.safetensors"
    assert locate(ADDRESS, download=False).path.read_bytes() == CONTENT
    located = locate(f"{ADDRESS}/runs/best one.pth")
    assert located.path.read_bytes() == NEWER
    assert located.pinned == f"hf://{REPO}@{COMMIT}/runs/best%20one.pth"


def test_a_repository_without_one_of_the_usual_files_asks_for_the_name(server: Server) -> None:
    for name in ("a.pth", "b.safetensors", "README.md"):
        server.put_on_hub(REPO, name, CONTENT)
    line = refused(ADDRESS)
    assert "has no checkpoint_final.pth and no model.safetensors; it has a.pth, b.safetensors. Name a file" in line
    assert "the repository has no c.pth; it has a.pth" in refused(f"{ADDRESS}/c.pth")


def test_a_branch_that_moves_is_followed_and_a_commit_stays(hub: Server) -> None:
    locate(ADDRESS)
    hub.put_on_hub(REPO, "checkpoint_final.pth", NEWER, LATER)
    assert locate(PINNED).path.read_bytes() == CONTENT
    assert locate(ADDRESS, download=False).path.read_bytes() == CONTENT
    moved = locate(ADDRESS)
    assert moved.path.read_bytes() == NEWER
    assert moved.pinned == f"hf://{REPO}@{LATER}/checkpoint_final.pth"
    assert locate(PINNED, download=False).path.read_bytes() == CONTENT


def test_without_network_the_cache_is_used_and_the_log_says_so(hub: Server) -> None:
    located = locate(ADDRESS)
    hub.stop()
    lines: list[str] = []
    assert locate(ADDRESS, log=lines.append) == located
    (line,) = lines
    assert "cannot be reached" in line
    assert f"not known whether it has changed; using {located.path}" in line
    assert locate(PINNED, log=lines.append) == located
    assert len(lines) == 1
    assert "me/other: not in the cache, and" in (line := refused("hf://me/other"))
    assert f"{hub.address} cannot be reached (Connection refused)" in line


def test_nothing_is_asked_without_the_users_word_or_offline(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"if you trust it, download it with: pgl_info '{ADDRESS}'" in refused(ADDRESS, download=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache, and HF_HUB_OFFLINE forbids" in refused(ADDRESS)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    located = locate(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert locate(ADDRESS) == located
    assert hub.requests == []


def test_a_connection_that_breaks_is_continued(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.files[f"/{REPO}/resolve/main/checkpoint_final.pth"].breaks = [100_000]
    with suppress(CheckpointError):  # early versions of huggingface_hub continue when they are called again
        locate(ADDRESS)
    assert locate(ADDRESS).path.read_bytes() == CONTENT
    assert [request.headers.get("range") for request in hub.gets()] == [None, "bytes=100000-"]
    assert sum(request.sent for request in hub.gets()) == len(CONTENT)


@pytest.mark.parametrize("kind", ["LFS", "Git"])
def test_content_that_is_not_what_the_hub_states_is_refused(server: Server, kind: str) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    digest = hashlib.sha256(CONTENT).hexdigest() if kind == "LFS" else git
    file = server.put_on_hub(REPO, "checkpoint_final.pth", NEWER, digest=digest)
    line = refused(ADDRESS)
    assert "does not have the checksum that it was downloaded with" in line
    blob = Path(line.partition("delete ")[2].partition(" and ")[0])
    blob.unlink()
    file.content = CONTENT
    assert locate(ADDRESS).path.read_bytes() == CONTENT
    blob.write_bytes(NEWER)
    assert f"delete {blob} and download it again" in refused(ADDRESS)


def test_the_checksum_of_the_address(hub: Server) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert locate(f"{ADDRESS}#sha256={digest}").pinned == f"{PINNED}#sha256={digest}"
    assert "has another checksum" in refused(f"{ADDRESS}#sha256={'0' * 64}")


def test_refusals_of_the_hub_end_in_one_line(hub: Server) -> None:
    path = f"/{REPO}/resolve/main/checkpoint_final.pth"
    assert "not found, or not accessible to you" in refused("hf://me/private")
    hub.files["/me/gated/resolve/main/checkpoint_final.pth"] = File(status=403, headers={"X-Error-Code": "GatedRepo"})
    assert "access must be requested on its page" in refused("hf://me/gated")
    hub.files[f"/{REPO}/resolve/v9/checkpoint_final.pth"] = File(
        status=404, headers={"X-Error-Code": "RevisionNotFound"}
    )
    assert "has no revision v9" in refused(f"{ADDRESS}@v9")
    hub.files[path] = File(status=500)
    assert f"{hub.address} answered 500" in refused(ADDRESS)
    hub.files[path] = File(status=200)  # some other server
    assert f"{hub.address} does not answer as the Hub does; compare HF_ENDPOINT" in refused(ADDRESS)


def test_the_token_of_the_hub_is_sent_to_the_hub(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate(ADDRESS)
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)
