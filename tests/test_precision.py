"""Which types networks are computed in, bfloat16 on a CPU, and that its gradients are right."""

from __future__ import annotations

import copy

import pytest
import torch

from nnunetv2_pgl.precision import autocast_type, train_in_cpu_bfloat16
from tests.planned_networks import small_network
from tests.precision import needs_bfloat16

CPU = torch.device("cpu")


@needs_bfloat16
@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2])
@pytest.mark.parametrize("size", [(2, 3, 3), (2, 6, 6), (3, 4, 4), (4, 6, 6), (5, 7, 5)])
def test_gradients_of_small_maps_are_right(size: tuple[int, int, int], stride: int | tuple[int, int, int]) -> None:
    """oneDNN has kernels for other CPUs, of which those for maps two voxels deep return anything."""
    torch.manual_seed(0)
    x = torch.randn(8, 32, *size).bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight = (0.05 * torch.randn(32, 32, 3, 3, 3)).bfloat16().requires_grad_()
    y = torch.nn.functional.conv3d(x, weight, stride=stride, padding=1)
    errors = torch.randn_like(y)
    half = torch.autograd.grad(y, (x, weight), errors)
    inputs = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    exact = torch.autograd.grad(torch.nn.functional.conv3d(*inputs, stride=stride, padding=1), inputs, errors.double())
    for got, expected in zip(half, exact, strict=True):
        assert (got.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(("amx", "expected"), [(True, True), (False, False), (None, False)])
def test_amx_is_asked_for(monkeypatch: pytest.MonkeyPatch, amx: bool | None, expected: bool) -> None:
    if amx is None:  # torch 2.4 cannot tell
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert autocast_type(CPU) is (torch.bfloat16 if expected else None)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ((6, 1), None),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_each_generation_of_gpus_gets_the_type_of_its_tensor_cores(
    monkeypatch: pytest.MonkeyPatch, generation: tuple[int, int], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    assert autocast_type(torch.device("cuda", 1)) is expected
    assert autocast_type(torch.device("mps")) is None


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_it_trains_in_bfloat16_and_predicts_in_float32(deep_supervision: bool) -> None:
    torch.manual_seed(0)
    plain = small_network("resenc").build(1, 3, deep_supervision)
    cast = train_in_cpu_bfloat16(copy.deepcopy(plain))
    assert isinstance(cast, type(plain))
    assert list(cast.state_dict()) == list(plain.state_dict())
    seen: list[torch.dtype] = []
    cast.encoder.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = torch.randn(1, 1, 16, 16, 16)  # the deepest maps have 4 x 4 x 4 voxels

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
