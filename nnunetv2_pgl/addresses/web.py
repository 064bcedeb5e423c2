"""Files of web servers: downloaded once into a folder beside the Hub's cache, continued where they broke off.

The folder of an address, ``assets/nnunetv2_pgl/...`` in ``$HF_HOME``, holds the file in a subfolder named by its
SHA-256, which is compared at every use; the checksum of the first download, for addresses that state none; and what a
download that broke off has left.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import requests
from filelock import FileLock
from huggingface_hub import constants
from tqdm import tqdm

from nnunetv2_pgl.addresses.failures import OFFLINE, cannot_write, changed, not_cached, reason_of, size_of
from nnunetv2_pgl.addresses.parse import WebAddress, require_safe, shown
from nnunetv2_pgl.files import flush_to_disk, sha256_of, write_text
from nnunetv2_pgl.formats.weights_only import CheckpointError

_ATTEMPTS = 4
_PAUSE = 1.0  # seconds
_TIMEOUT = (20, 60)  # seconds to connect, and without a byte
_BLOCK = 1 << 16  # what is lost of one when a connection breaks is fetched again
_REFUSALS = {
    401: "wants a user and a password; put them into ~/.netrc",
    403: "does not give it to you; its page may want a login",
    404: "has no such file; compare the address",
    410: "no longer has the file",
}


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def fetch_from_web(address: WebAddress, download: bool, log: Callable[[str], object]) -> tuple[Path, str]:
    """A file of a web server, from the cache or downloaded into it; verified.

    Args:
        address: Where it is.
        download: Whether the server may be asked.
        log: Takes a line before a download.

    Returns:
        The file and its SHA-256.

    Raises:
        CheckpointError: It is neither in the cache nor can be downloaded, or has another checksum.
    """
    folder = Path(constants.HF_ASSETS_CACHE, "nnunetv2_pgl", hashlib.sha256(address.url.encode()).hexdigest()[:32])
    path = _cached(folder, address)
    if path is None:
        if not download:
            raise not_cached(address)
        if constants.HF_HUB_OFFLINE:
            raise not_cached(address, OFFLINE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):  # another process may be downloading it
                path = _cached(folder, address) or _download(folder, address, log)
        except OSError as error:
            raise cannot_write(address, error, folder) from error
    digest = path.parent.name
    if sha256_of(path) != digest:
        raise changed(address, path, path)
    return path, digest


def _cached(folder: Path, address: WebAddress) -> Path | None:
    digest, first = address.sha256, folder / "sha256"
    if digest is None and first.is_file():
        text = first.read_text(encoding="latin-1").strip()
        digest = text if re.fullmatch("[0-9a-f]{64}", text) else None
    path = folder / digest / _name(address) if digest else None
    return path if path is not None and path.is_file() else None


def _name(address: WebAddress) -> str:
    last = unquote(urlsplit(address.url).path).rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last).lstrip(".")[-100:] or "checkpoint"


def _download(folder: Path, address: WebAddress, log: Callable[[str], object]) -> Path:
    partial, name = folder / f"{_name(address)}.incomplete", shown(address.url)
    for attempt in range(_ATTEMPTS):
        try:
            _continue(partial, address, log)
            break
        except _BrokenOffError as error:
            if attempt == _ATTEMPTS - 1:
                kept = f", it continues after {size_of(partial.stat().st_size)}" if partial.is_file() else ""
                raise CheckpointError(
                    f"{name}: the download broke off {_ATTEMPTS} times ({error}); try it again{kept}"
                ) from error
            time.sleep(_PAUSE)
    digest = sha256_of(partial)
    if address.sha256 not in (None, digest):
        partial.unlink()
        raise CheckpointError(f"{name}: has the checksum {digest}, not {address.sha256}; nothing was kept of it")
    with open(partial, "rb") as file:
        start = file.read(64).lstrip()[:1]
    if start in (b"", b"<", b"{", b"["):  # nothing, HTML or JSON: errors of servers, which must not become the checksum
        partial.unlink()
        raise CheckpointError(f"{name}: the server sends no checkpoint but text or nothing; nothing was kept of it")
    path = folder / digest / _name(address)
    path.parent.mkdir(exist_ok=True)
    os.replace(partial, path)
    if address.sha256 is None:
        write_text(folder / "sha256", f"{digest}\n")
    return path


def _continue(partial: Path, address: WebAddress, log: Callable[[str], object]) -> None:
    """Downloads what is missing of a file; the server decides whether it is still the same file."""
    etag = partial.with_name(f"{partial.name}.etag")
    validator = etag.read_text(encoding="latin-1") if etag.is_file() else ""
    validator = validator if re.fullmatch(r'"[^"\s\0]*"', validator) else ""
    have = partial.stat().st_size if partial.is_file() and (validator or address.sha256) else 0
    headers = {"Accept-Encoding": "identity"}  # bytes as they are stored, which can be counted
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    with _Session(address) as session, _answer(session, address, headers) as answer:
        if answer.status_code == 416:  # there is no such part: the file is another, or is complete
            partial.unlink(missing_ok=True)
            raise _BrokenOffError("the server could not continue it")
        part = re.fullmatch(r"bytes (\d+)-\d+/\d+", answer.headers.get("Content-Range", ""))
        is_part, encoded = answer.status_code == 206, "Content-Encoding" in answer.headers
        is_other = validator and answer.headers.get("ETag", validator) != validator  # not all servers know If-Range
        if is_part and (encoded or is_other):
            partial.unlink(missing_ok=True)
            raise _BrokenOffError("the file has changed on the server since its first part")
        continues = is_part and part is not None and int(part[1]) == have
        if is_part and not continues:
            raise CheckpointError(f"{shown(address.url)}: the server sends another part than it was asked for")
        have = have if continues else 0
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() and "Content-Encoding" not in answer.headers else None
        size = "" if total is None else f", {size_of(total)}"
        log(f"{'Continuing' if have else 'Downloading'} {shown(str(address))}{size}, to {partial.parent}")
        if not continues:
            strong = answer.headers.get("ETag", "")
            write_text(etag, "" if encoded or strong.startswith("W/") else strong)
        with (
            open(partial, "ab" if continues else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None) as progress,
        ):
            try:
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
                    progress.update(len(block))
            except requests.RequestException as error:
                raise _BrokenOffError(reason_of(error)) from error
            flush_to_disk(file)
    if total is not None and (size_now := partial.stat().st_size) != total:
        raise _BrokenOffError(f"{size_now} bytes of {total}")
    with suppress(OSError):
        etag.unlink()


def _answer(session: requests.Session, address: WebAddress, headers: dict[str, str]) -> requests.Response:
    name = shown(address.url)
    try:
        answer = session.get(address.url, headers=headers, stream=True, timeout=_TIMEOUT)
    except CheckpointError:
        raise
    except (requests.RequestException, ValueError) as error:  # urllib3's, of hosts that cannot be, are ValueErrors
        raise not_cached(address, f"the server cannot be reached ({reason_of(error)})") from error
    status, refusal = answer.status_code, None
    if status not in (200, 206, 416):
        refusal = f"the server {_REFUSALS.get(status, f'answered {status}; try it again later')}"
    elif answer.headers.get("Content-Type", "").lower().startswith("text/html"):
        refusal = "a web page, not a checkpoint; give the address of the file that it links to"
    if refusal is not None:
        answer.close()
        raise CheckpointError(f"{name}: {refusal}")
    return answer


class _Session(requests.Session):
    """Follows redirects only to where the address itself might have pointed."""

    def __init__(self, address: WebAddress) -> None:
        super().__init__()
        self._sha256 = address.sha256

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """As requests asks for it, at each redirect."""
        target = super().get_redirect_target(resp)
        if target is not None:
            try:
                require_safe(urljoin(resp.url, target), self._sha256)
            except CheckpointError:
                resp.close()
                raise
        return target
