"""Files written completely or not at all, whatever ends the process or fills the disk; and JSON files of others."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import SimpleITK as sitk

_BLOCK = 1 << 22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | os.PathLike[str], *, shared: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    A process that is killed leaves its temporary file.

    Args:
        path: The file to write; a former one stays as it is until the new one is complete.
        shared: Other processes may write it at the same time. Each then has a different temporary name (not by process
            id: jobs on other machines may have the same one); otherwise a leftover is overwritten the next time.

    Raises:
        OSError: If it cannot be written; the message names it and says why.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # what torch makes of a full disk has one
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        kept = " (the former one is intact)" if path.exists() else ""
        # A copy's error may name its source; on a full disk the name says nothing.
        is_another = cause.filename not in (None, str(temporary)) and cause.errno not in _FULL
        which = f": {cause.filename}" if is_another else ""
        raise OSError(f"could not write {path}{kept}: {cause.strerror or cause}{which}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Writes a text file in UTF-8, at once; an OSError as `replacing` raises it."""
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Writes a file, at once and onto the disk itself, so that it survives a loss of power; errors as `replacing`."""
    with replacing(path, shared=shared) as temporary, open(temporary, "wb") as file:
        file.write(data)
        flush_to_disk(file)


def write_nifti(image: sitk.Image, path: Path) -> None:
    """Writes a ``.nii.gz`` file, at once; errors as `replacing`.

    On a full disk SimpleITK's writer leaves an incomplete file and raises nothing, so the file is read again.
    """
    expected = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    with replacing(path) as temporary:
        compressed = temporary.with_name(f"{temporary.name}.nii.gz")  # SimpleITK compresses by the name's end
        try:
            sitk.WriteImage(image, str(compressed), useCompression=True)
            if unpacked_size(compressed) < expected:
                raise OSError(errno.ENOSPC, "the disk is full, or does not keep what is written")
            os.replace(compressed, temporary)
        finally:
            compressed.unlink(missing_ok=True)


def load_json(path: Path) -> Any:
    """Content of a JSON file in UTF-8; a ValueError if it is not JSON, or nested too deeply to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def walk(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Visit a folder and those below it that are not hidden. Links are followed, but each folder is visited once.

    Args:
        folder: Where to start.
        on_error: Takes the error of each folder that cannot be listed. By default such folders are passed over.

    Yields:
        A folder, and the sorted names of its files and hidden subfolders.
    """
    seen: set[str] = set()
    for directory, subfolders, files in os.walk(folder, onerror=on_error, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        hidden = {name for name in subfolders if name.startswith(".")}
        subfolders[:] = sorted({*subfolders} - hidden)
        yield Path(directory), sorted([*files, *hidden])


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(file: IO[bytes]) -> None:
    """Leaves nothing of what was written in the memory of Python or of the system."""
    file.flush()
    os.fsync(file.fileno())


def unpacked_size(path: str | os.PathLike[str]) -> int:
    """Bytes in a gzip file, 0 if it is incomplete or damaged."""
    size = 0
    try:
        with gzip.open(path) as file:
            while block := file.read(_BLOCK):
                size += len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return 0
    return size
