"""From a path or an address to a file on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_pgl.addresses.parse import HubAddress, is_address, parse


@dataclass(frozen=True)
class Located:
    """A checkpoint file on this machine.

    Attributes:
        path: The file.
        pinned: Of what was downloaded, the address of exactly this content: with the commit or the checksum. None if
            a path was given.
    """

    path: Path
    pinned: str | None = None


def locate(path_or_address: str, *, download: bool = True, log: Callable[[str], object] | None = None) -> Located:
    """The file that a path or an address means; an address is downloaded if it is not in the cache yet.

    A path is not looked at. Of a branch or a tag of the Hub, the present state is taken where the Hub can be reached.

    Args:
        path_or_address: As the user typed it, or as plans name it.
        download: Whether the user has asked for it. Otherwise no connection is made.
        log: Takes a line before a download, and one about what could not be checked; by default standard error gets it.

    Raises:
        CheckpointError: The address is none, the file is not there or cannot be downloaded, or what is in the cache is
            not what was downloaded.
    """
    if not is_address(path_or_address):
        return Located(Path(path_or_address).expanduser())
    address = parse(path_or_address)
    log = log or (lambda line: print(line, file=sys.stderr, flush=True))
    # huggingface_hub takes a while to import
    if isinstance(address, HubAddress):
        from nnunetv2_pgl.addresses.hub import fetch_from_hub

        path, file, commit = fetch_from_hub(address, download, log)
        return Located(path, str(replace(address, revision=commit, file=file)))
    from nnunetv2_pgl.addresses.web import fetch_from_web

    path, digest = fetch_from_web(address, download, log)
    return Located(path, str(replace(address, sha256=digest)))
