"""Files of the Hugging Face Hub, by huggingface_hub: its cache, token, endpoint and offline mode.

Its cache names the content of a file by the checksum that the Hub states: SHA-256 of large files (LFS), Git's SHA-1 of
small ones. huggingface_hub itself compares only the size of what it has downloaded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import (
    HfApi,
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nnunetv2_pgl.addresses.failures import OFFLINE, cannot_write, changed, not_cached, reason_of, size_of
from nnunetv2_pgl.addresses.parse import HubAddress
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.formats.weights_only import CheckpointError

DEFAULT_FILES = ("checkpoint_final.pth", "model.safetensors")  # as pgl_export names them
_LOGIN = "log in with: hf auth login"


def fetch_from_hub(address: HubAddress, download: bool, log: Callable[[str], object]) -> tuple[Path, str, str]:
    """A file of the Hub, from the cache or downloaded into it; verified.

    Args:
        address: Without a file, the first of `DEFAULT_FILES` that the repository has.
        download: Whether the Hub may be asked.
        log: Takes a line before a download, and one if the Hub could not be asked what a branch or a tag now is.

    Returns:
        The file, its name in the repository, and the commit.

    Raises:
        CheckpointError: It is neither in the cache nor can be downloaded, or has another checksum.
    """
    found = _cached(address)
    is_commit = re.fullmatch("[0-9a-f]{40}", address.revision or "") is not None
    if not download and found is None:
        raise not_cached(address)
    if download and not (is_commit and found):
        found = _download(address, found, log)
    assert found is not None
    path, file = found
    _verify(address, path)
    return path, file, path.parents[len(PurePosixPath(file).parts) - 1].name


def _files(address: HubAddress) -> tuple[str, ...]:
    return DEFAULT_FILES if address.file is None else (address.file,)


def _cached(address: HubAddress) -> tuple[Path, str] | None:
    for file in _files(address):
        path = try_to_load_from_cache(address.repo, file, revision=address.revision)
        if isinstance(path, str):
            return Path(path), file
    return None


def _download(address: HubAddress, cached: tuple[Path, str] | None, log: Callable[[str], object]) -> tuple[Path, str]:
    """Asks the Hub for the present state, and downloads it if it is not in the cache."""
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise not_cached(address, OFFLINE)
        return cached
    try:
        file, metadata = _metadata(address)
    except CheckpointError:
        raise
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{address}: the repository has no revision {address.revision}") from error
    except Exception as error:  # of the library that huggingface_hub makes connections with, which has changed twice
        reason = _refusal(error)
        if cached is None:
            raise not_cached(address, reason) from error
        log(f"{address}: {reason}, so it is not known whether it has changed; using {cached[0]}")
        return cached
    if metadata.commit_hash is None:
        raise CheckpointError(f"{address}: {constants.ENDPOINT} does not answer as the Hub does; compare HF_ENDPOINT")
    present = replace(address, revision=metadata.commit_hash, file=file)
    if (known := _cached(present)) is not None:
        return known
    size = "" if metadata.size is None else f", {size_of(metadata.size)}"
    log(f"Downloading {present}{size}, from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}")
    try:
        path = hf_hub_download(address.repo, file, revision=address.revision)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # those of connections have none
            raise cannot_write(address, error, constants.HF_HUB_CACHE) from error
        raise CheckpointError(f"{address}: the download broke off ({reason_of(error)}); try it again") from error
    return Path(path), file


def _metadata(address: HubAddress) -> tuple[str, HfFileMetadata]:
    """The file that is meant, and what the Hub says of it."""
    for file in _files(address):
        try:
            return file, get_hf_file_metadata(hf_hub_url(address.repo, file, revision=address.revision))
        except EntryNotFoundError:
            continue
    names = HfApi().list_repo_files(address.repo, revision=address.revision)
    weights = [name for name in sorted(names) if name.endswith((".pth", ".pt", ".safetensors"))]
    shown = f"it has {', '.join(weights[:6])}" if weights else "it has no .pth and no .safetensors file"
    raise CheckpointError(
        f"{address}: the repository has no {' and no '.join(_files(address))}; {shown}. "
        f"Name a file: hf://{address.repo}/FILE"
    )


def _refusal(error: Exception) -> str:
    """Why the Hub did not say what it has."""
    if isinstance(error, GatedRepoError):
        return f"access must be requested on its page; then {_LOGIN}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return f"not found, or not accessible to you: compare the name, or if it is private, {_LOGIN}"
    if status is not None:
        return f"{constants.ENDPOINT} answered {status}"
    return f"{constants.ENDPOINT} cannot be reached ({reason_of(error)})"


def _verify(address: HubAddress, path: Path) -> None:
    """Compares a file with its checksum; where the cache has no links, only with that of the address."""
    if address.sha256 is not None and sha256_of(path) != address.sha256:
        raise CheckpointError(f"{address}: the file that was downloaded, {path}, has another checksum")
    if not path.is_symlink():
        return
    stated = os.path.basename(os.readlink(path))
    if re.fullmatch("[0-9a-f]{64}", stated):
        is_whole = stated == (address.sha256 or sha256_of(path))
    elif re.fullmatch("[0-9a-f]{40}", stated):
        is_whole = stated == _git_sha1_of(path)
    else:
        return
    if not is_whole:
        raise changed(address, path, path.resolve())


def _git_sha1_of(path: Path) -> str:
    """What Git names the content of a file by."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
