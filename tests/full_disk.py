"""A disk that takes only so much: what the system then says reaches every library that writes, as on a full one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Lets no file grow beyond ``size`` bytes: writes end early or fail with EFBIG, where a full disk has ENOSPC."""
    resource = pytest.importorskip("resource", reason="the system has no limits for files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
