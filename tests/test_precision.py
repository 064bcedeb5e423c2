"""Networks that train in bfloat16 on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from nnunetv2_pgl.precision import train_in_cpu_bfloat16
from tests.planned_networks import small_network


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_it_trains_in_bfloat16_and_predicts_in_float32(deep_supervision: bool) -> None:
    torch.manual_seed(0)
    plain = small_network("resenc").build(1, 3, deep_supervision)
    cast = train_in_cpu_bfloat16(copy.deepcopy(plain))
    assert isinstance(cast, type(plain))
    assert list(cast.state_dict()) == list(plain.state_dict())
    seen: list[torch.dtype] = []
    cast.encoder.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = torch.randn(1, 1, 8, 8, 8)

    outputs, exact = cast.train()(x), plain.train()(x)
    assert seen == [torch.bfloat16]
    if not deep_supervision:
        outputs, exact = [outputs], [exact]
    assert len(outputs) == len(exact)
    for output, expected in zip(outputs, exact, strict=True):
        assert output.dtype == torch.float32
        error = (output - expected).std() / expected.std()
        assert 0 < error < 0.05  # bfloat16 has 8 bits
    for levels in (outputs, exact):
        sum(level.square().mean() for level in levels).backward()
    for parameter, reference in zip(cast.parameters(), plain.parameters(), strict=True):
        if reference.grad is None:  # a head for deep supervision
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32

    output, expected = cast.eval()(x), plain.eval()(x)
    assert seen[1:] == [torch.float32]
    assert torch.equal(output[0], expected[0])


def test_copies_are_networks_of_their_own() -> None:
    cast = train_in_cpu_bfloat16(small_network().build(1, 2, False)).eval()
    copied = copy.deepcopy(cast)
    x = torch.randn(1, 1, 8, 8, 8)
    before = copied(x)
    with torch.no_grad():
        for parameter in cast.parameters():
            parameter.zero_()
    assert torch.equal(copied(x), before)
    assert not torch.equal(cast(x), before)


def test_it_compiles() -> None:
    """As nnU-Net compiles networks on CUDA."""
    cast = train_in_cpu_bfloat16(small_network().build(1, 2, True)).train()
    x = torch.randn(1, 1, 8, 8, 8)
    compiled = torch.compile(cast, backend="eager", fullgraph=True)
    assert all(torch.equal(one, other) for one, other in zip(compiled(x), cast(x), strict=True))
