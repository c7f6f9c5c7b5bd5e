"""The GPU's kernels in Triton's interpreter, behind the layers, beside float64.

`test_fast_gpu` runs this file in a process of its own: Triton reads TRITON_INTERPRET
when it decorates a kernel.
"""

import copy
import math
from types import SimpleNamespace

import layers
import pytest
import torch
from conftest import TOLERANCE, error
from layers import CENTERED, MAPS, ROWS, WIDE, randomized, results

from normbook import fast
from normbook.fast import gpu

# Sets of odd sizes, of one block and of several; N, channels, positions.
SHAPES = [(3, 4, 5, 7), (5, 4, 1, 3), (2, 8, 3, 1)]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The kernels behind the layers, on as many processors as keep this file quick.

    Lists the work of every forward call.
    """
    found = []

    def forward(x, gamma, beta, task):
        found.append(task.work)
        return kernels(x, gamma, beta, task)

    kernels = gpu.forward
    monkeypatch.setattr(gpu, "forward", forward)
    device = SimpleNamespace(**vars(gpu.H100) | {"multi_processor_count": 1})
    monkeypatch.setattr(gpu, "_gpu", lambda index: device)
    monkeypatch.setattr(
        fast, "_backend", lambda device, dtype: gpu if dtype in gpu.DTYPES else None
    )
    return found


def build(variant, shape):
    """The layer, with an ε that does not depend on x's dtype."""
    return randomized(variant.build(shape, eps=1e-5))


def compare(layer, x, dy, times=1.0):
    """The layer by kernels beside a copy of it in float64, which no kernel takes."""
    got, want = layers.beside_float64(layer, x, dy)
    assert got[0].stride() == got[1].stride() == x.stride()
    assert got[0].dtype == got[1].dtype == x.dtype
    for value, true in zip(got, want, strict=True):
        name = str(value.dtype).removeprefix("torch.")
        assert error(value, true) <= times * TOLERANCE.get(name, 0)
    return got


def data(shape, dtype=torch.float32, channels_last=False, mean=1.0):
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, *shape, generator=generator)
    x, dy = (x + mean).to(dtype), dy.to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return x, dy


# Trailing axes do not lie together in channels_last: no kernel takes rows there.
LAYOUTS = [(name, False) for name in WIDE] + [(name, True) for name in MAPS]


@pytest.mark.parametrize(("name", "channels_last"), LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers(name, shape, channels_last, calls):
    compare(build(WIDE[name], shape), *data(shape, torch.float32, channels_last))
    assert len(calls) == 1


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameters", ["float32", "the same"])
def test_dtypes(name, dtype, parameters, calls):
    shape = SHAPES[0]
    layer = build(WIDE[name], shape)
    if parameters == "the same":
        layer = layer.to(dtype)
    # The interpreter cuts bfloat16 off as it stores it, where a GPU rounds.
    compare(layer, *data(shape, dtype), times=2)
    assert len(calls) == 1


@pytest.mark.parametrize("width", [1, 2, 33, 1000, 3000])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_width(name, width, calls):
    compare(build(layers.LAYERS[name], (7, width)), *data((7, width)))
    assert len(calls) == 1


# Where no set of maps fits a program's registers.
LIMITS = {"FORWARD": 16, "BACKWARD": 8, "SUMS": 8}


def limited(monkeypatch, limits):
    for limit, value in limits.items():
        monkeypatch.setattr(gpu, limit, value)


TOO_LARGE = {
    "GN": (layers.LAYERS["GN"], (2, 4, 7, 11)),
    "IN": (layers.LAYERS["IN"], (2, 3, 7, 11)),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name, (_, shape) in TOO_LARGE.items()
        for layout in ("contiguous", "channels_last")[: 1 + (len(shape) == 4)]
    ],
)
def test_sets_too_large_for_a_program(name, layout, calls, monkeypatch):
    variant, shape = TOO_LARGE[name]
    limited(monkeypatch, LIMITS)
    tile = gpu._tile
    monkeypatch.setattr(gpu, "_tile", lambda view, _: tile(view, 64))
    monkeypatch.setattr(gpu, "_forward", None)
    monkeypatch.setattr(gpu, "_backward", None)
    compare(
        build(variant, shape),
        *data(shape, channels_last=layout != "contiguous"),
    )
    assert len(calls) == 1


@pytest.mark.parametrize("name", [*ROWS, "GN"])
def test_rows_too_long_for_a_program_take_the_plain_path(name, calls, monkeypatch):
    monkeypatch.setattr(gpu, "LONGEST_ROW", 64)
    compare(build(layers.LAYERS[name], (3, 160)), *data((3, 160)))
    assert calls == []


def test_sums_too_many_for_the_registers(monkeypatch):
    monkeypatch.setattr(gpu, "SUMS", 32)
    compare(build(layers.LAYERS["LN"], (5, 50)), *data((5, 50)))
    compare(build(layers.LAYERS["GN"], (5, 120)), *data((5, 120)))


@pytest.mark.parametrize("shape", [(40, 3), (7, 67)])
def test_batch_norm_of_vectors(shape, calls):
    compare(build(layers.LAYERS["BN"], shape), *data(shape))
    assert calls[0].channels_last


@pytest.mark.parametrize("name", CENTERED)
@pytest.mark.parametrize("affine", ["none", "γ", "β"])
def test_without_parameters(name, affine):
    layer = build(WIDE[name], SHAPES[0])
    layer.weight = layer.weight if affine == "γ" else None
    layer.bias = layer.bias if affine == "β" else None
    compare(layer, *data(SHAPES[0]))


@pytest.mark.parametrize("name", WIDE)
def test_gradients_that_come_in_other_strides(name):
    layer = build(WIDE[name], SHAPES[1])
    x, dy = data(SHAPES[1])
    compare(copy.deepcopy(layer), x, dy[:1, :1].expand_as(x))
    compare(layer, x, dy.mT.contiguous().mT)


@pytest.mark.parametrize("name", WIDE)
def test_second_derivatives(name):
    layer = build(WIDE[name], SHAPES[1])
    x, dy = data(SHAPES[1])

    exact = copy.deepcopy(layer).double()
    got = layers.second_derivatives(layer, x, dy)
    want = layers.second_derivatives(exact, x.double(), dy.double())
    for value, true in zip(got, want, strict=True):
        assert error(value, true) < 10 * TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("name", "split"),
    [(name, False) for name in CENTERED] + [(name, True) for name in MAPS],
)
def test_the_variance_survives_a_large_mean(name, split, monkeypatch):
    """E[x²] − E[x]² keeps no digit here."""
    if split:
        limited(monkeypatch, dict.fromkeys(LIMITS, 2))
    layer = WIDE[name].build(SHAPES[0])
    x, _ = data(SHAPES[0], mean=1e4)
    want = copy.deepcopy(layer).double()(x.double())
    assert error(layer(x), want) < 1e-3


@pytest.mark.parametrize("channels", [5, 6, 12])
def test_a_program_takes_several_rows_of_any_number_of_groups(channels, calls):
    shape = (128, channels, 4)
    compare(build(WIDE["IN"], shape), *data(shape))
    (work,) = calls
    rows = gpu._rows(work, 4, gpu.BACKWARD)["ROWS"]
    assert rows > math.gcd(rows, channels)


@pytest.mark.parametrize("name", ["BN", "GN"])
def test_a_mean_whose_square_is_infinite(name, monkeypatch):
    limited(monkeypatch, dict.fromkeys(LIMITS, 2))
    x, _ = data(SHAPES[0])
    x = 3e19 + 1e17 * x
    layer = WIDE[name].build(SHAPES[0])
    want = copy.deepcopy(layer).double()(x.double())
    assert error(layer(x), want) < 1e-3


@pytest.mark.parametrize("name", WIDE)
def test_the_same_bits_again(name):
    x, dy = data(SHAPES[1])
    first, again = (results(build(WIDE[name], SHAPES[1]), x, dy) for _ in range(2))
    assert all(map(torch.equal, first, again))
