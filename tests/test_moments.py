"""moments: one value, one batch, one machine at a time, and always the same answer."""

from functools import reduce

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, error

from normbook import core
from normbook import functional as F
from normbook.core import Set
from normbook.moments import NONE_YET, Moments, running, standardize


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_of(library, rng, axes, masked):
    x = rng.normal(3, 2, (4, 5, 6))
    where = np.arange(5)[:, None] < rng.integers(2, 6, (4, 1, 6)) if masked else None
    if masked and axes != (1,):
        where = where | (np.arange(4) < 2)[:, None, None]
    got = Moments.of(library.array(x), Set(axes, library.array(where)))
    kept = np.ma.masked_array(x, None if where is None else ~where)
    assert (
        error(got.count, kept.count(axes, keepdims=True) + np.zeros_like(got.mean)) == 0
        if masked
        else got.count == np.prod([x.shape[a] for a in axes])
    )
    assert library.close(got.mean, kept.mean(axes, keepdims=True).data)
    assert library.close(got.var(), kept.var(axes, keepdims=True).data)
    assert library.close(got.var(1), kept.var(axes, ddof=1, keepdims=True).data)


def test_of_ignores_nan_under_the_mask(library):
    x = library.array([1.0, np.nan, 3.0])
    got = Moments.of(x, Set((0,), library.array(np.array([True, False, True]))))
    assert library.close(got.mean, [2.0])
    assert library.close(got.m2, [2.0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("centered", [True, False])
def test_standardize_gives_what_core_gives_and_its_moments(
    library, rng, masked, centered
):
    x = library.array(rng.normal(3, 2, (4, 5, 6)))
    where = np.arange(6) < rng.integers(2, 7, (4, 5, 1)) if masked else None
    S = Set((0, 2), library.array(where))
    x_hat, rstd, moments = standardize(x, S, 1e-5, centered)
    want = (core.standardize if centered else core.rescale)(x, S, 1e-5)
    assert error(x_hat, want[0]) == 0
    assert error(rstd, want[1]) == 0
    if centered:
        for got, one in zip(moments, Moments.of(x, S), strict=True):
            assert error(got, one) <= TOLERANCE[library.dtype]
    else:
        assert moments.mean == 0
        assert library.close(moments.m2, core.total(x * x, S))


def test_push_one_value_at_a_time(library, rng):
    x = library.array(rng.normal(1e4, 1, (500, 3)))
    got = reduce(Moments.push, x, NONE_YET)
    exact = np.array(x.tolist())
    assert got.count == 500
    # float32 holds 1e4 to 1e-3, and the mean is rounded so at each of 500 steps.
    assert error(got.mean, exact.mean(0)) < (1e-6 if "32" in library.dtype else 1e-14)
    assert error(got.var(), exact.var(0)) < (1e-2 if "32" in library.dtype else 1e-10)


def test_push_by_hand():
    """1, 2, 6: means 1, 1.5, 3 and m2 0, 0.5, 14."""
    steps = [NONE_YET]
    for value in (1.0, 2.0, 6.0):
        steps.append(steps[-1].push(value))
    assert steps[1:] == [(1, 1.0, 0.0), (2, 1.5, 0.5), (3, 3.0, 14.0)]
    assert steps[-1].var() == pytest.approx(14 / 3)
    assert steps[-1].var(correction=1) == 7


@pytest.mark.parametrize("parts", [(1, 9), (5, 5), (9, 1), (2, 3, 5), (1,) * 10])
def test_merge_of_any_parts(library, rng, parts):
    x = rng.normal(3, 2, (10, 4)) * np.array([1, 10, 0.1, 1])
    ends = np.cumsum(parts)
    pieces = [
        Moments.of(library.array(x[end - size : end]), (0,))
        for end, size in zip(ends, parts, strict=True)
    ]
    got, whole = reduce(Moments.merge, pieces), Moments.of(library.array(x), (0,))
    assert got.count == whole.count == 10
    assert library.close(got.mean, whole.mean)
    assert library.close(got.m2, whole.m2)


def test_merge_with_nothing_changes_nothing(rng):
    some = Moments.of(rng.normal(size=(7, 2)), (0,))
    for merged in (NONE_YET.merge(some), some.merge(NONE_YET)):
        for got, want in zip(merged, some, strict=True):
            assert error(got, want) == 0


def test_averaging_variances_is_wrong_by_the_variance_of_the_means(rng):
    """Four machines, equal shares: v = mean of v_k + variance of mean_k."""
    shares = rng.normal(size=(4, 50)) + np.array([[0.0], [1.0], [-2.0], [3.0]])
    parts = [Moments.of(share, (0,)) for share in shares]
    whole = reduce(Moments.merge, parts)
    averaged = np.mean([part.var() for part in parts])
    means = np.array([part.mean for part in parts])
    assert whole.var() == pytest.approx(shares.var())
    assert whole.var() == pytest.approx(averaged + means.var())
    assert whole.var() > 2 * averaged


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_are_torch_s(rng, momentum):
    x = torch.tensor(rng.normal(2, 3, (6, 4)))
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    batch = Moments.of(x, (0,))
    got = (
        running(mean, batch.mean[0], momentum),
        running(var, batch.var(correction=1)[0], momentum),
    )
    torch.nn.functional.batch_norm(x, mean, var, training=True, momentum=momentum)
    assert error(got[0], mean) < 1e-14
    assert error(got[1], var) < 1e-14


def test_the_start_fades_as_1_minus_momentum_to_the_t():
    value = 1.0
    for _ in range(22):
        value = running(value, 0.0, 0.1)
    assert value == pytest.approx(0.9**22)
    assert value < 0.1 < value / 0.9**1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_functional_moments_accumulate_16_bits_in_32(dtype):
    x = torch.full((1000, 1), 300.0, dtype=dtype)
    x[::2] = 200
    got = F.moments(x, F.batch_sets(x.shape))
    assert got.mean.dtype == torch.float32
    assert got.mean == 250
    assert got.var() == 2500


def test_functional_moments_view_groups(rng):
    x = rng.normal(size=(2, 6, 3))
    got = F.moments(x, F.group_sets(x.shape, 3))
    assert error(got.mean.ravel(), x.reshape(6, 6).mean(1)) < 1e-14
    assert error(got.var().ravel(), x.reshape(6, 6).var(1)) < 1e-14
