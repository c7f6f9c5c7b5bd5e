"""fast.cpu: every kernel beside the plain formula in float64."""

from itertools import product
from threading import Event, get_ident
from time import sleep
from typing import NamedTuple
from weakref import ref

import layers
import pytest
import torch
from conftest import TOLERANCE, error
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layers import VARIANTS, Variant

pytest.importorskip("numba")

from normbook import fast, functional
from normbook.fast import cpu

pytestmark = pytest.mark.processes  # each kernel is compiled

EPS = 1e-5
DTYPES = ("float32", "bfloat16")


METHODS = layers.LAYERS | {
    name: VARIANTS[name] for name in ("GN of one group", "LN of two axes")
}
# Those whose γ indexes the channels of maps: kernels read these in channels_last, too.
MAPS = [name for name, variant in METHODS.items() if variant.method.axis == 1]
# Odd and even, one, more than one vector or one chunk, one sample, five axes.
SHAPES = [
    (3, 4),
    (5, 2, 1, 3),
    (1, 4, 2, 2, 3),
    (2, 6, 37),
    (70, 2, 9),
    (3, 8, 16, 17),
    (2, 2, 300, 301),
    (3, 1200),
]
# What one chunk and one part hold, made small, so that small shapes need many.
SMALL = {"CHUNK": 40, "ROWS": 5, "PARTS": 3, "PIECES": 2}


class Case(NamedTuple):
    """A method's inputs, made for one seed."""

    method: Variant
    x: torch.Tensor
    dy: torch.Tensor
    gamma: torch.Tensor | None
    beta: torch.Tensor | None

    def ours(self):
        """y, dx, dγ, dβ, mean and var of the kernels."""
        method, x = self.method, self.x
        kernel = fast.kernel_for(
            x, method.sets(x.shape), self.gamma, self.beta, EPS, method.centered
        )
        assert kernel.backend is cpu
        y, moments = cpu.forward(x, self.gamma, self.beta, kernel.task)
        dx, sums = kernel.backward(self.dy, x, self.gamma, moments)
        gradients = dx, *fast.of_parameters(sums, self.gamma, self.beta)
        assert y.stride() == dx.stride() == x.stride()
        assert moments.shape == (2, kernel.task.work.sets)
        mean, var = moments
        assert method.centered or not mean.any()
        return y, *gradients, mean if method.centered else None, var

    def wanted(self):
        """The same of the plain formula in float64."""
        method = self.method
        x, dy, gamma, beta = (
            None if value is None else value.double()
            for value in (self.x, self.dy, self.gamma, self.beta)
        )
        sets = method.sets(x.shape)
        parameters = (gamma, beta) if method.centered else (gamma,)
        y = method.function(x, *parameters, eps=EPS)
        gradients = method.vjp(dy, x, *parameters, eps=EPS)
        if not method.centered:
            return y, *gradients, None, x.pow(2).mean(sets.axes).flatten()
        moments = functional.moments(x, sets)
        return y, *gradients, moments.mean.flatten(), moments.var().flatten()

    def agrees(self, times=1.0):
        """Whether all of it is equal, to the tolerance of each result's dtype.

        The roundings of a long sum grow as the root of its length.
        """
        times *= max(1.0, self.x.numel() / 1e5) ** 0.5
        names = ("y", "dx", "dγ", "dβ", "mean", "var")
        for name, got, want in zip(names, self.ours(), self.wanted(), strict=True):
            assert (got is None) == (want is None), name
            if got is not None:
                allowed = times * TOLERANCE[str(got.dtype).removeprefix("torch.")]
                assert error(got, want) <= allowed, (name, error(got, want), allowed)
        return True


def make(method, shape, dtype="float32", parameters="own", mean=2.0, last=False):
    """A case. parameters: of x's dtype, of float32, or none."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    dtype = getattr(torch, dtype)
    x, dy = (mean + 3 * normal(*shape)).to(dtype), normal(*shape).to(dtype)
    if last:
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    gamma = beta = None
    if parameters != "none":
        own = dtype if parameters == "own" else torch.float32
        values = [shape[axis] for axis in method.sets(shape).param]
        gamma = (1 + normal(*values) / 2).to(own)
        beta = normal(*values).to(own) if method.centered else None
    return Case(method, x, dy, gamma, beta)


FITTING = [
    pytest.param(method, shape, id=f"{name}-{'x'.join(map(str, shape))}")
    for name, method in METHODS.items()
    for shape in SHAPES
    if method.fits(shape)
]


@pytest.fixture(params=["as it is", "small"])
def sizes(request, monkeypatch):
    """The limits as they are, and so small that every kernel has many ranges."""
    if request.param == "small":
        for name, value in SMALL.items():
            monkeypatch.setattr(cpu, name, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("method", "shape"), FITTING)
def test_the_plain_formula(method, shape, dtype, sizes):
    for parameters in ("own", "float32", "none"):
        assert make(method, shape, dtype, parameters).agrees()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("method", "shape"),
    [
        case
        for case in FITTING
        if len(case.values[1]) in (4, 5) and case.values[0].method.axis == 1
    ],
)
def test_channels_last(method, shape, dtype, sizes):
    case = make(method, shape, dtype, last=True)
    if not case.x.is_contiguous():
        assert fast.work_of(shape, method.sets(shape), True).channels_last
    assert case.agrees()


LAYOUTS = [(name, False) for name in METHODS] + [(name, True) for name in MAPS]


@pytest.mark.parametrize(("name", "last"), LAYOUTS)
def test_a_large_mean_costs_no_digits(name, last, sizes):
    """x from a normal distribution with μ = 3000 and σ = 3, in float32.

    What is left is the rounding of the mean itself, 3000·2⁻²⁴ of 3; the sums of
    E[x²] − E[x]² would be off by 1000²·2⁻²⁴, 6 %.
    """
    method = METHODS[name]
    case = make(method, (8, 4, 24, 25), mean=3000.0, last=last)
    names = ("y", "dx", "dγ", "dβ", "mean", "var")
    for name, got, want in zip(names, case.ours(), case.wanted(), strict=True):
        assert got is None or error(got, want) < 3e-4, name


@pytest.mark.parametrize("name", [*MAPS, "LN of two axes"])
def test_long_sums_cost_no_digits(name):
    """y is as near to float64 as rounding y alone allows: a few 2⁻²⁵ on the average.

    So is the mean. A plain sum of 4,000 values would be off by ten times that.
    """
    case = make(METHODS[name], (4, 4, 63, 64), mean=3.0)
    (y, *_, mean, _), (exact, *_, true_mean, _) = case.ours(), case.wanted()
    assert (y.double() - exact).norm() <= 3 * 2.0**-25 * exact.norm()
    assert error(mean, true_mean) <= 2.0**-23


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("BN", (60_000, 1, 2)),
        ("BN", (300_000, 2, 2)),
        ("LN", (300_000, 4)),
        ("IN", (150_000, 2, 8)),
    ],
)
def test_many_short_sets_cost_no_digits(name, shape):
    """All of dy has one sign: a long sum of it in float32 would grow unevenly."""
    case = make(METHODS[name], shape)
    case = case._replace(dy=0.1 + 0.01 * case.dy)
    names = ("y", "dx", "dγ", "dβ", "mean", "var")
    for title, got, want in zip(names, case.ours(), case.wanted(), strict=True):
        allowed = 1e-4 if title == "dγ" else 2e-6  # terms of both signs, which cancel
        assert (got - want).norm() <= allowed * want.norm(), title


@pytest.mark.parametrize(("name", "last"), LAYOUTS)
def test_any_number_of_threads_gives_the_same_bits(name, last, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK", 500)  # so that a small x keeps three threads busy
    method = METHODS[name]
    case = make(method, (7, 4, 9, 25), last=last)
    first, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            found.append(case.ours())
    finally:
        torch.set_num_threads(first)
    for other in found[1:]:
        for one, again in zip(found[0], other, strict=True):
            assert one is again is None or torch.equal(one, again)


def test_threads_divide_the_work(monkeypatch):
    """Ranges cover all parts once, and more than one thread takes some."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for parts, size in product((1, 2, 20, 100), (10, 10**6)):
        counts, threads = [0] * (parts + 1), set()

        def count(first, end, like, x, counts=counts, threads=threads):
            threads.add(get_ident())
            for part in range(first, end):
                counts[part] += 1
            sleep(0.01)

        cpu._run(count, parts, (torch.empty(size),))
        assert counts == [1] * parts + [0]
        assert len(threads) == (min(parts, 3) if size > 10 else 1)


def test_an_error_in_another_thread_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    here = get_ident()

    def fail(*_):
        sleep(0.01)
        if get_ident() != here:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cpu._run(fail, 100, (torch.empty(10**6),))


def test_an_interrupt_frees_nothing_that_another_thread_writes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    here, alive, done = get_ident(), [], Event()

    def interrupt(*_):
        if get_ident() == here:
            raise KeyboardInterrupt
        sleep(0.05)
        alive.append(tensor() is not None)
        done.set()

    x = torch.empty(10**6)
    tensor = ref(x)
    with pytest.raises(KeyboardInterrupt):
        cpu._run(interrupt, 2, (x,))
    del x
    assert done.wait(10)
    assert alive == [True]


@pytest.mark.parametrize(
    "change",
    [
        lambda dy: dy[:1, :1, :1, :1].expand(dy.shape),
        lambda dy: dy.contiguous(memory_format=torch.channels_last),
        lambda dy: dy.transpose(2, 3).contiguous().transpose(2, 3),
    ],
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["BN", "GN"])
def test_a_gradient_in_any_layout(name, last, change):
    case = make(METHODS[name], (3, 4, 5, 6), last=last)
    # dγ of an even dy is 0, and what is left is the rounding of its terms.
    assert case._replace(dy=change(case.dy)).agrees(times=2)


def test_is_rounded_as_torch_rounds():
    """Through a γ of 1: x_hat of these sets is known, and its rounding is torch's."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    x[0] = torch.arange(512) * 2.0**-5  # ties among them
    case = make(METHODS["RMSNorm"], (64, 512), parameters="none")
    case = case._replace(x=x.bfloat16(), dy=torch.zeros(64, 512).bfloat16())
    wide = case._replace(x=case.x.float(), dy=case.dy.float())
    assert torch.equal(case.ours()[0], wide.ours()[0].bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", METHODS)
def test_nan_and_infinity_stay_in_their_set(name, value, dtype):
    """One such value makes its set nan, as in the plain formula, and no other set."""
    case = make(METHODS[name], (3, 4, 2, 5), dtype)
    case.x[1, 2, 1, 3] = value
    got, want = case.ours()[0], case.wanted()[0].float()
    assert torch.equal(got.isnan(), want.isnan())
    assert 0 < got.isnan().sum() < got.numel()
    # The others of RMSNorm's set are divided by infinity.
    assert name != "RMSNorm" or value != value or not got[1, 2, 1, :3].any()


def test_runs_where_it_can_answer():
    here = torch.device("cpu")
    assert fast._backend(here, torch.float32) is fast._backend(here, torch.bfloat16)
    for dtype in (torch.float16, torch.float64, torch.int32, torch.complex64):
        assert fast._backend(here, dtype) is None


@pytest.mark.parametrize(
    ("shape", "last", "furthest"),
    [
        ((50, 6, 3, 5), False, 50 * 6),  # over all channels of all samples
        ((50, 6), False, 50 * 2),  # over the sets
        ((2, 6, 3, 5), False, 3 * 3 * 5),  # within one
        ((2, 6, 3, 5), True, 6 * 3 * 5),  # to a set's last value, past other sets'
    ],
)
def test_how_far_a_kernel_counts(shape, last, furthest):
    assert fast.work_of(shape, METHODS["GN"].sets(shape), last).furthest == furthest


def test_what_32_bits_do_not_count_is_left_to_the_plain_path():
    for name, shape in (
        ("GN of one group", (2, 2**10, 2**21)),
        ("BN", (2**16, 2, 2**15)),
    ):
        sets = METHODS[name].sets(shape)
        assert fast.work_of(shape, sets, False) is None
        part = (*shape[:-1], shape[-1] // 4)
        assert fast.work_of(part, METHODS[name].sets(part), False) is not None


@pytest.mark.parametrize(("shape", "axes"), [((4, 4), (0,)), ((2, 3, 2, 2), (0, 2, 3))])
def test_axes_with_the_batch_among_them_have_no_channels(shape, axes):
    """γ of layer norm has a value for each sample there, where a kernel's has C."""
    assert fast.work_of(shape, functional.layer_sets(shape, axes)) is None


@example("IN", (2, 8, 2), "float32", "own", False, dict.fromkeys(SMALL, 1))
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    shape=st.lists(st.integers(1, 19), min_size=2, max_size=5).map(tuple),
    dtype=st.sampled_from(DTYPES),
    parameters=st.sampled_from(["own", "float32", "none"]),
    last=st.booleans(),
    limits=st.fixed_dictionaries({name: st.integers(1, 90) for name in SMALL}),
)
def test_any_shape_and_any_limits(name, shape, dtype, parameters, last, limits):
    method = METHODS[name]
    if not method.fits(shape):
        return
    last = last and len(shape) in (4, 5) and name in MAPS
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in limits.items():
            patch.setattr(cpu, limit, value)
        # γ·rstd of a set of one value, whose x_hat is 0, is up to 1/√ε; dx of a set of
        # two near values is what their large gradients leave of each other.
        assert make(method, shape, dtype, parameters, last=last).agrees(times=8)
