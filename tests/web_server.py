"""A web server on this machine, with files as plain servers and as the Hugging Face Hub offer them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT, LATER = "a" * 40, "b" * 40


@dataclass
class File:
    """What a path answers with.

    Attributes:
        content: Its bytes.
        status: HTTP status.
        headers: More headers.
        breaks: For each request to come, after how many bytes the connection ends; then it does not.
        ranges: Whether parts can be asked for.
        ignores_if_range: Whether it sends them of whatever the file is by now.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    ignores_if_range: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


class Server:
    """Serves `files` by path and keeps all requests."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        self.http.shutdown()
        self.http.server_close()

    def put(self, path: str, content: bytes, **more: Any) -> str:
        """Serves a file with an ETag; returns its address."""
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', **more.pop("headers", {})}
        self.files[path] = File(content, headers=headers, **more)
        return f"{self.address}{path}"

    def put_on_hub(
        self, repo: str, name: str, content: bytes, commit: str = COMMIT, revision: str = "main", **more: Any
    ) -> File:
        """Serves a large file as the Hub does: with its SHA-256, of a branch and of the commit that this is at."""
        digest = more.pop("digest", hashlib.sha256(content).hexdigest())
        headers = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        file = File(content, headers={**headers, "X-Repo-Commit": commit}, **more)
        for at in (revision, commit):
            self.files[f"/{repo}/resolve/{at}/{name}"] = file
        names = {found[1] for path in self.files if (found := re.fullmatch(f"/{repo}/resolve/{revision}/(.*)", path))}
        listing = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in sorted(names)]}
        entries = [{"type": "file", "path": name, "oid": "0", "size": 1} for name in sorted(names)]
        for at in (revision, commit):
            self.files[f"/api/models/{repo}/revision/{at}"] = File(json.dumps(listing).encode())
            self.files[f"/api/models/{repo}/tree/{at}"] = File(json.dumps(entries).encode())
        self.files[f"/api/models/{repo}"] = File(json.dumps(listing).encode())
        return file

    def gets(self, path: str = "") -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and path in request.path]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            request = Request(self.command, path, {key.lower(): value for key, value in self.headers.items()})
            server.requests.append(request)
            file = server.files.get(path)
            if file is None:
                repo = path.split("/resolve/")[0]
                known = any(other.startswith(f"{repo}/resolve/") for other in server.files)
                code = "EntryNotFound" if known else "RepoNotFound"
                file = File(status=404 if known or "/resolve/" not in path else 401, headers={"X-Error-Code": code})
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
            same = file.ignores_if_range or request.headers.get("if-range") in (None, file.headers.get("ETag"))
            if asked and file.ranges and same:
                start = int(asked[1])
            status = 206 if start else file.status
            if start >= len(file.content) and start:
                status = 416
            body = file.content[start:] if status != 416 else b""
            self.send_response(status)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body)), **file.headers}
            if "Transfer-Encoding" in headers:
                del headers["Content-Length"]
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{len(file.content) - 1}/{len(file.content)}"
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if file.breaks:
                body = body[: file.breaks.pop(0)]
                self.close_connection = True
            request.sent = len(body)
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@contextmanager
def served(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that is the Hub too, with an empty cache; nobody else's proxy or token."""
    server = Server()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    values = {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_ASSETS_CACHE": str(cache / "assets"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    try:
        yield server
    finally:
        server.stop()
