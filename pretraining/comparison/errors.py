"""The error that ends `pgl_compare`."""

from __future__ import annotations


class ComparisonError(ValueError):
    """A comparison that cannot be made as asked; the message names the option or file and says what to do."""
