"""nn: each layer beside torch.nn's own, over their constructor arguments and shapes."""

import copy
import inspect
import io
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import layers
import pytest
import torch
from conftest import TOLERANCE, error
from layers import LAYERS, MASKABLE, TRACKING, WIDE, randomized
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.autograd import gradcheck, gradgradcheck

from normbook import nn as nb

F64 = {"dtype": torch.float64}


class Pair(NamedTuple):
    """One layer of ours and of torch.nn, built with the same arguments."""

    ours: Callable[..., nn.Module]
    native: Callable[..., nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        given = [str(a) for a in self.args] + [
            f"{k}={v}" for k, v in self.kwargs.items()
        ]
        return f"{self.native.__name__}({', '.join(given)}) on {self.shape}"

    def build(self, **factory):
        """Both, with the same random γ and β."""
        ours = self.ours(*self.args, **self.kwargs, **factory)
        native = randomized(self.native(*self.args, **self.kwargs, **factory))
        ours.load_state_dict(native.state_dict(), strict=True)
        return ours, native

    def input(self, number=0, **factory):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return (2 + 3 * x).to(**factory)


def accepted(native, kwargs):
    """Whether this torch has these arguments: `bias` came to batch norm in 2.13."""
    return set(kwargs) <= set(inspect.signature(native.__init__).parameters)


BATCH = [
    {},
    {"eps": 0.1},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 0.7},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"track_running_stats": False, "affine": False},
]
INSTANCE = [
    *BATCH,
    {"affine": True},
    {"track_running_stats": True},
    {"track_running_stats": True, "momentum": None},
    {"track_running_stats": True, "momentum": 0.7, "affine": True},
]
PAIRS = [
    Pair(*pair)
    for pair in [
        *[
            (nb.BatchNorm, native, (4,), kwargs, shape)
            for native, shape in [
                (nn.BatchNorm1d, (6, 4)),
                (nn.BatchNorm1d, (2, 4)),
                (nn.BatchNorm1d, (6, 4, 5)),
                (nn.BatchNorm2d, (3, 4, 2, 5)),
                (nn.BatchNorm2d, (1, 4, 2, 5)),
                (nn.BatchNorm3d, (3, 4, 2, 1, 3)),
            ]
            for kwargs in BATCH
        ],
        *[
            (nb.InstanceNorm, native, (4,), kwargs, shape)
            for native, shape in [
                (nn.InstanceNorm1d, (6, 4, 5)),
                (nn.InstanceNorm2d, (3, 4, 2, 5)),
                (nn.InstanceNorm3d, (3, 4, 2, 1, 3)),
            ]
            for kwargs in INSTANCE
        ],
        *[
            (nb.LayerNorm, nn.LayerNorm, (normalized,), kwargs, shape)
            for normalized, shape in [
                (5, (5,)),
                (5, (4, 5)),
                ((5,), (2, 3, 5)),
                ([3, 5], (2, 3, 5)),
                ((4, 3, 5), (2, 4, 3, 5)),
                (1, (4, 1)),
            ]
            for kwargs in [
                {},
                {"eps": 0.1},
                {"elementwise_affine": False},
                {"bias": False},
            ]
        ],
        *[
            (nb.RMSNorm, nn.RMSNorm, (normalized,), kwargs, shape)
            for normalized, shape in [
                (5, (5,)),
                (5, (4, 5)),
                ([3, 5], (2, 3, 5)),
                ((4, 3, 5), (2, 4, 3, 5)),
            ]
            for kwargs in [{}, {"eps": 0.1}, {"elementwise_affine": False}]
        ],
        *[
            (nb.GroupNorm, nn.GroupNorm, (groups, 6), kwargs, shape)
            for groups in (1, 2, 3, 6)
            for shape in [(4, 6), (4, 6, 5), (2, 6, 3, 5), (2, 6, 2, 1, 3)]
            if groups < 6 or len(shape) > 2
            for kwargs in [{}, {"eps": 0.1}, {"affine": False}, {"bias": False}]
        ],
    ]
    if accepted(pair[1], pair[3])
]
# One of each, for what does not depend on every argument; RMSNorm of the last axis.
SHAPE = (3, 4, 2, 5)
FIVE = {
    key: Pair(layer.build, layer.build_native, (SHAPE,), {}, SHAPE)
    for key, layer in (WIDE | {"RMSNorm": LAYERS["RMSNorm"]}).items()
}

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
# What is quick is looked at for all pairs of a layer in one test.
LAYER_NAMES = ["Batch", "Instance", "Layer", "RMS", "Group"]
every_layer = pytest.mark.parametrize("name", LAYER_NAMES)
each_layer = pytest.mark.parametrize("pair", FIVE.values(), ids=FIVE)


def same(ours, native, tolerance=1e-12):
    """State dicts: the same keys in the same order, types, shapes and values."""
    ours, native = ours.state_dict(), native.state_dict()
    assert list(ours) == list(native)
    for key, value in native.items():
        assert ours[key].dtype == value.dtype
        assert error(ours[key], value) <= tolerance, key


@every_pair
def test_training_then_evaluation(pair):
    """Outputs, gradients and buffers over three steps, then evaluation."""
    ours, native = pair.build(**F64)
    for step in range(4):
        if step == 3:
            ours.eval()
            native.eval()
        results = []
        for layer in (ours, native):
            x = pair.input(step, **F64).requires_grad_()
            y = layer(x)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), **F64)
            layer.zero_grad()
            y.backward(dy)
            results.append([y, x.grad, *(p.grad for p in layer.parameters())])
        for got, want in zip(*results, strict=True):
            assert error(got, want) < 1e-9  # two values a set: grown by 1/std
        same(ours, native)


def pairs_of(name):
    return [pair for pair in PAIRS if pair.ours.__name__ == f"{name}Norm"]


def test_every_pair_is_of_a_layer_that_is_looked_at():
    assert sum(len(pairs_of(name)) for name in LAYER_NAMES) == len(PAIRS)


@every_layer
def test_constructor_state_and_printed_form(name):
    for pair in pairs_of(name):
        ours = pair.ours(*pair.args, **pair.kwargs)
        native = pair.native(*pair.args, **pair.kwargs)
        same(ours, native, tolerance=0)
        assert ours.extra_repr() == native.extra_repr(), pair
        assert [n for n, _ in ours.named_parameters()] == [
            n for n, _ in native.named_parameters()
        ], pair
        trained, _ = pair.build()
        trained.train()(pair.input(dtype=torch.float32))
        trained.reset_parameters()
        same(trained, native, tolerance=0)


@every_layer
def test_state_dicts_load_both_ways(name):
    for pair in pairs_of(name):
        ours, native = pair.build()
        for layer in (ours, native):
            layer(pair.input(dtype=torch.float32))
        fresh = pair.native(*pair.args, **pair.kwargs)
        fresh.load_state_dict(ours.state_dict(), strict=True)
        same(ours, fresh, tolerance=0)
        fresh = pair.ours(*pair.args, **pair.kwargs)
        fresh.load_state_dict(native.state_dict(), strict=True)
        same(fresh, native, tolerance=0)


@pytest.mark.slow
@every_pair
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_narrow_dtypes(pair, dtype):
    factory = {"dtype": getattr(torch, dtype)}
    ours, native = pair.build(**factory)
    wide = copy.deepcopy(native).double()
    if isinstance(wide, nn.RMSNorm) and wide.eps is None:
        wide.eps = torch.finfo(factory["dtype"]).eps
    x = pair.input(**factory)
    y, want = ours(x), wide(x.double())
    assert y.dtype == x.dtype
    # Two values a set: the error of the mean is grown by 1/std.
    few = 10 if dtype == "float32" else 1
    assert error(y, want) <= few * TOLERANCE[dtype]
    for (key, got), value in zip(
        ours.state_dict().items(), wide.state_dict().values(), strict=True
    ):
        assert got.dtype in (factory["dtype"], torch.int64)
        assert error(got, value) <= TOLERANCE[dtype], key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("var", [0.0, 1e-4, 1.0])
def test_evaluation_adds_eps_in_32_bits(dtype, var):
    """In float16 itself 1e-5 is off by half a percent."""
    layer = nb.BatchNorm(4).to(getattr(torch, dtype)).eval()
    layer.running_var.fill_(var)
    x = (1e-2 * torch.randn(9, 4)).to(layer.running_var.dtype)
    want = x.double() / (layer.running_var.double() + 1e-5).sqrt()
    assert error(layer(x), want) <= TOLERANCE[dtype] / 2


@each_layer
def test_half_converts_the_layer_as_torch_does(pair):
    ours, native = (layer.half() for layer in pair.build())
    same(ours, native, tolerance=0)
    x = pair.input(dtype=torch.float16)
    assert error(ours(x), native(x)) <= 2 * TOLERANCE["float16"]
    same(ours, native, tolerance=TOLERANCE["float16"])


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_float16_input_to_a_float32_layer(pair, training):
    """What autocast hands a layer: it answers in x's own dtype."""
    ours, _ = pair.build()
    ours.train(training)
    y = ours(pair.input(dtype=torch.float16))
    assert y.dtype == torch.float16
    if isinstance(ours, nb.RMSNorm):  # whose ε is that of x's dtype
        ours.eps = torch.finfo(torch.float16).eps
    assert error(y, ours(pair.input(dtype=torch.float32))) <= 2 * TOLERANCE["float16"]


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_memory_layouts(pair, training):
    """Transposed, strided and channels_last input gives what contiguous input gives."""
    x = pair.input(**F64)
    inputs = {
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": torch.stack([x, -x], -1)[..., 0],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "expanded": x[:1].expand(x.shape),
    }
    for name, value in inputs.items():
        ours, native = (layer.train(training) for layer in pair.build(**F64))
        leaves = [value.detach().requires_grad_() for _ in range(2)]
        y, want = ours(leaves[0]), native(leaves[1])
        assert error(y, want) < 1e-12, name
        dy = torch.randn(y.shape, **F64)
        y.backward(dy)
        want.backward(dy)
        assert error(leaves[0].grad, leaves[1].grad) < 1e-12, name
        same(ours, native)
        if name == "channels_last" and want.is_contiguous(
            memory_format=torch.channels_last
        ):
            assert y.is_contiguous(memory_format=torch.channels_last)


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch(pair, training):
    if pair is FIVE["IN"]:  # torch's fails with γ or with statistics
        pair = pair._replace(kwargs={"affine": False, "track_running_stats": False})
    results = []
    ours, native = pair.build()
    for layer in (ours, native):
        x = torch.empty(0, *pair.shape[1:], requires_grad=True)
        y = layer.train(training)(x)
        y.sum().backward()
        results.append((y, x.grad, *(p.grad for p in layer.parameters())))
    for got, want in zip(*results, strict=True):
        assert error(got, want) == 0
    same(ours, native, tolerance=0)


def test_an_empty_batch_leaves_tracked_instance_statistics():
    layer = nb.InstanceNorm(4, track_running_stats=True)
    assert layer(torch.empty(0, 4, 3)).shape == (0, 4, 3)
    same(layer, nb.InstanceNorm(4, track_running_stats=True), tolerance=0)


@each_layer
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_non_finite_values_spoil_what_they_spoil_in_torch(pair, value, training):
    results = []
    for layer in pair.build(**F64):
        x = pair.input(**F64)
        x[1, 2, 0, 3] = value
        results.append(layer.train(training)(x))
    assert error(*results) < 1e-12


@each_layer
def test_no_grad_and_a_plain_input(pair):
    ours, native = pair.build(**F64)
    x = pair.input(**F64)
    with torch.no_grad():
        y = ours(x)
    assert not y.requires_grad
    assert error(y, native(x)) < 1e-12
    same(ours, native)  # the statistics move all the same
    y = ours(x)
    y.backward(torch.ones_like(y))
    assert x.grad is None
    assert all(p.grad is not None for p in ours.parameters())
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    ours(x).pow(3).sum().backward()
    assert x.grad.abs().max() > 0


@each_layer
def test_copies(pair):
    ours, _ = pair.build()
    x = pair.input(dtype=torch.float32)
    ours(x)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(saved, weights_only=False),
    ):
        same(copied, ours, tolerance=0)
        assert type(copied) is type(ours)
        assert error(copied.eval()(x), ours.eval()(x)) == 0


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_a_batch_counter_and_cumulative_average(momentum, rng):
    layer = nb.BatchNorm(2, momentum=momentum, **F64)
    batches = torch.tensor(rng.normal(size=(5, 6, 2)))
    for batch in batches:
        layer(batch)
    assert layer.num_batches_tracked == 5
    if momentum is None:
        assert error(layer.running_mean, batches.mean((0, 1))) < 1e-14
        assert error(layer.running_var, batches.var(1).mean(0)) < 1e-14


# x, γ, β and a mask; evaluation where the layer has one.
GRADIENTS = [
    (nb.BatchNorm, (3,), {}, (3, 3, 2)),
    (nb.BatchNorm, (3,), {"affine": False}, (3, 3, 2)),
    (nb.BatchNorm, (3,), {}, (4, 3)),
    (nb.InstanceNorm, (3,), {"affine": True, "track_running_stats": True}, (2, 3, 3)),
    (nb.InstanceNorm, (3,), {}, (2, 3, 3)),
    (nb.LayerNorm, (4,), {}, (3, 4)),
    (nb.LayerNorm, ((3, 2),), {}, (2, 3, 2)),
    (nb.LayerNorm, (4,), {"elementwise_affine": False}, (3, 4)),
    (nb.LayerNorm, (4,), {"bias": False}, (3, 4)),
    (nb.RMSNorm, (4,), {}, (3, 4)),
    (nb.RMSNorm, ((3, 2),), {"eps": 0.1}, (2, 3, 2)),
    (nb.RMSNorm, (4,), {"elementwise_affine": False}, (3, 4)),
    (nb.GroupNorm, (2, 4), {}, (2, 4, 2)),
    (nb.GroupNorm, (1, 4), {"affine": False}, (2, 4, 2)),
]


@pytest.mark.parametrize(
    ("layer", "args", "kwargs", "shape", "mode"),
    [
        pytest.param(*row, mode, id=f"{row[0].__name__}{row[1:]}-{mode}")
        for row in GRADIENTS
        for mode in ("train", "eval", "masked")
        if mode == "train" or row[0] is not nb.RMSNorm
    ],
)
def test_first_and_second_derivatives(layer, args, kwargs, shape, mode):
    torch.manual_seed(0)
    layer = layer(*args, **kwargs, **F64).train(mode != "eval")
    where = torch.ones(shape, dtype=torch.bool)
    where[0, ..., -1] = False
    masked = {"where": where} if mode == "masked" else {}
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (x,), masked)

    x = torch.randn(shape, **F64, requires_grad=True)
    parameters = [torch.rand_like(p).requires_grad_() for p in layer.parameters()]
    assert gradcheck(run, (x, *parameters))
    assert gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("key", MASKABLE)
def test_masked_positions_have_no_influence(key, training):
    """Not on outputs, gradients or running statistics, whatever stands there."""
    where = torch.ones(3, 1, 2, 5, dtype=torch.bool)
    where[1, :, :, 3:] = False
    pair, results = FIVE[key], []
    for junk in (0.0, float("nan"), float("inf")):
        layer, _ = pair.build(**F64)
        x, dy = (torch.where(where, pair.input(n, **F64), junk) for n in (0, 1))
        y, dx, *rest = layers.results(layer.train(training), x, dy, where)
        results.append([y, dx, *rest])
        hidden = ~where.expand_as(x)
        assert (y[hidden] == 0).all()
        assert (dx[hidden] == 0).all()
    for dirty in results[1:]:
        for got, want in zip(dirty, results[0], strict=True):
            assert error(got, want) == 0


def test_masked_batches_are_the_short_batches():
    """Running statistics too: (N, C, T) padded from 4 to 7 steps."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, **F64)
    where = (torch.arange(7) < 4).expand(3, 1, 7)
    for layer in TRACKING.values():
        padded, short = (layer.build(x.shape, **F64) for _ in range(2))
        assert error(padded(x, where)[..., :4], short(x[..., :4])) < 1e-14
        same(padded, short, tolerance=1e-14)


MODES = pytest.mark.parametrize("training", [True, False])


# Tracing, torch itself makes an object of our autograd.Function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.processes
@each_layer
@MODES
def test_compiles_as_one_graph(pair, training):
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        layer, _ = pair.build(**F64)
        layer.train(training)
        run = (
            torch.compile(layer, backend="aot_eager", fullgraph=True)
            if compiled
            else layer
        )
        x = pair.input(**F64).requires_grad_()
        y = run(x)
        y.backward(pair.input(1, **F64))
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
        results[-1] += [buffer.clone() for buffer in layer.buffers()]
    for got, want in zip(*results, strict=True):
        assert error(got, want) < 1e-12


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization")  # of torch 2.6
def test_compiles_with_inductor():
    """The default backend, where a C++ compiler is at hand."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    pair = FIVE["BN"]
    results = []
    for wrap in (lambda layer: layer, partial(torch.compile, fullgraph=True)):
        layer, _ = pair.build()
        x = pair.input(dtype=torch.float32).requires_grad_()
        y, texts = run_and_get_code(wrap(layer), x)
        # A power of −½ would be taken anew for every value, at three times the time.
        assert not any("pow(" in text for text in texts)
        y.backward(pair.input(1, dtype=torch.float32))
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
        results[-1] += [buffer.clone() for buffer in layer.buffers()]
    for got, want in zip(*results, strict=True):
        assert error(got, want) < TOLERANCE["float32"]


def test_per_sample_gradients_by_vmap():
    layer, x = nb.LayerNorm(4, **F64), torch.randn(6, 3, 4, **F64)

    def loss(x):
        return (layer(x) ** 3).sum()

    got = torch.func.vmap(torch.func.grad(loss))(x)
    want = torch.stack([torch.func.grad(loss)(one) for one in x])
    assert error(got, want) < 1e-14


SWAP = {nn.BatchNorm1d: nb.BatchNorm} | {
    type(layer.build_native(SHAPE)): type(layer.build(SHAPE))
    for layer in LAYERS.values()
}


def test_a_model_with_its_norms_swapped_trains_the_same():
    torch.manual_seed(0)
    native = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.GroupNorm(3, 6),
        nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 12),
        nn.RMSNorm(12),
        nn.BatchNorm1d(12),
        nn.Linear(12, 10),
    ).double()
    ours = copy.deepcopy(native)
    for module in ours:
        module.__class__ = SWAP.get(type(module), type(module))
    assert sum(type(module) in SWAP.values() for module in ours) == 6
    x, labels = torch.randn(16, 1, 8, 8, **F64), torch.randint(10, (16,))
    losses = []
    for model in (native, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        losses[-1].append(model.eval()(x).sum().item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][4] < losses[0][0]
    same(ours, native, tolerance=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_default_eps_of_rms_norm_is_that_of_the_type_it_sums_in(dtype):
    """Seen in small tokens alone, whose mean square is no larger than ε."""
    x = torch.full((2, 8), 0.01, dtype=getattr(torch, dtype))
    ours, native = nb.RMSNorm(8, dtype=x.dtype), torch.nn.RMSNorm(8, dtype=x.dtype)
    assert error(ours(x), torch.ones(2, 8)) < 1e-2
    own = torch.nn.RMSNorm(8, eps=torch.finfo(x.dtype).eps, dtype=x.dtype)
    first = torch.equal(native(x), own(x))  # torch 2.6 took the ε of 16 bits
    assert first or error(ours(x), native(x)) < 1e-2


def test_gradients_that_add_up_leave_dy_alone():
    """Of one token dβ is dy, and a second backward adds to what is there, in place."""
    layer, dy = nb.LayerNorm(3).double(), torch.ones(1, 3, dtype=torch.float64)
    for _ in range(2):
        layer(torch.arange(3.0, dtype=torch.float64)[None]).backward(dy)
    assert torch.equal(dy, torch.ones_like(dy))
    assert torch.equal(layer.bias.grad, torch.full((3,), 2.0, dtype=torch.float64))
