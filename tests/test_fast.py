"""fast: who answers, the kernel or the plain path, and that it is the same answer."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import layers
import pytest
import torch
from conftest import TOLERANCE, error
from layers import MAPS, TRACKING, VARIANTS, randomized
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("numba")

from normbook import fast
from normbook import nn as nb
from normbook.fast import cpu
from normbook.functional import InputError

SHAPE = (3, 4, 5, 6)
LAYERS = {key: (layer, SHAPE) for key, layer in layers.LAYERS.items()} | {
    "BN of vectors": (layers.LAYERS["BN"], (6, 4)),
    "LN of two axes": (VARIANTS["LN of two axes"], SHAPE),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def build(name, **factory):
    layer, shape = LAYERS[name]
    x = 2 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return randomized(layer.build(shape)).to(**factory), x.to(**factory)


def results(layer, x, where=None):
    """y and all first gradients for a random dy."""
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).to(x)
    return layers.outputs_and_gradients(layer, x, dy, where)


@pytest.fixture
def calls(monkeypatch):
    """The names of the backend's functions, as they are called."""
    seen = []
    for real in (cpu.forward, cpu.backward):

        def spy(*args, real=real):
            seen.append(real.__name__)
            return real(*args)

        monkeypatch.setattr(cpu, real.__name__, spy)
    return seen


def same(got, want, dtype="float32"):
    return all(
        error(a, b) <= 2 * TOLERANCE[dtype] for a, b in zip(got, want, strict=True)
    )


@EVERY
def test_a_layer_asks_a_kernel_and_gets_the_plain_answer(name, calls):
    layer, x = build(name)
    got = results(layer, x)
    assert calls == ["forward", "backward"]
    with fast.off():
        want = results(layer, x)
    assert calls == ["forward", "backward"]
    assert same(got, want)


@EVERY
def test_without_gradients(name, calls):
    layer, x = build(name)
    with fast.off():
        want = layer(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = layer(x)
        assert not y.requires_grad
        assert error(y, want.detach()) <= TOLERANCE["float32"]
    assert calls == ["forward"] * 2


@EVERY
def test_only_what_needs_a_gradient_gets_one(name):
    layer, x = build(name)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    x.requires_grad_()
    layer(x).pow(3).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in layer.parameters())


def changed(change):
    return lambda layer, x: (layer, change(x))


PLAIN = {
    "float64": lambda layer, x: (layer.double(), x.double()),
    "float16": lambda layer, x: (layer.half(), x.half()),
    "strides": changed(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)),
    "negative": changed(lambda x: torch._neg_view(-x)),
    "γ in float64": lambda layer, x: (layer.double(), x),
    "a subclass": changed(lambda x: x.as_subclass(Mine)),
    "zeros without memory": changed(lambda x: torch._efficientzerotensor(x.shape)),
    "a negative γ": lambda layer, x: (negated(layer), x),
}


def negated(layer):
    """γ as a view that torch negates whenever it reads it."""
    layer.weight = torch.nn.Parameter(torch._neg_view(layer.weight.detach()))
    return layer


class Mine(torch.Tensor):
    """A tensor that a library made its own."""


@EVERY
@pytest.mark.parametrize("case", PLAIN)
def test_the_plain_path_answers_the_rest(name, case, calls):
    layer, x = PLAIN[case](*build(name))
    if case == "γ in float64" and name == "RMSNorm":
        layer.weight.data = layer.weight.data.double()
    got = results(layer, x)
    assert calls == []
    with fast.off():
        assert all(map(torch.equal, got, results(layer, x)))


@EVERY
def test_16_bits(name, calls):
    layer, x = build(name, dtype=torch.bfloat16)
    got = results(layer, x)
    assert calls == ["forward", "backward"]
    assert all(value.dtype == torch.bfloat16 for value in got)
    with fast.off():
        assert same(got, results(layer, x), "bfloat16")


def test_an_empty_batch_and_too_few_values(calls):
    assert nb.LayerNorm(4)(torch.empty(0, 4)).shape == (0, 4)
    assert nb.BatchNorm(4)(torch.empty(0, 4, 3)).shape == (0, 4, 3)
    for layer, shape in (
        (nb.BatchNorm(4), (1, 4)),
        (nb.GroupNorm(4, 4), (2, 4)),
        (nb.InstanceNorm(4), (2, 4, 1)),
    ):
        with pytest.raises(InputError, match="more than 1 value"):
            layer(torch.zeros(shape))
    assert calls == []


def test_an_epsilon_that_is_no_number_is_refused_as_ever():
    with pytest.raises(TypeError):
        nb.LayerNorm(4, eps="small")(torch.randn(2, 4))


@pytest.mark.parametrize("name", MAPS)
def test_a_mask_takes_the_plain_path(name, calls):
    layer, _ = build(name)
    x = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(8))
    where = (torch.arange(7) < torch.tensor([7, 4, 2])[:, None])[:, None]
    results(layer, x, where=where)
    assert calls == []


@pytest.mark.parametrize("name", MAPS)
def test_masks_that_leave_too_few_values_raise(name):
    layer, _ = build(name)
    where = torch.zeros(3, 1, 7, dtype=torch.bool)
    if name == "BN":
        where[0, 0, 0] = True
    else:
        where[1:] = True
    with pytest.raises(InputError, match="more than 1 value"):
        layer(torch.randn(3, 4, 7), where=where)


@EVERY
def test_second_derivatives(name):
    """Those of the plain path; the kernel's own gradient stands in the first."""
    layer, x = build(name)
    found = []
    for plain in (False, True):
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        generator = torch.Generator().manual_seed(9)
        dy = torch.randn(x.shape, generator=generator, requires_grad=True)
        with fast.off() if plain else torch.enable_grad():
            y = layer(inputs[0])
        first = torch.autograd.grad(y, inputs, dy, create_graph=True)
        loss = sum(
            (value * torch.randn(value.shape, generator=generator)).sum()
            for value in first
        )
        found.append(
            [*first, *torch.autograd.grad(loss, [*inputs, dy], allow_unused=True)]
        )
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        assert got is None or error(got, want) <= 5 * TOLERANCE["float32"]


@EVERY
def test_a_gradient_that_is_differentiated_is_the_same_gradient(name):
    """It ends at x and γ, though x may have been made with this γ, and γ has hooks."""
    layer, x = build(name)
    if name == "BN of vectors":
        layer.bias = layer.weight  # one tensor, twice
    x.requires_grad_()
    parameters, seen = list(layer.parameters()), []
    parameters[0].register_hook(lambda gradient: seen.append(1) or 2 * gradient)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    found = []
    for again in (False, True):
        y = layer(torch.tanh(layer(x)))
        found.append(torch.autograd.grad(y, [x, *parameters], dy, create_graph=again))
    assert len(seen) == 2
    assert same(*found)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("change", [torch.Tensor.contiguous, torch.Tensor.double])
def test_what_was_saved_may_come_back_in_another_layout_or_dtype(name, change):
    layer, x = build(name)
    x = x.contiguous(memory_format=torch.channels_last)
    want = results(layer, x)

    def unpack(value):
        return change(value) if value.dim() == 4 else value

    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, unpack):
        got = results(layer, x)
    assert same(got, want)


@EVERY
def test_a_batch_of_gradients(name):
    layer, x = build(name)
    x.requires_grad_()
    dys = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(6))
    y = layer(x)

    def gradient(dy, **batched):
        return torch.autograd.grad(y, x, dy, retain_graph=True, **batched)[0]

    want = torch.stack([gradient(dy) for dy in dys])
    assert same([gradient(dys, is_grads_batched=True)], [want])
    assert same([torch.vmap(gradient)(dys)], [want])


@EVERY
@pytest.mark.parametrize("own", [torch._efficientzerotensor, torch._neg_view])
def test_a_gradient_without_values_of_its_own(name, own):
    layer, x = build(name)
    x.requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    if own is torch._efficientzerotensor:
        dy, given = torch.zeros_like(x), own(x.shape)
    else:
        given = own(-dy)
    want, got = (torch.autograd.grad(layer(x), x, value) for value in (dy, given))
    assert same(got, want)


@EVERY
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_holds_the_formula(name):
    layer, x = build(name)
    if name.startswith("BN"):  # whose buffers would move with every call
        layer.running_mean = layer.running_var = None
    want = layer(x).detach()
    with torch.no_grad():
        for traced in (make_fx(layer)(x), torch.jit.trace(layer, x, check_trace=False)):
            assert same([traced(x), traced(x + 1)], [want, layer(x + 1)])


@EVERY
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_a_tangent_of_dy_is_kept(name):
    """dx is linear in dy: the derivative of it along t is what it would be for t."""
    layer, x = build(name)
    x.requires_grad_()
    dy, t = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(6))
    y = layer(x)
    (want,) = torch.autograd.grad(y, x, t, retain_graph=True)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(dy, t)
        (dx,) = torch.autograd.grad(y, x, dual)
        got = torch.autograd.forward_ad.unpack_dual(dx).tangent
    assert same([got], [want])


def test_parameters_and_buffers_of_another_shape_are_refused(calls):
    layer, x = build("LN of two axes")
    layer.weight = torch.nn.Parameter(torch.ones(6, 5))
    with pytest.raises(InputError, match="gamma"):
        layer(x)
    for tracking in TRACKING.values():
        layer = tracking.build(SHAPE)
        for changed in ("running_mean", "running_var"):
            for values in (1, 2, 8):
                other = copy.deepcopy(layer)
                setattr(other, changed, torch.ones(values))
                with pytest.raises(InputError, match="one value a channel"):
                    other(x)
    assert calls == []


def test_a_mask_that_is_no_tensor_is_refused():
    with pytest.raises(InputError, match="where"):
        nb.BatchNorm(4)(torch.randn(2, 4, 3), where=[True, True, False])


@pytest.mark.parametrize("eps", [0.0, 1e-30])
def test_the_least_of_epsilons_take_the_plain_path(eps, calls):
    """In float32 1/√ε³ would be infinite, and so would dx of values this small."""
    x = 1e-20 * torch.randn(4, 16, generator=torch.Generator().manual_seed(6))
    assert all(value.isfinite().all() for value in results(nb.LayerNorm(16, eps), x))
    assert calls == []


def test_an_input_of_inference_mode_still_teaches_the_parameters():
    layer, x = build("LN")
    want = results(layer, x)
    with torch.inference_mode():
        frozen = x.clone()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    got = torch.autograd.grad(layer(frozen), [*layer.parameters()], dy)
    assert same(got, want[2:])


@EVERY
def test_transforms_take_the_plain_path(name, calls):
    layer, x = build(name)
    layer.eval() if name.startswith("BN") else None
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        y = torch.func.functional_call(layer, parameters, x)
        return y.pow(3).sum()

    want = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    calls.clear()
    got = torch.func.grad(loss)({k: v.detach() for k, v in parameters.items()}, x)
    assert calls == []
    assert same(got.values(), want)


@EVERY
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_forward_mode_is_never_dropped(name):
    """The plain path has no forward mode and says so; no kernel answers in its place.

    With nothing that needs a gradient, a kernel would lose the tangent without a word.
    """
    layer, x = build(name)
    layer.requires_grad_(False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward mode|jvp"):
            layer(dual)


@EVERY
def test_meta_tensors(name, calls):
    layer, x = build(name)
    y = layer.to("meta")(x.to("meta"))
    assert y.shape == x.shape
    assert y.device.type == "meta"
    assert calls == []


@pytest.mark.parametrize("name", TRACKING)
@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
def test_running_statistics(name, momentum, calls):
    ours = TRACKING[name].build((3, 4, 7), momentum=momentum)
    plain = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([7, 4, 2])
    where = (torch.arange(7) < lengths[:, None])[:, None]
    for mask in (None, where, None):
        x = 5 + torch.randn(3, 4, 7, generator=generator)
        ours(x, where=mask)
        with fast.off():
            plain(x, where=mask)
    assert calls == ["forward"] * 2
    for buffer, want in zip(ours.buffers(), plain.buffers(), strict=True):
        assert error(buffer, want) <= TOLERANCE["float32"]
    moved = momentum or (momentum is None and name == "BN")  # None is 0 for the other
    assert bool(moved) == bool(ours.running_mean.any())


@pytest.mark.parametrize("name", TRACKING)
@pytest.mark.parametrize(
    "change",
    [
        lambda buffer: buffer,
        torch.Tensor.double,
        lambda buffer: buffer.repeat(2)[::2],
        lambda buffer: buffer.as_subclass(Mine),
        lambda buffer: torch._neg_view(-buffer),
    ],
)
def test_running_statistics_of_any_kind_move_in_place(name, change, calls):
    layer = TRACKING[name].build((3, 4, 7), momentum=0.3)
    layer.running_mean = change(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    layer.running_var = change(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    before = [buffer.clone() for buffer in (layer.running_mean, layer.running_var)]
    versions = [buffer._version for buffer in (layer.running_mean, layer.running_var)]
    x = 5 + torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(4))
    layer(x)
    assert calls == ["forward"]
    for buffer, version in zip(list(layer.buffers())[:2], versions, strict=True):
        assert buffer._version > version  # so that autograd knows
        assert not buffer.requires_grad
    axes = (0, 2) if name == "BN" else (2,)
    moments = x.double().mean(axes), x.double().var(axes)
    for buffer, old, new in zip(
        list(layer.buffers())[:2], before, moments, strict=True
    ):
        if name == "IN":
            new = new.mean(0)
        assert error(buffer, 0.7 * old.double() + 0.3 * new) <= TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["LN", "RMSNorm", "GN", "IN", "BN"])
def test_a_forward_is_few_frames_of_python(name):
    layer, x = build(name)
    frames = []
    layer(x)

    def note(frame, event, _):
        if event == "call":
            frames.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    assert "forward_sets" in frames
    assert len(frames) <= 20


@pytest.mark.processes
@pytest.mark.parametrize("name", ["LN", "BN", "GN of channels_last"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_holds_a_kernel_and_gives_the_same_bits(name, calls):
    torch.compiler.reset()
    layer, x = build(name.partition(" ")[0])
    if "channels_last" in name:
        x = x.contiguous(memory_format=torch.channels_last)
    compiled = copy.deepcopy(layer)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    want = results(layer, x)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    x = x.detach().requires_grad_()
    y = run(x)
    got = y, *torch.autograd.grad(y, [x, *compiled.parameters()], dy)
    assert calls == ["forward", "backward"] * 2
    assert all(map(torch.equal, got, want))
    assert all(map(torch.equal, compiled.buffers(), layer.buffers()))


@pytest.mark.processes
@pytest.mark.parametrize("name", ["LN", "BN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_takes_batches_of_any_size(name, dtype, calls):
    torch.compiler.reset()
    layer, x = build(name, dtype=dtype)
    run = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for samples in (2, 3, 4):
        assert torch.equal(run(x[:samples]), layer(x[:samples]))
    assert calls == ["forward"] * (6 if dtype is torch.float32 else 0)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["LN", "GN"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_within_a_transform_holds_the_formula(name, calls):
    """torch.func knows no rule for a kernel's operation."""
    torch.compiler.reset()
    layer, x = build(name)
    gradient = torch.func.grad(lambda x: layer(x).pow(3).sum())
    got = torch.compile(gradient, backend="aot_eager", fullgraph=True)(x)
    assert calls == []
    assert same([got], [gradient(x)])


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch < 2.7")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_has_only_torch_s_operations(strict):
    layer, x = build("LN")
    program = torch.export.export(layer, (x,), strict=strict)
    assert "normbook" not in program.graph_module.code
    assert same([program.module()(x).detach()], [layer(x).detach()])


def test_a_value_changed_before_backward_raises():
    layer, x = build("LN")
    x.requires_grad_()
    y = layer(x * 1)
    changed = x * 1
    y = layer(changed)
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_off_may_be_nested(calls):
    layer, x = build("GN")
    with fast.off():
        with pytest.raises(KeyError), fast.off():
            raise KeyError
        layer(x)
    assert calls == []
    layer(x)
    assert calls == ["forward"]


@pytest.mark.parametrize("flush", [False, True])
def test_the_state_of_torch_is_left_as_found(flush):
    """Its threads, and whether denormals are flushed to 0."""
    layer, x = build("GN")
    before = torch.get_num_threads()
    torch.set_flush_denormal(flush)
    try:
        results(layer, x)
        results(layer, torch.randn(64, 4, 40, 40))
        denormal = torch.tensor([1e-39]) * 0.5
        assert bool(denormal == 0) == flush
    finally:
        torch.set_flush_denormal(False)
    assert torch.get_num_threads() == before


@EVERY
@pytest.mark.parametrize("affine", [True, False])
def test_torch_s_defaults_for_new_tensors_change_nothing(name, affine):
    """A kernel's memory holds float32 on the CPU, whatever torch.empty would make."""
    layer, x = build(name)
    if not affine:
        layer.weight = layer.bias = None
    again, x = copy.deepcopy(layer), x.requires_grad_()
    dy = torch.randn_like(x)

    def run(layer):
        y = layer(x)
        return y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)

    want, before = run(layer), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            got = run(again)
    finally:
        torch.set_default_dtype(before)
    pairs = [*zip(got, want, strict=True)]
    pairs += zip(again.buffers(), layer.buffers(), strict=True)
    for value, exact in pairs:
        assert value.dtype == exact.dtype
        assert torch.equal(value, exact)


@pytest.mark.processes
def test_without_a_folder_to_keep_what_is_compiled():
    """A checkout that may not be written to, for a user without a home: still right."""
    code = (
        "from numba.core import caching; import torch;"
        "caching.CacheImpl._locator_classes = []; from normbook import nn as nb;"
        "x = torch.randn(5, 7); y = nb.LayerNorm(7)(x);"
        "from normbook.fast import cpu;"
        "assert cpu.forward_sets.nopython_signatures;"
        "assert torch.allclose(y, torch.nn.LayerNorm(7)(x), atol=1e-6)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.processes
def test_numba_starts_no_threads():
    """Its threads would set the number of OpenMP's, which are torch's, too."""
    code = """
import numba, torch
from normbook import nn as nb
torch.set_num_threads(2)
nb.GroupNorm(2, 4)(torch.randn(64, 4, 40, 40))
try:
    print(numba.threading_layer())
except ValueError:
    print("none", torch.get_num_threads())
"""
    assert run(code).split() == ["none", "2"]


def test_denormals_are_kept():
    """x of denormals has mean and variance; with ε = 0 nothing of it may be flushed."""
    x = torch.tensor([[1.0, 3.0]]) * 1e-39
    task = fast.Task(fast.Work(1, 1, 2, 1), 1.0, centered=True, affine=False)
    y, moments = cpu.forward(x, None, None, task)
    assert error(moments[0] / 1e-39, torch.tensor([2.0])) < 1e-5
    assert y[0, 1] == -y[0, 0] > 0


@pytest.mark.processes
@pytest.mark.parametrize("first", ["layer(x)", "torch.nn.GroupNorm(2, 4)(x)"])
def test_a_fork_has_threads_of_its_own(first):
    """A process that was forked after threads were used must not wait for them.

    Nor where the first kernel is called in it.
    """
    code = f"""
import os, torch
from normbook import nn as nb
torch.set_num_threads(2)
layer, x = nb.GroupNorm(2, 4), torch.randn(64, 4, 40, 40)
{first}
child = os.fork()
if child == 0:
    y = layer(x)
    torch.set_num_threads(1)  # torch itself would wait for its lost workers
    os._exit(0 if torch.equal(y, layer(x)) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).split() == ["0"]


@pytest.mark.processes
def test_without_numba_the_plain_path_answers():
    code = """
import sys
sys.modules["numba"] = None
import torch
from normbook import fast, nn as nb
assert fast._backend(torch.device("cpu"), torch.float32) is None
y = nb.LayerNorm(4)(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
print([round(value, 3) for value in y[0].tolist()])
from normbook.fast.__main__ import main
main()
"""
    said = run(code)
    assert "[-1.069, -0.535, 0.0, 1.604]" in said
    assert "cpu: the plain path answers, because" in said
    assert "numba" in said.partition("because")[2].partition("cuda")[0]


@pytest.mark.processes
def test_importing_the_layers_imports_no_compiler():
    """numba comes with the first call, Triton with the first on a GPU."""
    code = "import sys, normbook.nn; print({'numba', 'triton'} & {*sys.modules})"
    assert run(code).strip() == "set()"


@pytest.mark.processes
def test_compile_ahead_leaves_nothing_to_compile(tmp_path):
    """A second process with the same cache compiles no kernel of these layers."""
    code = """
from numba.core import event
import torch
compiled = []
class Listener(event.Listener):
    def on_start(self, what): compiled.append(what.data["dispatcher"].py_func.__name__)
    def on_end(self, what): pass
event.register("numba:compile", Listener())
from normbook import nn as nb
for dtype in (torch.float32, torch.bfloat16):
    for last in (False, True):
        for layer in (nb.BatchNorm(4), nb.GroupNorm(2, 4), nb.LayerNorm(6)):
            x = torch.randn(3, 4, 5, 6).to(dtype)
            if last and not isinstance(layer, nb.LayerNorm):
                x = x.contiguous(memory_format=torch.channels_last)
            layer.to(dtype)(x.requires_grad_()).sum().backward()
print(len(compiled))
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert "cpu: compiled in" in run("-m normbook.fast", **cache)
    assert run(code, **cache).split() == ["0"]


def run(code, **environment):
    """What this code, or `-m module`, prints in a process of its own."""
    arguments = code.split() if code.startswith("-m") else ["-c", code]
    source = str(Path(fast.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "PYTHONPATH": source, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
