"""What the comparison knows of each method: its colour in figures, and whether its pre-training keeps a decoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodTraits:
    """Of one method."""

    colour: str
    keeps_decoder: bool = False


# The colours are Okabe and Ito's, which people who see colours differently can distinguish.
METHODS = {
    "models_genesis": MethodTraits("#e69f00", keeps_decoder=True),
    "byol": MethodTraits("#0072b2"),
    "pgl": MethodTraits("#d55e00"),
    "pgl_nce": MethodTraits("#cc79a7"),
    "pgl_mae": MethodTraits("#009e73", keeps_decoder=True),
    "mae": MethodTraits("#882255", keeps_decoder=True),
}
