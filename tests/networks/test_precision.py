"""Which types networks are computed in, bfloat16 on a CPU, and that its gradients are right."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bare_networks import calls_of
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import autocast_type, lay_out, memory_format_for, train_in_cpu_bfloat16
from pretraining.objectives.heads import ConvHead
from tests.devices import DEVICE, needs_device
from tests.planned_networks import small_network
from tests.precision import needs_bfloat16

CPU = torch.device("cpu")
LAST = torch.channels_last_3d


@pytest.fixture(
    params=[pytest.param(CPU, marks=needs_bfloat16), pytest.param(DEVICE, marks=[pytest.mark.gpu, needs_device])]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """One that runs compute in bfloat16 on."""
    if autocast_type(request.param) is not torch.bfloat16:
        pytest.skip("runs do not use bfloat16 here")
    return request.param


def gradients(layer: nn.Module, x: Tensor, errors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Of the input and of the weights, under autocast if ``dtype`` is half."""
    x = x.detach().to(torch.float64 if dtype == torch.float64 else dtype).requires_grad_()
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float64):
        y = layer(x)
    return list(torch.autograd.grad(y, (x, *layer.parameters()), errors.to(y.dtype)))


def wrong_gradients(layer: nn.Module, x: Tensor) -> list[str]:
    """Those in bfloat16 that are not those in float64, of an input, weights and errors that bfloat16 can hold."""
    layer = copy.deepcopy(layer).requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
        errors = torch.randn_like(layer(x.float())).bfloat16()
    half = gradients(layer, x.bfloat16(), errors, torch.bfloat16)
    exact = gradients(copy.deepcopy(layer).double(), x.bfloat16(), errors, torch.float64)
    # Of a norm with weights of zero, as the last ones of residual blocks begin, the input has none.
    sizes = [expected.norm().clamp(min=1e-30) for expected in exact]
    off = [(got.double() - expected).norm() / size for got, expected, size in zip(half, exact, sizes, strict=True)]
    names = ["the input", *(name for name, _ in layer.named_parameters())]
    return [
        f"{layer}, input {tuple(x.shape)}: gradient of {name} is off by {error:.2g}"
        for name, error in zip(names, off, strict=True)
        if not error < 0.01
    ]


def networks() -> dict[str, tuple[nn.Module, int]]:
    """Networks that are trained, and the channels of what they take."""
    return {
        "resnet50": (ResNet50Encoder(), 1),
        "resnet50_recommended": (ResNet50Encoder(norm="instance", padding="replicate"), 1),
        "head": (ConvHead(64, 128, 32), 64),
        "segmenter": (PGLSegmenter(1, 3, norm="instance"), 1),
        "plain": (small_network("plain", (8, 16, 24)).build(1, 3, True), 1),
        "resenc": (small_network("resenc", (8, 16, 24)).build(1, 3, True), 1),
    }


LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d)


@pytest.mark.parametrize("name", networks())
def test_gradients_of_each_layer_are_right(device: torch.device, name: str) -> None:
    """Each kind of layer at each size that it meets in a training."""
    torch.manual_seed(0)
    network, channels = networks()[name]
    norm = "instance" if any(isinstance(module, nn.InstanceNorm3d) for module in network.modules()) else "batch"
    layout = memory_format_for(norm)
    network.to(device, memory_format=layout)
    size = (2, channels, *((8, 32, 32) if device.type == "cpu" else (16, 96, 96)))
    with torch.no_grad(), ExitStack() as stack:
        calls = [stack.enter_context(calls_of(network, kind)) for kind in LAYERS]
        network(torch.zeros(size, device=device))
    distinct = {(repr(layer), shape): layer for layer, shape in chain(*calls)}
    assert len(distinct) > 2
    wrong = []
    for (_, shape), layer in distinct.items():
        wrong += wrong_gradients(layer, lay_out(torch.randn(shape, device=device), layout))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2])
@pytest.mark.parametrize("size", [(2, 3, 3), (2, 6, 6), (3, 4, 4), (4, 6, 6), (5, 7, 5)])
def test_gradients_of_small_maps_are_right(
    device: torch.device, size: tuple[int, int, int], stride: int | tuple[int, int, int]
) -> None:
    """oneDNN has kernels for other CPUs, of which those for maps two voxels deep return anything."""
    torch.manual_seed(0)
    layer = nn.Conv3d(32, 32, 3, stride, padding=1, bias=False, device=device)
    assert not wrong_gradients(layer, torch.randn(8, 32, *size, device=device).contiguous(memory_format=LAST))


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
