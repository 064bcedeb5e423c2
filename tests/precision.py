"""bfloat16 in tests: kernels are compared with float32 where runs use them; elsewhere they may be wrong, or slow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_pgl.networks.hardware import autocast_type

needs_bfloat16 = pytest.mark.skipif(
    autocast_type(torch.device("cpu")) is not torch.bfloat16, reason="runs use float32 here"
)


def note_types(module: nn.Module) -> set[torch.dtype]:
    """Fills with the types that the convolutions of a module return, from now on."""
    types: set[torch.dtype] = set()
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            part.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    return types
