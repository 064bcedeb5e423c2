"""What an address means, which are refused, and that no message shows a password."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnunetv2_pgl.addresses import is_address, locate, shown
from nnunetv2_pgl.addresses.parse import HubAddress, WebAddress, parse
from nnunetv2_pgl.formats.weights_only import CheckpointError

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://me/encoder", HubAddress("me/encoder")),
        ("hf://me/encoder/", HubAddress("me/encoder")),
        ("hf://me/encoder@v1", HubAddress("me/encoder", "v1")),
        ("hf://me/encoder/a/b.pth", HubAddress("me/encoder", None, "a/b.pth")),
        ("hf://me/encoder@v1/a/b@2.pth", HubAddress("me/encoder", "v1", "a/b@2.pth")),
        ("hf://me/encoder/b@2.pth", HubAddress("me/encoder", None, "b@2.pth")),
        ("hf://me/encoder@refs%2Fpr%2F1/b.pth", HubAddress("me/encoder", "refs/pr/1", "b.pth")),
        ("hf://me/encoder@refs/pr/1", HubAddress("me/encoder", "refs/pr/1")),
        ("hf://me/encoder@refs/pr/12/a/b.pth", HubAddress("me/encoder", "refs/pr/12", "a/b.pth")),
        ("hf://me/encoder@refs/b.pth", HubAddress("me/encoder", "refs", "b.pth")),
        (f"hf://me/encoder/b.pth#sha256={DIGEST.upper()}", HubAddress("me/encoder", None, "b.pth", DIGEST)),
        ("https://huggingface.co/me/encoder", HubAddress("me/encoder")),
        ("https://huggingface.co/me/encoder/", HubAddress("me/encoder")),
        ("https://huggingface.co/me/encoder/tree/main", HubAddress("me/encoder", "main")),
        ("https://huggingface.co/me/encoder/blob/v1/a/b.pth", HubAddress("me/encoder", "v1", "a/b.pth")),
        ("https://huggingface.co/me/encoder/tree/refs/pr/1", HubAddress("me/encoder", "refs/pr/1")),
        ("https://huggingface.co/me/encoder/blob/refs%2Fpr%2F1/b.pth", HubAddress("me/encoder", "refs/pr/1", "b.pth")),
        ("https://huggingface.co/me/encoder/resolve/refs/pr/1/b.pth", HubAddress("me/encoder", "refs/pr/1", "b.pth")),
        ("https://hf.co/me/encoder/resolve/v1/b.pth?download=true", HubAddress("me/encoder", "v1", "b.pth")),
        ("https://example.org/a.pth", WebAddress("https://example.org/a.pth")),
        ("HTTPS://example.org/a?b=c", WebAddress("HTTPS://example.org/a?b=c")),
        (f"http://example.org/a#sha256={DIGEST}", WebAddress("http://example.org/a", DIGEST)),
        ("http://localhost:80/a", WebAddress("http://localhost:80/a")),
    ],
)
def test_what_an_address_means(text: str, meant: HubAddress | WebAddress) -> None:
    assert is_address(text)
    assert parse(text) == meant
    assert parse(str(meant)) == meant  # as it is recorded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://encoder", "names no repository of models"),
        ("hf://datasets/me/scans", "names no repository of models"),
        ("hf://me/encoder@/b.pth", "the revision after @ is missing"),
        ("hf://me/encoder/a/../../b.pth", "is no file of a repository"),
        ("hf://me/encoder/%2e%2e/b.pth", "is no file of a repository"),
        ("https://huggingface.co/datasets/me/scans", "not the page of a repository"),
        ("https://huggingface.co/datasets/me", "names no repository of models"),
        ("https://huggingface.co/me/encoder/discussions", "not the page of a repository"),
        ("https://huggingface.co/me/encoder/tree/main/folder", "a folder; give hf://me/encoder@main/folder/FILE"),
        ("http://example.org/a.pth", "without TLS"),
        ("http://127.0.0.1.example.org/a.pth", "without TLS"),
        ("https://example.org/a.pth#md5=1", "only sha256= may follow #"),
        ("https://example.org/a.pth#sha256=12", "only sha256= may follow #"),
        ("ftp://example.org/a.pth", "not an address that a checkpoint can be fetched from"),
        ("s3://bucket/a.pth", "not an address that a checkpoint can be fetched from"),
        ("file:///etc/passwd", "not an address that a checkpoint can be fetched from"),
        ("https:///a.pth", "not an address that a checkpoint can be fetched from"),
        ("https://[::1/a.pth", "not an address"),
        ("https://me:secret@example.org/a.pth?key=secret", "names a user"),
    ],
)
def test_other_addresses_end_in_one_line(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^\S+: ") as refused:
        locate(text)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["a.pth", "/a/b.pth", "hf:/a/b", "C:\\a.pth", "~/a.pth", "a/b://c", ""])
def test_paths_are_no_addresses(path: str) -> None:
    assert not is_address(path)
    assert locate(path).pinned is None


def test_what_may_stand_in_logs() -> None:
    assert shown(f"https://a:b@c.org/d@e?key=f#sha256={DIGEST}") == f"https://...@c.org/d@e?...#sha256={DIGEST}"
    assert shown("hf://me/encoder@v1/b.pth") == "hf://me/encoder@v1/b.pth"


def test_libraries_of_connections_are_loaded_when_an_address_is_used() -> None:
    """Importing them takes a second, and trainings from a path need none."""
    code = "import sys; from nnunetv2_pgl.addresses import locate; locate('a.pth'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "requests", "httpx", "httpx2"} & set(result.stdout.split())
