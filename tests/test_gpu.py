"""On a GPU: the same functions and layers, in every dtype, beside float64 on the CPU.

Needs pytest, NumPy and torch alone, so that it runs on a bare machine.
"""

import copy

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, error

from normbook import functional as F
from normbook import nn as nb
from normbook.experiments import agreement
from normbook.functional import InputError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

SHAPE = (4, 6, 5, 3)
LAYERS = {
    "BatchNorm": lambda: nb.BatchNorm(6),
    "InstanceNorm": lambda: nb.InstanceNorm(6, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nb.LayerNorm([6, 5, 3]),
    "GroupNorm": lambda: nb.GroupNorm(2, 6),
    "RMSNorm": lambda: nb.RMSNorm([5, 3], eps=1e-5),
}
MASKABLE = [name for name in LAYERS if name != "RMSNorm"]


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2.0)
    return layer


def run(layer, x, dy, *where):
    """y, dx, the gradients of γ and β, and the buffers."""
    x = x.detach().requires_grad_()
    y = layer(x, *where)
    y.backward(dy)
    return [y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


def compare(layer, dtype, *where, training=True):
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, *SHAPE, generator=generator).to(getattr(torch, dtype))
    layer.train(training)
    there = copy.deepcopy(layer).to("cuda", x.dtype)
    here = copy.deepcopy(there).to("cpu", torch.float64)
    want = run(here, x.double(), dy.double(), *where)
    got = run(there, x.cuda(), dy.cuda(), *(mask.cuda() for mask in where))
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
    where = torch.ones(4, 1, 5, 3, dtype=torch.bool)
    where[1:3, :, 2:] = False
    compare(layer, dtype, where)


@pytest.mark.parametrize("name", MASKABLE)
def test_what_is_masked_has_no_influence(name):
    where = torch.ones(4, 1, 5, 3, dtype=torch.bool, device="cuda")
    where[1:3, :, 2:] = False
    x, dy = torch.randn(2, *SHAPE, device="cuda")
    results = [
        run(
            LAYERS[name]().cuda(),
            torch.where(where, x, junk),
            torch.where(where, dy, junk),
            where,
        )
        for junk in (0.0, float("nan"))
    ]
    for clean, dirty in zip(*results, strict=True):
        assert error(dirty, clean) == 0


def test_layers_are_torch_s_on_the_gpu():
    x = torch.randn(SHAPE, device="cuda")
    for ours, native in (
        (nb.BatchNorm(6), torch.nn.BatchNorm2d(6)),
        (nb.GroupNorm(3, 6), torch.nn.GroupNorm(3, 6)),
        (nb.LayerNorm(3), torch.nn.LayerNorm(3)),
    ):
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
