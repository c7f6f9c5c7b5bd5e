"""core: each function against its formula written out, each VJP three ways."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier, get_ident

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, error

from normbook import core
from normbook.core import Set

SHAPE, EPS = (3, 4, 5), 0.1
SETS = [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)]

# Each VJP with the function it belongs to, in the arguments of both.
FORWARD = {
    "center": lambda x, axes, where: core.center(x, Set(axes, where)),
    "rescale": lambda x, axes, where: core.rescale(x, Set(axes, where), EPS)[0],
    "standardize": lambda x, axes, where: core.standardize(x, Set(axes, where), EPS)[0],
    "rstd": lambda x, axes, where: core.rescale(x, Set(axes, where), EPS)[1],
}


def center_vjp(dy, x, axes, where):
    return core.center_vjp(dy, Set(axes, where))


def rescale_vjp(dy, x, axes, where):
    y, rstd = core.rescale(x, Set(axes, where), EPS)
    return core.rescale_vjp(dy, y, rstd, Set(axes, where))


def standardize_vjp(dy, x, axes, where):
    x_hat, rstd = core.standardize(x, Set(axes, where), EPS)
    return core.standardize_vjp(dy, x_hat, rstd, Set(axes, where))


def rstd_vjp(dy, x, axes, where):
    y, rstd = core.rescale(x, Set(axes, where), EPS)
    return core.rstd_vjp(dy, y, rstd, Set(axes, where))


VJP = {
    "center": center_vjp,
    "rescale": rescale_vjp,
    "standardize": standardize_vjp,
    "rstd": rstd_vjp,
}


def written_out(name, x, axes, where):
    """The formula on torch, step by step, with a mask as a product."""
    keep = torch.ones_like(x) if where is None else where.to(x.dtype)
    m = keep.sum(axes, keepdim=True)
    mean = (x * keep).sum(axes, keepdim=True) / m
    if name == "center":
        return (x - mean) * keep
    if name == "standardize":
        x = x - mean
    root = torch.sqrt((x * x * keep).sum(axes, keepdim=True) / m + EPS)
    return 1 / root if name == "rstd" else x / root * keep


def central(f, x, dy, step=1e-5):
    """The gradient of Σ dy·f(x) by central differences."""
    dx = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        dx[place] = (dy * (f(up) - f(down))).sum() / (2 * step)
    return dx


def mask(rng, axes, shape=SHAPE):
    """True at about two thirds of the places, at two or more of each set."""
    while True:
        where = rng.random(shape) < 0.7
        if where.sum(axes).min() >= 2 and not where.all():
            return where


@pytest.fixture(params=SETS, ids=lambda axes: "S=" + "".join(map(str, axes)))
def axes(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def where(request, rng, axes):
    return mask(rng, axes) if request.param else None


@pytest.fixture
def x(rng):
    return rng.normal(2.0, 3.0, SHAPE)


@pytest.mark.parametrize("name", FORWARD)
def test_forward_is_the_formula(library, name, x, axes, where):
    x, mask = library.array(x), library.array(where)
    want = written_out(
        name,
        torch.tensor(np.array(x.tolist())),
        axes,
        None if where is None else torch.tensor(where),
    )
    assert library.close(FORWARD[name](x, axes, mask), want)


@pytest.mark.parametrize("name", VJP)
def test_vjp_is_autograd_of_the_formula(library, name, rng, x, axes, where):
    x, mask = library.array(x), library.array(where)
    leaf = torch.tensor(np.array(x.tolist()), requires_grad=True)
    y = written_out(name, leaf, axes, None if where is None else torch.tensor(where))
    dy = library.array(rng.normal(size=y.shape))
    y.backward(torch.tensor(np.array(dy.tolist())))
    assert library.close(VJP[name](dy, x, axes, mask), leaf.grad)


@pytest.mark.parametrize("name", VJP)
def test_vjp_is_the_central_difference(name, rng, x, axes, where):
    dy = rng.normal(size=FORWARD[name](x, axes, where).shape)
    dx = central(lambda x: FORWARD[name](x, axes, where), x, dy)
    # Central differences: an error of step² and of rounding over step.
    assert error(VJP[name](dy, x, axes, where), dx) < 1e-8


def planted_no_mean_term(dy, x_hat, rstd, axes):
    return (dy - x_hat * core.mean(dy * x_hat, axes)) * rstd


def planted_no_x_hat_term(dy, x_hat, rstd, axes):
    return core.center(dy, axes) * rstd


def planted_no_rstd(dy, x_hat, rstd, axes):
    return core.standardize_vjp(dy, x_hat, rstd, axes) / rstd


@pytest.mark.parametrize(
    "planted", [planted_no_mean_term, planted_no_x_hat_term, planted_no_rstd]
)
def test_the_gradient_check_sees_a_planted_error(planted, rng, x):
    axes, dy = (1, 2), rng.normal(size=SHAPE)
    x_hat, rstd = core.standardize(x, axes, EPS)
    dx = central(lambda x: core.standardize(x, axes, EPS)[0], x, dy)
    assert error(planted(dy, x_hat, rstd, axes), dx) > 0.05


def test_gamma_pulled_out_of_the_means_is_seen(rng, x):
    """Right for batch norm, where γ is constant in a set; wrong for layer norm."""
    gamma, dy = rng.uniform(0.5, 2, (1, 1, 5)), rng.normal(size=SHAPE)
    for axes, wrong in (((0, 1), False), ((2,), True)):
        x_hat, rstd = core.standardize(x, axes, EPS)
        dx = central(lambda x, a=axes: gamma * core.standardize(x, a, EPS)[0], x, dy)
        right = core.standardize_vjp(dy * gamma, x_hat, rstd, axes)
        pulled = core.standardize_vjp(dy, x_hat, rstd, axes) * gamma
        assert error(right, dx) < 1e-8
        assert (error(pulled, dx) > 0.05) == wrong


def test_statistics_keep_their_axes(library, x, axes, where):
    x, where = library.array(x), library.array(where)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(SHAPE))
    assert core.mean(x, Set(axes, where)).shape == kept
    assert core.rescale(x, Set(axes, where), EPS)[1].shape == kept
    assert core.standardize(x, Set(axes, where), EPS)[1].shape == kept


def test_count(library, x, axes, where):
    m = core.count(library.array(x), Set(axes, library.array(where)))
    if where is None:
        assert m == np.prod([SHAPE[axis] for axis in axes])
    else:
        assert library.close(m, where.sum(axes, keepdims=True))


def test_axes_alone_are_the_set_of_all_values_along_them(library, x, axes):
    x = library.array(x)
    for got, want in zip(
        core.standardize(x, axes, EPS), core.standardize(x, Set(axes), EPS), strict=True
    ):
        assert error(got, want) == 0


def test_statistics_from_elsewhere_take_the_place_of_a_set_s_own(library, x):
    """So evaluation mode is the same two functions."""
    x, mu, square = map(library.array, (x, [2.0], [9.0]))
    y, rstd = core.rescale(core.center(x, (), mu), (), EPS, square)
    assert library.close(y, (np.array(x.tolist()) - 2) / np.sqrt(9 + EPS))
    assert library.close(rstd, [1 / np.sqrt(9 + EPS)])


class Workers:
    """So many threads that add up arrays together, as machines do with all-reduce."""

    def __init__(self, number):
        self.parts, self.barrier = {}, Barrier(number)

    def add_up(self, mine):
        self.parts[get_ident()] = mine
        self.barrier.wait(timeout=10)
        total = sum(self.parts[worker] for worker in sorted(self.parts))
        self.barrier.wait(timeout=10)  # nobody's next part comes before all have read
        return total

    def run(self, function, *parts):
        """What the function makes of each part, all at the same time."""
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(function, *zip(*parts, strict=True)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ends", [[3], [1, 4], [1, 2, 3]])
def test_a_set_may_be_spread_over_workers(library, rng, masked, ends):
    """Unequal parts of a batch, each on its own worker, give what the batch gives."""
    x, dy = rng.normal(2.0, 3.0, (2, 6, 4, 5))
    where = mask(rng, (0, 2), x.shape) if masked else None
    S = Set((0, 2), library.array(where))
    x_hat, rstd = core.standardize(library.array(x), S, EPS)
    dx = core.standardize_vjp(library.array(dy), x_hat, rstd, S)
    d_rstd = library.array(rng.normal(size=rstd.shape))
    from_rstd = core.rstd_vjp(d_rstd, x_hat, rstd, S)
    group = Workers(len(ends) + 1)

    def work(x, dy, where):
        S = Set((0, 2), library.array(where), group.add_up)
        x_hat, rstd = core.standardize(library.array(x), S, EPS)
        dx = core.standardize_vjp(library.array(dy), x_hat, rstd, S)
        return x_hat, dx, core.rstd_vjp(d_rstd, x_hat, rstd, S)

    masks = [None] * (len(ends) + 1) if where is None else np.split(where, ends)
    parts = group.run(
        work, *zip(np.split(x, ends), np.split(dy, ends), masks, strict=True)
    )
    for place, want in enumerate((x_hat, dx, from_rstd)):
        joined = np.concatenate([np.array(part[place].tolist()) for part in parts])
        assert error(joined, want) <= TOLERANCE[library.dtype]


def test_an_empty_set_counts_one_value():
    assert core.count(np.ones((0, 3)), (0,)) == 1


def test_only_removes_nan_and_leaves_its_input_alone(library):
    x = library.array([1.0, np.nan, np.inf, 2.0])
    S = Set((0,), library.array(np.array([True, False, False, True])))
    assert library.close(core.only(x, S), [1, 0, 0, 2])
    assert np.isnan(float(x[1]))
    assert core.only(x, (0,)) is x


class Unassignable:
    """An array that nothing is assigned to, as JAX's are: x.at[i].set makes another."""

    def __init__(self, values):
        self.values = np.array(values)
        self.at = self

    def __getitem__(self, index):
        self.index = index
        return self

    def set(self, value):
        other = self.values.copy()
        other[self.index] = value
        return Unassignable(other)


def test_only_assigns_nothing_where_nothing_can_be_assigned():
    x = Unassignable([1.0, np.nan, 2.0])
    inside = core.only(x, Set((0,), np.array([True, False, True])))
    assert inside.values.tolist() == [1, 0, 2]
    assert np.isnan(x.values[1])


def test_standardize_is_rescale_of_center(library, x, axes, where):
    x, where = library.array(x), library.array(where)
    S = Set(axes, where)
    parts = core.rescale(core.center(x, S), S, EPS)
    for got, want in zip(core.standardize(x, S, EPS), parts, strict=True):
        assert library.close(got, want)


def test_center_is_an_orthogonal_projection(rng, x, axes):
    once = core.center(x, axes)
    assert error(core.center(once, axes), once) < 1e-14
    dy = rng.normal(size=SHAPE)
    assert np.sum(dy * once) == pytest.approx(np.sum(core.center(dy, axes) * x))


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_jacobian_is_a_projection(rng, eps):
    """σJ is symmetric; 1 → 0, x_hat → ε/σ³ (0 without ε), all else → 1/σ."""
    m = 7
    x = rng.normal(2, 3, m)
    x_hat, rstd = core.standardize(x, (0,), eps)
    jacobian = np.stack([core.standardize_vjp(e, x_hat, rstd, (0,)) for e in np.eye(m)])
    sigma = 1 / rstd.item()
    assert error(jacobian, jacobian.T) < 1e-14
    assert error(jacobian @ np.ones(m), np.zeros(m)) < 1e-14
    assert error(jacobian @ x_hat, eps / sigma**3 * x_hat) < 1e-14
    values = np.linalg.eigvalsh(jacobian) * sigma
    expected = np.sort([0, eps / sigma**2, *[1] * (m - 2)])
    assert error(values, expected) < 1e-13
    if eps == 0:
        assert np.linalg.matrix_rank(jacobian) == m - 2
        assert error(sigma * jacobian @ jacobian, jacobian) < 1e-13


def test_the_jacobian_of_rescale_has_rank_m_minus_1(rng):
    x = rng.normal(size=7)
    y, rstd = core.rescale(x, (0,), 0.0)
    jacobian = np.stack([core.rescale_vjp(e, y, rstd, (0,)) for e in np.eye(7)])
    assert np.linalg.matrix_rank(jacobian) == 6
    assert error(jacobian @ x, np.zeros(7)) < 1e-14


def test_two_values_give_plus_and_minus_1_and_no_gradient(library, rng):
    x = library.array(rng.normal(size=(2, 9)))
    x_hat, rstd = core.standardize(x, (0,), 0.0)
    assert library.close(abs(x_hat), np.ones((2, 9)))
    assert library.close(x_hat[0], -x_hat[1])
    dx = core.standardize_vjp(library.array(rng.normal(size=(2, 9))), x_hat, rstd, (0,))
    assert library.close(dx, np.zeros((2, 9)), times=100)  # grown by 1/|x₁ − x₂|


def test_no_value_gets_past_the_root_of_m_minus_1(rng):
    for m in (2, 3, 10, 1000):
        outlier = np.eye(1, m)[0]
        assert core.standardize(outlier, (0,), 0.0)[0].max() == pytest.approx(
            np.sqrt(m - 1)
        )
        anything = core.standardize(rng.standard_cauchy((99, m)), (1,), 0.0)[0]
        assert abs(anything).max() <= np.sqrt(m - 1) * (1 + 1e-12)


def test_the_variance_of_the_output_is_v_over_v_plus_eps(rng):
    x = rng.normal(size=1000)
    for eps in (1e-5, 1.0, 100.0):
        x_hat, _ = core.standardize(x, (0,), eps)
        assert x_hat.var() == pytest.approx(x.var() / (x.var() + eps))


def test_standardizing_twice_changes_nothing(library, x, axes, where):
    x, where = library.array(x), library.array(where)
    S = Set(axes, where)
    once, _ = core.standardize(x, S, 0.0)
    assert library.close(core.standardize(once, S, 0.0)[0], once)


def test_float32_at_mean_1e4(library, rng):
    """Two passes keep what float32 holds of x; E[x²] − E[x]² keeps nothing."""
    x = library.array(rng.normal(1e4, 1, (8, 1000)))
    exact = np.array(x.tolist())
    want = (exact - exact.mean(1, keepdims=True)) / np.sqrt(
        exact.var(1, keepdims=True) + 1e-5
    )
    got, _ = core.standardize(x, (1,), 1e-5)
    # The mean itself is rounded: half a unit in the last place of 1e4.
    assert error(got, want) < (1e-3 if library.dtype == "float32" else 1e-11)
    one_pass = (x * x).sum(1) / 1000 - (x.sum(1) / 1000) ** 2
    lost = error(one_pass, exact.var(1))
    assert lost > 1 if library.dtype == "float32" else lost < 1e-6


@pytest.mark.parametrize(
    ("gamma", "beta"),
    [
        ((1, 4, 1), (1, 4, 1)),
        ((1, 4, 5), (1, 1, 5)),
        ((3, 4, 5), (1, 1, 1)),
        (None, (1, 4, 1)),
        ((1, 1, 5), None),
        (None, None),
    ],
)
def test_affine_and_its_vjp(library, rng, x, gamma, beta):
    values = [x, *(s and rng.normal(size=s) for s in (gamma, beta))]
    here = [library.array(value) for value in values]
    leaves = [
        None if a is None else torch.tensor(np.array(a.tolist()), requires_grad=True)
        for a in here
    ]
    y = leaves[0] * (1 if gamma is None else leaves[1])
    y = y + (0 if beta is None else leaves[2])
    assert library.close(core.affine(*here), y)
    dy = library.array(rng.normal(size=SHAPE))
    y.backward(torch.tensor(np.array(dy.tolist())))
    for got, leaf in zip(core.affine_vjp(dy, *here), leaves, strict=True):
        if leaf is None:
            assert got is None
        else:
            assert library.close(got, leaf.grad)


def test_sum_to_keeps_axes_of_length_1(library, rng):
    x = rng.normal(size=(2, 1, 5))
    assert library.close(
        core.sum_to(library.array(x), (1, 1, 5)), x.sum(0, keepdims=True)
    )


@pytest.mark.parametrize("name", VJP)
def test_what_is_masked_has_no_influence(library, name, rng, x, axes):
    where = mask(rng, axes)
    clean, mask_ = library.array(np.where(where, x, -1.0)), library.array(where)
    y = FORWARD[name](clean, axes, mask_)
    dy = rng.normal(size=tuple(y.shape))
    dx = VJP[name](library.array(dy), clean, axes, mask_)
    assert error(dx, np.where(where, np.array(dx.tolist()), 0)) == 0
    for junk in (1e30, np.nan, np.inf):
        dirty = library.array(np.where(where, x, junk))
        assert error(FORWARD[name](dirty, axes, mask_), y) == 0
        dirty_dy = dy if name == "rstd" else np.where(where, dy, junk)
        dirty_dx = VJP[name](library.array(dirty_dy), dirty, axes, mask_)
        assert error(dirty_dx, dx) == 0


def test_a_masked_set_is_the_shorter_set(library, rng):
    """The first n of a row, and a row of n alone, are the same."""
    x, dy = rng.normal(size=(2, 4, 6))
    lengths = np.array([6, 2, 5, 3])
    where = np.arange(6) < lengths[:, None]
    S = Set((1,), library.array(where))
    x_hat, rstd = core.standardize(library.array(x), S, EPS)
    dx = core.standardize_vjp(library.array(dy), x_hat, rstd, S)
    for row, n in enumerate(lengths):
        short = library.array(x[row, :n])
        short_hat, short_rstd = core.standardize(short, (0,), EPS)
        short_dx = core.standardize_vjp(
            library.array(dy[row, :n]), short_hat, short_rstd, (0,)
        )
        assert library.close(x_hat[row, :n], short_hat)
        assert library.close(dx[row, :n], short_dx)
        assert error(x_hat[row, n:], np.zeros(6 - n)) == 0
        assert error(dx[row, n:], np.zeros(6 - n)) == 0


def test_the_gradient_shrinks_as_the_input_grows(rng, x):
    """Scale invariance: f(ax) = f(x) makes the gradient 1/a."""
    dy, norms = rng.normal(size=SHAPE), []
    for a in (1, 10, 100):
        x_hat, rstd = core.standardize(a * x, (2,), 0.0)
        norms.append(np.linalg.norm(core.standardize_vjp(dy, x_hat, rstd, (2,))))
    assert [b / a for a, b in pairwise(norms)] == pytest.approx([0.1, 0.1])
