"""What an address means, and how it is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from nnunetv2_pgl.formats.weights_only import CheckpointError

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# What the Hub allows in the name of an owner or a repository, and how long both are together.
_REPO_NAME = re.compile(r"(?!.*(--|\.\.))\w(?:[\w.-]*\w)?", re.ASCII)
_MAX_NAME = 96
_REFS = re.compile(r"refs/(pr/\d+|convert/[\w-]+)(?=/|$)", re.ASCII)  # pull requests, and what the Hub itself makes
_OTHER_KINDS = ("datasets", "spaces", "models", "buckets", "kernels", "collections", "papers", "docs", "api")
_FORMS = "hf://OWNER/NAME, hf://OWNER/NAME@REVISION/FILE or https://HOST/FILE"


@dataclass(frozen=True)
class HubAddress:
    """A file of a repository on the Hugging Face Hub.

    Attributes:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None is the main branch.
        file: Path in the repository; None is the encoder that the repository is about.
        sha256: What the file must have, if the address says so.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repo}{revision}{f'/{quote(self.file)}' if self.file else ''}{_fragment(self.sha256)}"


@dataclass(frozen=True)
class WebAddress:
    """A file on a web server.

    Attributes:
        url: Without what follows ``#``.
        sha256: What the file must have, if the address says so.
    """

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.url}{_fragment(self.sha256)}"


def is_address(text: str) -> bool:
    """Whether a text has the form ``scheme://...`` of an address; else it is a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def shown(address: str) -> str:
    """An address as it may stand in logs: without a password, and without the query, which may hold a key."""
    without_password = re.sub(r"://[^/?#]*@", "://...@", address, count=1)
    return re.sub(r"\?[^#]*", "?...", without_password, count=1)


def parse(text: str) -> HubAddress | WebAddress:
    """Reads an address.

    Raises:
        CheckpointError: It cannot be one of a checkpoint, or must not be used; the message shows no password.
    """
    text = text.strip()
    name = shown(text)
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError as error:
        raise CheckpointError(f"{name}: not an address ({error}); give {_FORMS}") from error
    sha256 = _checksum(parts.fragment, name)
    if parts.scheme == "hf":
        return _hub_address(f"{parts.netloc}{parts.path}", name, sha256)
    if parts.scheme not in ("http", "https") or not host:
        raise CheckpointError(f"{name}: not an address that a checkpoint can be fetched from; give {_FORMS}")
    if parts.username is not None:
        raise CheckpointError(
            f"{name}: names a user, whose password would get into plans and records; put both into ~/.netrc"
        )
    if host in _HUB_HOSTS:
        return _hub_page(parts.path, name, sha256)
    url = text.partition("#")[0]
    require_safe(url, sha256)
    return WebAddress(url, sha256)


def require_safe(url: str, sha256: str | None) -> None:
    """A CheckpointError if what comes from there could be another's: no TLS, no checksum, not this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and sha256 is None and parts.hostname not in _LOCAL_HOSTS:
        raise CheckpointError(
            f"{shown(url)}: without TLS, what arrives may not be what was sent; use https://, or give the checksum of "
            "the file by adding #sha256=HEX to the address"
        )


def _hub_address(path: str, name: str, sha256: str | None) -> HubAddress:
    repo, at, rest = path.partition("@")
    if at and repo.count("/") == 1:
        revision, file = _revision_and_file(rest)
        if not revision:
            raise CheckpointError(f"{name}: the revision after @ is missing; give {_FORMS}")
        return _checked(repo, unquote(revision), unquote(file), name, sha256)
    owner, _, rest = path.partition("/")
    repo_name, _, file = rest.partition("/")
    return _checked(f"{owner}/{repo_name}", None, unquote(file), name, sha256)


def _revision_and_file(rest: str) -> tuple[str, str]:
    """What follows a repository, at its first slash; those of `_REFS` have more."""
    named = _REFS.match(rest)
    revision, _, file = (named[0], "", rest[named.end() + 1 :]) if named else rest.partition("/")
    return revision, file


def _hub_page(path: str, name: str, sha256: str | None) -> HubAddress:
    """The pages of a repository: itself, its files at a revision, one file."""
    owner, repo_name, kind, rest = [*path.strip("/").split("/", 3), "", "", ""][:4]
    owner, repo_name, kind = map(unquote, (owner, repo_name, kind))
    revision, inside = map(unquote, _revision_and_file(rest))
    if kind not in ("", "tree", "blob", "resolve"):
        raise CheckpointError(f"{name}: not the page of a repository of models; give {_FORMS}")
    if kind == "tree" and inside:
        raise CheckpointError(f"{name}: a folder; give hf://{owner}/{repo_name}@{revision}/{inside}/FILE")
    return _checked(f"{owner}/{repo_name}", revision or None, inside, name, sha256)


def _checked(repo: str, revision: str | None, file: str, name: str, sha256: str | None) -> HubAddress:
    owner, _, repo_name = repo.partition("/")
    is_name = len(repo) <= _MAX_NAME and all(map(_REPO_NAME.fullmatch, (owner, repo_name)))
    if owner in _OTHER_KINDS or not is_name or repo.endswith(".git"):
        raise CheckpointError(f"{name}: names no repository of models, which is OWNER/NAME; give {_FORMS}")
    if file and not all(part.strip(".") and "\\" not in part for part in file.split("/")):
        raise CheckpointError(f"{name}: {file!r} is no file of a repository; give {_FORMS}")
    return HubAddress(repo, revision, file or None, sha256)


def _checksum(fragment: str, name: str) -> str | None:
    if not fragment:
        return None
    key, _, digest = fragment.partition("=")
    if key != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise CheckpointError(f"{name}: only sha256= may follow #, with the 64 digits of the file's checksum")
    return digest.lower()


def _fragment(sha256: str | None) -> str:
    return f"#sha256={sha256}" if sha256 else ""
