"""Files of web servers: downloaded once, continued where they broke off, and never taken for what they are not."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shlex
import shutil
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.formats.weights_only import CheckpointError
from tests.web_server import File, Server

BLOCK = 1 << 16
START = b"PK\x03\x04"  # as files of torch.save begin
CONTENT = START + os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def refused(address: str, **options: bool) -> str:
    with pytest.raises(CheckpointError) as error:
        locate(address, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def leftovers(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file() and file.name != ".lock")


@pytest.fixture
def cache() -> Path:
    return Path(constants.HF_ASSETS_CACHE)


def test_a_file_is_downloaded_once_and_then_needs_no_server(server: Server) -> None:
    address, lines = server.put("/some/encoder.pth", CONTENT), []
    first = locate(address, log=lines.append)
    assert first.path.read_bytes() == CONTENT
    assert first.path.name == "encoder.pth"
    assert first.pinned == f"{address}#sha256={DIGEST}"
    assert lines == [f"Downloading {address}, 3.0 MB, to {first.path.parents[1]}"]
    server.stop()
    for again in (address, first.pinned):
        assert locate(again, download=False) == first
    assert [request.path for request in server.requests] == ["/some/encoder.pth"]


def test_nothing_is_downloaded_without_the_users_word(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    address = server.put("/encoder.pth", CONTENT)
    assert f"not downloaded yet; if you trust it, download it with: pgl_info '{address}'" in refused(
        address, download=False
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache, and HF_HUB_OFFLINE forbids downloading it" in refused(address)
    assert server.requests == []
    assert not cache.exists()


def test_a_broken_connection_is_continued(server: Server) -> None:
    address = server.put("/encoder.pth", CONTENT, breaks=[8 * BLOCK, 4 * BLOCK])
    assert locate(address).path.read_bytes() == CONTENT
    asked = [request.headers.get("range") for request in server.gets()]
    assert asked == [None, f"bytes={8 * BLOCK}-", f"bytes={12 * BLOCK}-"]
    assert sum(request.sent for request in server.gets()) == len(CONTENT)


def test_a_file_of_unknown_size_that_breaks_off_is_not_taken_for_whole(server: Server, cache: Path) -> None:
    whole = b"5\r\nbytes\r\n0\r\n\r\n"
    address = server.put("/encoder.pth", whole, headers={"Transfer-Encoding": "chunked"}, breaks=[10] * 4, ranges=False)
    assert "the download broke off 4 times" in refused(address)
    assert "sha256" not in leftovers(cache)
    assert locate(address).path.read_bytes() == b"bytes"


def test_a_later_command_continues_what_an_earlier_one_has_left(server: Server, cache: Path) -> None:
    address, lines = server.put("/encoder.pth", CONTENT, breaks=[8 * BLOCK] * 4), []
    assert "the download broke off 4 times" in (line := refused(address))
    assert "continues after 2.1 MB" in line
    assert leftovers(cache) == ["encoder.pth.incomplete", "encoder.pth.incomplete.etag"]
    assert locate(address, log=lines.append).path.read_bytes() == CONTENT
    assert lines[0].startswith("Continuing ")
    assert server.gets()[-1].headers["range"] == f"bytes={32 * BLOCK}-"
    assert sum(request.sent for request in server.gets()) == len(CONTENT)
    assert leftovers(cache) == ["encoder.pth", "sha256"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_has_changed_meanwhile_is_not_mixed(server: Server, ranges: bool) -> None:
    address = server.put("/encoder.pth", CONTENT, breaks=[8 * BLOCK] * 4)
    refused(address)
    other = START + os.urandom(2_600_000)
    server.put("/encoder.pth", other, ranges=ranges)
    assert locate(address).path.read_bytes() == other


def test_without_a_name_for_its_content_a_file_is_begun_again(server: Server) -> None:
    address = server.put("/encoder.pth", CONTENT, breaks=[8 * BLOCK], headers={"ETag": "W/weak"})
    assert locate(address).path.read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.gets()] == [None, None]
    server.put("/other.pth", CONTENT, breaks=[8 * BLOCK], headers={"ETag": "W/weak"})
    pinned = f"{server.address}/other.pth#sha256={DIGEST}"
    assert locate(pinned).path.read_bytes() == CONTENT
    assert server.gets()[-1].headers["range"] == f"bytes={8 * BLOCK}-"


def test_what_is_complete_but_was_not_renamed_is_begun_again(server: Server) -> None:
    address = server.put("/encoder.pth", CONTENT)
    path = locate(address).path
    partial, etag = (path.parents[1] / f"encoder.pth.incomplete{ending}" for ending in ("", ".etag"))
    path.rename(partial)
    etag.write_text(server.files["/encoder.pth"].headers["ETag"])
    assert locate(address).path.read_bytes() == CONTENT


def test_the_checksum_of_the_address(server: Server, cache: Path) -> None:
    address = server.put("/encoder.pth", CONTENT)
    wrong = f"{address}#sha256={'0' * 64}"
    assert f"has the checksum {DIGEST}, not {'0' * 64}" in refused(wrong)
    assert leftovers(cache) == []
    assert locate(f"{address}#sha256={DIGEST}").path.read_bytes() == CONTENT


def test_a_file_that_changed_in_the_cache_is_refused(server: Server) -> None:
    address = server.put("/encoder.pth", CONTENT)
    path = locate(address).path
    path.write_bytes(CONTENT[:-1] + b"?")
    line = refused(address)
    assert "does not have the checksum that it was downloaded with" in line
    assert f"delete {path}" in line
    path.unlink()
    assert locate(address).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (File(status=404), "has no such file; compare the address"),
        (File(status=401), "wants a user and a password; put them into ~/.netrc"),
        (File(status=503), "answered 503; try it again later"),
        (File(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "a web page, not a checkpoint"),
        (File(status=302, headers={"Location": "http://example.org/a.pth"}), "http://example.org/a.pth: without TLS"),
        (File(status=302, headers={"Location": "ftp://example.org/a.pth"}), "ftp://example.org/a.pth: without TLS"),
    ],
)
def test_other_answers_end_in_one_line(server: Server, cache: Path, file: File, message: str) -> None:
    server.files["/encoder.pth"] = file
    assert message in refused(f"{server.address}/encoder.pth?key=secret")
    assert "secret" not in refused(f"{server.address}/encoder.pth?key=secret")
    assert leftovers(cache) == []


def test_a_redirect_is_followed(server: Server) -> None:
    server.put("/elsewhere", CONTENT)
    server.files["/encoder.pth"] = File(status=302, headers={"Location": "/elsewhere"})
    assert locate(f"{server.address}/encoder.pth").path.read_bytes() == CONTENT


def test_a_server_that_does_not_answer(server: Server) -> None:
    server.stop()
    line = refused(f"{server.address}/encoder.pth?key=secret")
    assert "not in the cache, and the server cannot be reached (Connection refused)" in line
    assert "secret" not in line


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_a_certificate_must_be_trusted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.put("/encoder.pth", CONTENT)
    address = f"https://localhost:{server.http.server_address[1]}/encoder.pth"
    assert "the server cannot be reached ([SSL: CERTIFICATE_VERIFY_FAILED]" in refused(address)
    assert server.requests == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert locate(address).path.read_bytes() == CONTENT


def test_the_token_of_the_hub_is_not_sent_to_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate(server.put("/encoder.pth", CONTENT))
    assert "hf_secret" not in str(server.requests)


# The server and the cache of a process that was forked are those of the test.
PROCESSES = multiprocessing.get_context("fork") if os.name == "posix" else None
needs_fork = pytest.mark.skipif(PROCESSES is None, reason="processes that share the test's cache")


def answer(address: str, largest_file: int, answers: Any) -> None:
    """Puts the file of an address, or the error, on a queue; larger files than that meet a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        answers.put(str(locate(address).path))
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def in_processes(number: int, address: str, largest_file: int = 1 << 30) -> list[str]:
    assert PROCESSES is not None
    answers = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=answer, args=(address, largest_file, answers)) for _ in range(number)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return found


@needs_fork
def test_processes_that_ask_at_once_download_once(server: Server) -> None:
    address = server.put("/encoder.pth", CONTENT)
    first, *others = in_processes(4, address)
    assert Path(first).read_bytes() == CONTENT
    assert others == [first] * 3
    assert len(server.gets()) == 1


@needs_fork
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_that_looks_whole(server: Server, cache: Path) -> None:
    address = server.put("/encoder.pth", CONTENT)
    (line,) = in_processes(1, address, largest_file=1_500_000)
    assert line.startswith(f"CheckpointError: {address}: could not be written to {cache}")
    assert "(File too large); make room there, or set HF_HOME" in line
    assert leftovers(cache) == ["encoder.pth.incomplete", "encoder.pth.incomplete.etag"]
    assert locate(address).path.read_bytes() == CONTENT
    assert sum(request.sent for request in server.gets()[1:]) == len(CONTENT) - 1_500_000


def test_a_part_of_another_file_is_not_added(server: Server) -> None:
    """A server that ignores If-Range sends the rest of what the file is by now; its ETag gives it away."""
    address = server.put("/encoder.pth", CONTENT, breaks=[8 * BLOCK] * 9)
    refused(address)
    (partial,) = Path(constants.HF_ASSETS_CACHE).rglob("*.incomplete")
    partial.with_name(f"{partial.name}.etag").write_text('"of another file"')
    server.put("/encoder.pth", CONTENT, ignores_if_range=True)
    assert locate(address).path.read_bytes() == CONTENT
    ranges = [request.headers.get("range") is not None for request in server.gets()]
    assert ranges[-2:] == [True, False]


@pytest.mark.parametrize("content", [b"", b'{"error": 1}', b"<html></html>"])
def test_an_error_of_the_server_does_not_become_the_checksum(server: Server, cache: Path, content: bytes) -> None:
    address = server.put("/encoder.pth", content)
    assert "the server sends no checkpoint but text or nothing" in refused(address)
    server.put("/encoder.pth", CONTENT)
    assert locate(address).path.read_bytes() == CONTENT


def test_an_address_of_strangers_plans_cannot_leave_its_quotes() -> None:
    with pytest.raises(CheckpointError) as caught:
        locate("https://example.org/x';touch /tmp/y;'", download=False)
    command = str(caught.value).partition("download it with: ")[2]
    assert shlex.split(command)[:1] == ["pgl_info"]
    assert len(shlex.split(command)) == 2
