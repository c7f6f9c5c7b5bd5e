"""What must hold for any shape and values: hypothesis looks for a counterexample."""

from functools import reduce

import numpy as np
import pytest
from conftest import error

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from normbook import core
from normbook import functional as F
from normbook.moments import Moments

# The same examples on every run and machine, however slow it is.
settings.register_profile("book", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("book")

EPS = 1e-5
VALUES = st.floats(-100, 100, width=32)


@st.composite
def arrays(draw, least=3, most=4):
    """(N, C, ...) of three axes or more, two values or more in each."""
    shape = draw(
        npst.array_shapes(min_dims=least, max_dims=most, min_side=2, max_side=5)
    )
    return draw(npst.arrays(np.float64, shape, elements=VALUES))


@st.composite
def sets(draw):
    """An array and axes to normalize over."""
    x = draw(arrays(least=1))
    axes = st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True)
    return x, tuple(sorted(draw(axes)))


@given(sets())
def test_mean_0_and_variance_v_over_v_plus_eps(drawn):
    x, axes = drawn
    x_hat, rstd = core.standardize(x, axes, EPS)
    v = x.var(axes, keepdims=True)
    assert error(x_hat.mean(axes), 0 * v.sum(axes)) < 1e-10
    assert error(x_hat.var(axes, keepdims=True), v / (v + EPS)) < 1e-9
    assert error(rstd, (v + EPS) ** -0.5) < 1e-9


@given(sets())
def test_no_value_gets_past_the_root_of_m_minus_1(drawn):
    x, axes = drawn
    x_hat, _ = core.standardize(x, axes, EPS)
    assert abs(x_hat).max() <= np.sqrt(core.count(x, axes) - 1) * (1 + 1e-9)


@given(sets(), st.integers(0, 2**32))
def test_a_gradient_sums_to_0_and_shrinks_along_x_hat(drawn, seed):
    x, axes = drawn
    x_hat, rstd = core.standardize(x, axes, EPS)
    dy = np.random.default_rng(seed).normal(size=x.shape)
    dx = core.standardize_vjp(dy, x_hat, rstd, axes)
    assert error(dx.mean(axes), 0 * x.mean(axes)) < 1e-10
    along = (dx * x_hat).sum(axes, keepdims=True)
    want = EPS * rstd**3 * (dy * x_hat).sum(axes, keepdims=True)
    assert error(along * rstd, want * rstd) < 1e-6 * rstd.max()
    assert np.linalg.norm(dx / rstd) <= np.linalg.norm(dy) * (1 + 1e-9)


@given(sets(), st.integers(0, 2**32))
def test_the_vjp_is_symmetric(drawn, seed):
    """⟨u, J v⟩ = ⟨J u, v⟩: the Jacobian is its own transpose."""
    x, axes = drawn
    x_hat, rstd = core.standardize(x, axes, 0.1)
    u, v = np.random.default_rng(seed).normal(size=(2, *x.shape))
    left = (u * core.standardize_vjp(v, x_hat, rstd, axes)).sum()
    right = (core.standardize_vjp(u, x_hat, rstd, axes) * v).sum()
    assert left == pytest.approx(right, abs=1e-9)


@given(arrays())
def test_equal_choices_of_sets_give_equal_outputs(x):
    channels = x.shape[1]
    everything = tuple(range(1, x.ndim))
    assert error(F.group_norm(x, 1), F.layer_norm(x, axes=everything)) < 1e-9
    assert error(F.group_norm(x, channels), F.instance_norm(x)) < 1e-9
    assert error(F.batch_norm(x[:1]), F.instance_norm(x[:1])) < 1e-9
    merged = np.moveaxis(x, 1, -1).reshape(-1, channels)
    back = np.moveaxis(x, 1, -1).shape
    tokens = np.moveaxis(F.batch_norm(merged).reshape(back), -1, 1)
    assert error(F.batch_norm(x), tokens) < 1e-9


@given(arrays(), st.data())
def test_masked_is_computed_on_what_is_left(x, data):
    """Any mask, against each set's real values alone."""
    where = data.draw(npst.arrays(bool, x.shape))
    where[0, :, ..., :2] = True  # two values in every channel at least
    junk = np.where(where, x, np.nan)
    y = F.batch_norm(junk, where=where)
    for channel in range(x.shape[1]):
        kept = where[:, channel]
        alone = F.batch_norm(x[:, channel][kept][:, None])[:, 0]
        assert error(y[:, channel][kept], alone) < 1e-8
        assert (y[:, channel][~kept] == 0).all()


@given(
    npst.arrays(np.float64, st.tuples(st.integers(1, 12)), elements=VALUES),
    st.data(),
)
def test_any_split_has_the_same_moments(x, data):
    cuts = data.draw(st.lists(st.integers(1, max(1, len(x) - 1)), unique=True))
    pieces = [p for p in np.split(x, sorted(cuts)) if len(p)]
    whole = Moments.of(x, (0,))
    merged = reduce(Moments.merge, [Moments.of(p, (0,)) for p in pieces])
    pushed = reduce(Moments.push, x, Moments(0, 0.0, 0.0))
    for got in (merged, pushed):
        assert got.count == len(x)
        assert error(np.reshape(got.mean, 1), whole.mean) < 1e-10
        assert error(np.reshape(got.m2, 1), whole.m2) < 1e-10
    again = reduce(Moments.merge, [Moments.of(p, (0,)) for p in pieces[::-1]])
    assert error(again.m2, whole.m2) < 1e-10
