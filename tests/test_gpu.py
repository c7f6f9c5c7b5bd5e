"""On a GPU: the same functions and layers, in every dtype, beside float64 on the CPU.

Needs pytest, NumPy and torch alone, so that it runs on a bare machine.
"""

import copy

import layers
import numpy as np
import pytest
import torch
from conftest import TOLERANCE, error
from layers import LAYERS, MASKABLE, WIDE, randomized, results

from normbook import functional as F
from normbook import nn as nb
from normbook.functional import InputError
from normbook.measure import agreement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

SHAPE = (4, 6, 5, 3)


@pytest.fixture(params=WIDE)
def layer(request):
    # An ε that does not depend on x's dtype.
    return randomized(WIDE[request.param].build(SHAPE, eps=1e-5)).double()


def compare(layer, dtype, where=None, training=True):
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, *SHAPE, generator=generator).to(getattr(torch, dtype)).cuda()
    layer = layer.train(training).to("cuda", x.dtype)
    got, want = layers.beside_float64(layer, x, dy, where, device="cpu")
    for value, exact in zip(got, want, strict=True):
        assert value.device.type == "cuda"
        assert value.dtype in (x.dtype, torch.int64)
        assert error(value, exact) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training", [True, False])
def test_layers_agree_with_the_cpu(layer, dtype, training):
    compare(layer, dtype, training=training)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_functions_agree_with_numpy(dtype):
    rows = [row for row in agreement.agreement() if row["device"] == "cuda"]
    assert {row["dtype"] for row in rows} == set(TOLERANCE)
    assert agreement.agrees(row for row in rows if row["dtype"] == dtype)


@pytest.mark.parametrize("layer", MASKABLE, indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_masks(layer, dtype):
    where = torch.ones(4, 1, 5, 3, dtype=torch.bool, device="cuda")
    where[1:3, :, 2:] = False
    compare(layer, dtype, where)


@pytest.mark.parametrize("name", MASKABLE)
def test_what_is_masked_has_no_influence(name):
    where = torch.ones(4, 1, 5, 3, dtype=torch.bool, device="cuda")
    where[1:3, :, 2:] = False
    x, dy = torch.randn(2, *SHAPE, device="cuda")
    clean_and_dirty = [
        results(
            WIDE[name].build(SHAPE).cuda(),
            torch.where(where, x, junk),
            torch.where(where, dy, junk),
            where,
        )
        for junk in (0.0, float("nan"))
    ]
    for clean, dirty in zip(*clean_and_dirty, strict=True):
        assert error(dirty, clean) == 0


def test_layers_are_torch_s_on_the_gpu():
    x = torch.randn(SHAPE, device="cuda")
    for variant in LAYERS.values():
        ours, native = variant.build(SHAPE), variant.build_native(SHAPE)
        assert error(ours.cuda()(x), native.cuda()(x)) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(layer, dtype):
    x = torch.randn(SHAPE, device="cuda")
    layer = layer.float().cuda()
    want = layer(x)
    with torch.autocast("cuda", dtype):
        y = layer(x.to(dtype))
    assert error(y, want) < 4 * TOLERANCE[str(dtype).removeprefix("torch.")]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, c: F.batch_norm(x, c), "gamma"),
        (lambda x, c: F.batch_norm(x, None, c), "beta"),
        (lambda x, c: F.batch_norm(x, where=c > 0), "where"),
        (lambda x, c: F.batch_norm_vjp(x.cpu(), x), "dy"),
        (lambda x, c: nb.BatchNorm(6)(x), "gamma"),
        (lambda x, c: nb.GroupNorm(2, 6)(x), "gamma"),
    ],
)
def test_two_devices_are_refused(call, named):
    with pytest.raises(InputError, match=f"x and {named} must be on one device.*cpu"):
        call(torch.ones(4, 6, device="cuda"), torch.ones(6))


def test_numpy_with_a_gpu_tensor_is_refused():
    with pytest.raises(InputError, match="one device"):
        F.batch_norm(torch.ones(4, 6, device="cuda"), np.ones(6))


# The fast layers: rows and maps that no block divides, sets that stay on the chip and
# sets that do not, in every layout that kernels take.
FAST = {
    "LN of 1000": (LAYERS["LN"], (77, 1000)),
    "LN of 8192": (LAYERS["LN"], (300, 8192)),
    "LN of 16384": (LAYERS["LN"], (150, 16384)),
    "RMSNorm of 1024": (LAYERS["RMSNorm"], (5, 67, 1024)),
    "RMSNorm of 16384": (LAYERS["RMSNorm"], (150, 16384)),
    "GN of 8 groups": (LAYERS["GN"]._replace(groups=8), (5, 64, 28, 27)),
    "GN of 40960": (LAYERS["GN"], (3, 20, 64, 64)),
    "IN": (LAYERS["IN"], (9, 96, 7, 7)),
    "IN of 3136": (LAYERS["IN"], (5, 6, 56, 56)),
    "BN": (LAYERS["BN"], (19, 70, 14, 13)),
    "BN of vectors": (LAYERS["BN"], (513, 1030)),
}
EXACT = {"float32": 2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture
def launched(monkeypatch):
    """What was asked of the kernels, so that no test passes by the plain path."""
    gpu = pytest.importorskip("normbook.fast.gpu")
    asked = []
    for name in ("forward", "backward"):
        kernels = getattr(gpu, name)

        def call(*args, name=name, kernels=kernels):
            asked.append(name)
            return kernels(*args)

        monkeypatch.setattr(gpu, name, call)
    return asked


def fast_layer(name):
    variant, shape = FAST[name]
    return randomized(variant.build(shape, eps=1e-5)).cuda(), shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", FAST)
def test_kernels_agree_with_float64(name, dtype, layout, launched):
    layer, shape = fast_layer(name)
    x, dy = (torch.randn(2, *shape, device="cuda") + 1).to(getattr(torch, dtype))
    if layout == "channels_last":
        if len(shape) != 4:
            pytest.skip("only maps have that layout")
        x = x.to(memory_format=torch.channels_last)
    got, want = layers.beside_float64(layer, x, dy)
    assert launched == ["forward", "backward"]
    assert got[0].stride() == got[1].stride() == x.stride()
    for place, (value, exact) in enumerate(zip(got, want, strict=True)):
        # Sums for γ and β run over many rows, in another order.
        assert error(value, exact) <= EXACT[dtype] * (1 if place < 2 else 20)
    again = results(fast_layer(name)[0], x, dy)
    assert all(map(torch.equal, got, again))


@pytest.mark.parametrize("name", FAST)
def test_second_derivatives_of_kernels(name, launched):
    layer, shape = fast_layer(name)
    x, dy = torch.randn(2, *shape, device="cuda")

    exact = copy.deepcopy(layer).double()
    got = layers.second_derivatives(layer, x, dy)
    assert launched == ["forward"]
    want = layers.second_derivatives(exact, x.double(), dy.double())
    for value, exact in zip(got, want, strict=True):
        assert error(value, exact) < 1e-4


@pytest.mark.parametrize(
    ("name", "shape"), [("LN", (2**21 + 3, 1024)), ("BN", (1029, 32, 256, 256))]
)
def test_more_values_than_int32_counts(name, shape, launched):
    """Beyond 2³¹ values: the first rows and the last are torch's."""
    values = torch.Size(shape).numel()
    assert values > 2**31
    if torch.cuda.mem_get_info()[0] < 12 * values:
        pytest.skip("needs six tensors of that size in 16 bits")
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.bfloat16, device="cuda").requires_grad_()
    y = LAYERS[name].build(shape).cuda()(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert launched == ["forward", "backward"]
    if name == "LN":
        for rows in (slice(0, 5), slice(-5, None)):
            part = x[rows].detach().requires_grad_()
            want = LAYERS[name].build_native(shape).cuda()(part.float())
            (want_dx,) = torch.autograd.grad(want, part, dy[rows].float())
            assert error(y[rows], want) < 2**-7
            assert error(dx[rows], want_dx) < 2**-7
    else:
        mean = x.detach().mean((0, 2, 3), dtype=torch.float32)
        for place in (0, -1):
            # A thousand maps of standard normal values: their variance is 1 to 1e-3.
            want = x.detach()[place].float() - mean[:, None, None]
            assert error(y[place], want) < 2e-2
            assert error(dx[place], dy[place]) < 2e-2
