"""Failures of a download in words, the same for all kinds of addresses."""

from __future__ import annotations

from nnunetv2_pgl.addresses.parse import HubAddress, WebAddress, shown
from nnunetv2_pgl.formats.weights_only import CheckpointError

OFFLINE = "HF_HUB_OFFLINE forbids downloading it"


def not_cached(address: HubAddress | WebAddress, reason: str | None = None) -> CheckpointError:
    """What to raise if a file is not in the cache and cannot, or must not, be downloaded."""
    name = shown(str(address))
    typed = str(address).replace("'", "%27")  # plans may come from others: nothing that leaves the quotes
    if reason is None:  # the user's word: plans and dry runs do not download
        return CheckpointError(f"{name}: not downloaded yet; if you trust it, download it with: pgl_info '{typed}'")
    return CheckpointError(f"{name}: not in the cache, and {reason}")


def changed(address: HubAddress | WebAddress, path: object, blob: object) -> CheckpointError:
    """What to raise if the content of a file in the cache is not what its checksum says."""
    return CheckpointError(
        f"{shown(str(address))}: {path} does not have the checksum that it was downloaded with; "
        f"delete {blob} and download it again with pgl_info"
    )


def cannot_write(address: HubAddress | WebAddress, error: OSError, folder: object) -> CheckpointError:
    """What to raise if the cache takes no more."""
    return CheckpointError(
        f"{shown(str(address))}: could not be written to {folder} ({error.strerror or error}); make room there, or set "
        "HF_HOME to another folder"
    )


def reason_of(error: BaseException) -> str:
    """The first cause of an error of a connection; the others repeat the whole address, which may hold a key."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]


def size_of(number: int) -> str:
    """A number of bytes, in words."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
