"""The error that ends `pgl_compare`."""

from __future__ import annotations

from nnunetv2_pgl.errors import PGLError


class ComparisonError(PGLError):
    """A comparison that cannot be made as asked; the message names the option or file and says what to do."""
