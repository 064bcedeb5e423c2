"""The terms of the data sets, and what they mean for a checkpoint that was trained on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """Terms of a data set.

    Attributes:
        name: Name of the licence.
        reference: Where the data set's makers state it.
        consequence: What it means here, as a sentence.
    """

    name: str
    reference: str
    consequence: str


RIBFRAC = Licence(
    "CC BY-NC 4.0",
    "https://ribfrac.grand-challenge.org",
    "a checkpoint that was pre-trained on it is for non-commercial use",
)
MSD = Licence(
    "CC BY-SA 4.0",
    "http://medicaldecathlon.com",
    "name the source, and pass on what is derived from it under the same licence; commercial use is allowed",
)
KITS19 = Licence(
    "CC BY-NC-SA 4.0",
    "https://kits19.grand-challenge.org/data",
    "for non-commercial use; pass on what is derived from it under the same licence",
)
BCV = Licence(
    "terms of use of the Synapse project syn3193805",
    "https://www.synapse.org/#!Synapse:syn3193805",
    "what you agreed to when you registered there decides about scans and checkpoints",
)
