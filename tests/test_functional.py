"""functional: every norm against a reference that knows no axes, only set numbers."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import error, to_numpy
from layers import LAYERS, OF_A_SAMPLE

from normbook import functional as F


class Norm(NamedTuple):
    """One norm on one layout: how to call it, and to which set each value belongs."""

    name: str
    shape: tuple[int, ...]
    options: dict[str, Any]
    param: tuple[int, ...]
    # From the indices of a value (one array an axis) to the numbers of its set.
    set_of: Any
    # From the indices of a value to those of its γ.
    place: Any

    def __str__(self) -> str:
        return f"{self.name}{'×'.join(map(str, self.shape))}{self.options or ''}"

    def __call__(self, x, *parameters, **options):
        parameters = dict(zip(("gamma", "beta"), parameters, strict=False))
        return getattr(F, self.name)(x, **parameters, **self.options, **options)

    def vjp(self, dy, x, *parameters, **options):
        parameters = dict(zip(("gamma", "beta"), parameters, strict=False))
        vjp = getattr(F, f"{self.name}_vjp")
        return vjp(dy, x, **parameters, **self.options, **options)

    def numbers(self, of) -> np.ndarray:
        """Sets, or places of γ, numbered from 0; an array of x's shape."""
        keys = [np.broadcast_to(k, self.shape).ravel() for k in of(*self._indices())]
        keys = np.stack(keys) if keys else np.zeros((1, np.prod(self.shape)), int)
        return np.unique(keys, axis=1, return_inverse=True)[1].reshape(self.shape)

    def _indices(self):
        return np.indices(self.shape)


def channel(n, c, *positions):
    return (c,)


def all_but_last(*i):
    return i[:-1]


def last(*i):
    return i[-1:]


LAYOUTS = [(5, 8), (3, 4, 5), (3, 4, 2, 3), (2, 4, 2, 3, 2)]
NORMS = [
    *[Norm("batch_norm", s, {}, s[1:2], channel, channel) for s in LAYOUTS],
    *[
        Norm("instance_norm", s, {}, (4,), lambda n, c, *p: (n, c), channel)
        for s in LAYOUTS[1:]
    ],
    *[
        Norm(
            "group_norm",
            s,
            {"groups": groups},
            s[1:2],
            lambda n, c, *p, size=s[1] // groups: (n, c // size),
            channel,
        )
        for s in LAYOUTS
        for groups in (1, 2, 4)
        if groups < 4 or len(s) > 2
    ],
    *[
        Norm(name, s, {}, s[-1:], all_but_last, last)
        for name in ("layer_norm", "rms_norm")
        for s in [(6,), *LAYOUTS]
    ],
    *[
        Norm(
            name,
            (3, 4, 2, 3),
            {"axes": axes},
            (4, 2, 3),
            lambda n, *r: (n,),
            lambda n, *r: r,
        )
        for name in ("layer_norm", "rms_norm")
        for axes in ((1, 2, 3), (-1, -3, -2))
    ],
    Norm(
        "layer_norm",
        (3, 4, 2, 3),
        {"axes": (1, 2, 3)},
        (4, 1, 1),
        lambda n, *r: (n,),
        channel,
    ),
    Norm(
        "layer_norm",
        (3, 4, 5),
        {"axes": (0, 2)},
        (3, 5),
        lambda n, c, p: (c,),
        lambda n, c, p: (n, p),
    ),
]

MASKABLE = [norm for norm in NORMS if norm.name != "rms_norm"]
BATCHED = [
    norm for norm in NORMS if len(norm.shape) > 1 and norm.options.get("axes") != (0, 2)
]


def reference(norm, where, eps, x, gamma=None, beta=None):
    """Sums over numbered sets by `index_add`, in float64 on torch."""
    sets = torch.tensor(norm.numbers(norm.set_of)).ravel()
    place = torch.tensor(norm.numbers(norm.place)).ravel()
    keep = torch.ones(sets.shape, dtype=torch.float64)
    if where is not None:
        keep = torch.tensor(np.broadcast_to(where, norm.shape).copy()).double().ravel()

    def mean(q):
        zeros = torch.zeros(int(sets.max()) + 1, dtype=torch.float64)
        count = zeros.index_add(0, sets, keep)
        return (zeros.index_add(0, sets, q * keep) / count)[sets]

    flat = x.ravel()
    if norm.name != "rms_norm":
        flat = flat - mean(flat)
    y = flat / torch.sqrt(mean(flat**2) + eps)
    if gamma is not None:
        y = y * gamma.ravel()[place]
    if beta is not None:
        y = y + beta.ravel()[place]
    return (y * keep).reshape(norm.shape)


def mask(norm, rng):
    """True at more than half of the places, at two or more of every set."""
    sets = norm.numbers(norm.set_of).ravel()
    where = rng.random(norm.shape) < 0.6
    for number in range(sets.max() + 1):
        places = np.flatnonzero(sets == number)
        where.flat[rng.choice(places, 2, replace=False)] = True
    return where


@pytest.fixture(params=NORMS, ids=str)
def norm(request):
    return request.param


@pytest.fixture
def inputs(norm, rng):
    """Dy, x, γ, β; RMS norm has no β."""
    values = [rng.normal(size=norm.shape), rng.normal(2, 3, norm.shape)]
    gamma, beta = rng.uniform(0.5, 2, norm.param), rng.normal(size=norm.param)
    return [*values, gamma, beta][: 3 if norm.name == "rms_norm" else 4]


def exact(value):
    return None if value is None else torch.tensor(to_numpy(value), requires_grad=True)


def test_output_and_gradients(library, norm, inputs, rng):
    """Against autograd through the formula, with γ and β or without, and masked."""
    rms = norm.name == "rms_norm"  # without β and mask
    for where in [None] if rms else [None, mask(norm, rng)]:
        options = {} if where is None else {"where": library.array(where)}
        for given in ("", "gamma", "gamma beta", "beta")[: 2 if rms else 4]:
            case = given, where is not None
            names = ("dy", "x", *given.split())
            here = [
                library.array(value) if name in names else None
                for name, value in zip(
                    ("dy", "x", "gamma", "beta"), inputs, strict=False
                )
            ]
            leaves = [exact(value) for value in here]
            y = reference(norm, where, 0.1, *leaves[1:])
            assert library.close(norm(*here[1:], eps=0.1, **options), y), case
            y.backward(leaves[0].detach())
            gradients = norm.vjp(*here, eps=0.1, **options)
            for got, leaf in zip(gradients, leaves[1:], strict=False):
                assert (got is None) == (leaf is None), case
                assert leaf is None or library.close(got, leaf.grad), case


def test_gradients_are_central_differences(norm, inputs):
    dy, *primals = inputs
    gradients = norm.vjp(dy, *primals)
    for number, gradient in enumerate(gradients):
        if gradient is None:
            assert norm.name == "rms_norm"
            continue
        for place in np.ndindex(gradient.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [p.copy() for p in primals]
                moved[number][place] += step
                ends.append((dy * norm(*moved)).sum())
            assert gradient[place] == pytest.approx(
                (ends[0] - ends[1]) / 2e-5, abs=1e-6
            )


def test_the_inputs_are_left_alone(library, norm, inputs, rng):
    where = {} if norm.name == "rms_norm" else {"where": library.array(mask(norm, rng))}
    here = [library.array(value) for value in inputs]
    norm(*here[1:], **where)
    norm.vjp(*here, **where)
    for got, value in zip(here, inputs, strict=True):
        assert library.close(got, value)


@pytest.mark.parametrize("norm", MASKABLE, ids=str)
def test_padding_has_no_influence(library, rng, norm, inputs):
    where = mask(norm, rng)
    dy, x, gamma, beta = inputs
    results = []
    for filling in (0.0, np.nan, np.inf, 1e30):
        here = [np.where(where, a, filling) for a in (dy, x)] + [gamma, beta]
        dy_, x_, *parameters = map(library.array, here)
        kept = {"where": library.array(where)}
        y = norm(x_, *parameters, **kept)
        dx, *others = norm.vjp(dy_, x_, *parameters, **kept)
        assert (to_numpy(y)[~where] == 0).all(), filling
        assert (to_numpy(dx)[~where] == 0).all(), filling
        results.append([y, dx, *others])
    for junk in results[1:]:
        for clean, dirty in zip(results[0], junk, strict=True):
            assert error(dirty, clean) == 0


SEQUENCES = [
    ("batch_norm", {}, (5,)),
    ("instance_norm", {}, (5,)),
    ("group_norm", {"groups": 2}, (4,)),
    ("layer_norm", {"axes": (1, 2)}, (5, 1)),
]


@pytest.mark.parametrize(("name", "options", "param"), SEQUENCES)
def test_a_padded_sequence_is_the_short_sequence(library, rng, name, options, param):
    """On (N, C, T), a mask of (N, 1, T): as if the padding had been cut off."""
    shape = (3, param[0], 7)
    dy, x = rng.normal(size=(2, *shape))
    gamma, beta = rng.normal(size=(2, *param))
    where = np.broadcast_to(np.arange(7) < 4, (3, 1, 7))
    norm, vjp = getattr(F, name), getattr(F, f"{name}_vjp")
    options = options | {"gamma": library.array(gamma), "beta": library.array(beta)}
    long, short = ([library.array(a[..., :n]) for a in (dy, x)] for n in (7, 4))
    kept = {"where": library.array(where), **options}
    y, cut = norm(*long[1:], **kept), norm(*short[1:], **options)
    assert library.close(y[..., :4], cut)
    assert (to_numpy(y)[..., 4:] == 0).all()
    masked, plain = vjp(*long, **kept), vjp(*short, **options)
    assert library.close(masked.x[..., :4], plain.x)
    assert (to_numpy(masked.x)[..., 4:] == 0).all()
    assert library.close(masked.gamma, plain.gamma)
    assert library.close(masked.beta, plain.beta)


def test_sequences_of_different_lengths_share_batch_statistics(library, rng):
    """Batch norm over (N, T): all real tokens, and only they, in one row."""
    lengths, x = (2, 5, 3), rng.normal(size=(3, 4, 5))
    where = np.arange(5) < np.array(lengths)[:, None, None]
    tokens = np.concatenate([x[n, :, :length].T for n, length in enumerate(lengths)])
    y = F.batch_norm(library.array(x), where=library.array(where))
    got = np.concatenate(
        [to_numpy(y)[n, :, :length].T for n, length in enumerate(lengths)]
    )
    assert library.close(F.batch_norm(library.array(tokens)), got)


def test_relations(library, rng):
    x = library.array(rng.normal(1, 2, (4, 6, 3, 5)))
    gamma = library.array(rng.normal(size=6))
    beta = library.array(rng.normal(size=6))
    wide = gamma.reshape((6, 1, 1)), beta.reshape((6, 1, 1))
    assert library.close(
        F.group_norm(x, 1, gamma, beta), F.layer_norm(x, *wide, axes=(1, 2, 3))
    )
    assert library.close(
        F.group_norm(x, 6, gamma, beta), F.instance_norm(x, gamma, beta)
    )
    assert library.close(
        F.batch_norm(x[:1], gamma, beta), F.instance_norm(x[:1], gamma, beta)
    )
    centered = x - x.mean(1, keepdims=True)
    assert library.close(F.layer_norm(x, axes=(1,)), F.rms_norm(centered, axes=(1,)))


def test_layer_norm_of_a_linear_map_is_rms_norm_of_a_centered_one(rng):
    """LN(Wx + b) = RMSNorm(PWx + Pb), P = I − 11ᵀ/d."""
    x, W, b = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)), rng.normal(size=7)
    C = np.eye(7) - 1 / 7
    want = F.layer_norm(x @ W.T + b)
    assert error(F.rms_norm(x @ (C @ W).T + C @ b), want) < 1e-13


def test_evaluation_is_an_affine_map(library, rng):
    x, mean, var, gamma, beta = (
        rng.uniform(0.5, 2, shape) for shape in ((3, 4, 2), 4, 4, 4, 4)
    )
    scale = gamma / np.sqrt(var + 1e-5)
    want = x * scale[:, None] + (beta - mean * scale)[:, None]
    here = map(library.array, (x, mean, var, gamma, beta))
    assert library.close(F.batch_norm_eval(*here), want)


def test_evaluation_with_the_batch_statistics_is_training(library, rng):
    x = rng.normal(2, 3, (6, 4, 5))
    here = map(library.array, (x, x.mean((0, 2)), x.var((0, 2))))
    assert library.close(F.batch_norm_eval(*here), F.batch_norm(library.array(x)))


# Table 1 of Ba, Kiros & Hinton (2016), with RMS norm (Zhang & Sennrich, 2019) and
# group norm: does the output of norm(X Wᵀ) stay when X or W changes so?
CHANGES = {
    "all weights rescaled": ("BN LN RMSNorm GN", lambda X, W, r: (X, 3 * W)),
    "all weights shifted": ("LN GN", lambda X, W, r: (X, W + r.normal(size=5))),
    "each weight vector rescaled": (
        "BN",
        lambda X, W, r: (X, r.uniform(0.2, 5, (8, 1)) * W),
    ),
    "each weight vector shifted": ("", lambda X, W, r: (X, W + r.normal(size=(8, 1)))),
    "data rescaled": ("BN LN RMSNorm GN", lambda X, W, r: (3 * X, W)),
    "data shifted": ("BN", lambda X, W, r: (X + r.normal(size=5), W)),
    "each case rescaled": (
        "LN RMSNorm GN",
        lambda X, W, r: (r.uniform(0.2, 5, (9, 1)) * X, W),
    ),
}


@pytest.mark.parametrize("name", [key for key in LAYERS if LAYERS[key].fits((9, 8))])
@pytest.mark.parametrize("change", CHANGES)
def test_invariances_of_weights_and_data(name, change, rng):
    invariant, change = CHANGES[change]
    norm = partial(LAYERS[name].function, eps=0.0)
    X, W = rng.normal(size=(9, 5)), rng.normal(size=(8, 5))
    before = norm(X @ W.T)
    X, W = change(X, W, rng)
    after = norm(X @ W.T)
    if name in invariant.split():
        assert error(after, before) < 1e-12
    else:
        assert error(after, before) > 0.1


# x → ax + b with a, b > 0 of these shapes on (N, C, H, W): who does not see it?
ACTIVATIONS = {
    "one": ((1, 1, 1, 1), "BN LN IN GN"),
    "per channel": ((1, 8, 1, 1), "BN IN"),
    "per sample": ((3, 1, 1, 1), "LN IN GN"),
    "per sample and channel": ((3, 8, 1, 1), "IN"),
    "per position": ((1, 1, 4, 5), ""),
}


@pytest.mark.parametrize("shape", ACTIVATIONS)
@pytest.mark.parametrize("name", OF_A_SAMPLE)
def test_invariances_of_activations(shape, name, rng):
    shape, invariant = ACTIVATIONS[shape]
    norm = partial(OF_A_SAMPLE[name].function, eps=0.0)
    x = rng.normal(size=(3, 8, 4, 5))
    a, b = rng.uniform(0.3, 3, (2, *shape))
    change = error(norm(a * x + b), norm(x))
    assert change < 1e-12 if name in invariant.split() else change > 0.1
    if name == "RMSNorm":  # blind to a scale alone
        assert (error(norm(a * x), norm(x)) < 1e-12) == (shape[1:] == (1, 1, 1))


def test_group_norm_is_blind_per_sample_and_group(rng):
    x = rng.normal(size=(3, 8, 4, 5))
    a, b = np.repeat(rng.uniform(0.3, 3, (2, 3, 2)), 4, axis=2)[..., None, None]
    assert error(F.group_norm(a * x + b, 2, eps=0.0), F.group_norm(x, 2, eps=0.0)) < (
        1e-12
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [300.0, 1.0])
def test_16_bits_accumulate_in_32(norm, dtype, value):
    """300² is past the largest float16; 1 + 2⁻⁸ is not a bfloat16."""
    shape = norm.shape
    x = value * (1 + torch.linspace(-0.1, 0.1, int(np.prod(shape))).reshape(shape))
    x = x.to(getattr(torch, dtype))
    libraries = [(torch.clone, x)]
    if dtype == "float16":
        libraries.append((np.copy, x.numpy()))
    want = norm(to_numpy(x))
    for copy, value in libraries:
        y, dx = norm(copy(value)), norm.vjp(copy(value), copy(value)).x
        assert y.dtype == dx.dtype == value.dtype
        assert error(y, want) < (2.0**-10 if dtype == "float16" else 2.0**-7)


def test_rms_norm_of_300_in_float16(library):
    """Squared in 16 bits it would be infinite, and the output 0."""
    x = library.array(np.full((2, 8), 300.0))
    half = x.half() if library.name == "torch" else x.astype("float16")
    assert (to_numpy(F.rms_norm(half)) == 1).all()


def test_sums_of_bfloat16_do_not_stall():
    """In bfloat16 itself a running sum of ones stops at 256."""
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    x[0, ::2] = 3
    assert error(F.layer_norm(x)[0, :2], [1.0, -1.0]) < 2.0**-7


@pytest.mark.parametrize("norm", BATCHED, ids=str)
def test_an_empty_batch(library, norm):
    x = library.array(np.zeros((0, *norm.shape[1:])))
    gamma = library.array(np.ones(norm.param))
    assert norm(x, gamma).shape == x.shape
    gradients = norm.vjp(x, x, gamma)
    assert gradients.x.shape == x.shape
    assert library.close(gradients.gamma, np.zeros(norm.param))


def test_layer_norm_of_one_value_is_beta(library):
    x = library.array([[3.0], [np.pi]])
    beta = library.array([0.5])
    assert library.close(F.layer_norm(x, None, beta), [[0.5], [0.5]])


@pytest.mark.parametrize(
    ("sets", "size", "number"),
    [
        (F.batch_sets((2, 6, 3, 4)), 24, 6),
        (F.layer_sets((2, 6, 3, 4), (1, 2, 3)), 72, 2),
        (F.layer_sets((2, 3, 6)), 6, 6),
        (F.instance_sets((2, 6, 3, 4)), 12, 12),
        (F.group_sets((2, 6, 3, 4), 3), 24, 6),
    ],
)
def test_sets_count_their_values(sets, size, number):
    """The axes table of the book: m values a set, so many means."""
    assert (sets.size, sets.number) == (size, number)


def test_evaluation_takes_a_mask_that_empties_a_channel(library, rng):
    """No statistics are taken, so none can be missing."""
    x = rng.normal(size=(2, 3, 4))
    where = np.zeros((2, 3, 4), bool)
    where[0, :2] = True
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2, size=3)
    here = [library.array(a) for a in (x, mean, var)]
    y = F.batch_norm_eval(*here, where=library.array(where))
    want = np.where(where, F.batch_norm_eval(x, mean, var), 0)
    assert library.close(y, want)
