"""Exercises of chapter 1: one idea."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import core, functional
from normbook.exercises.grading import Case, Exercise, normal, small
from normbook.exercises.slips import NEAR_EPS, Standardize, slips
from normbook.moments import Moments

_BY_HAND = np.array([2.0, 4.0, 4.0, 10.0])


def _cancelled(x: Any, axes: Any, eps: float) -> Any:
    v = core.mean(x * x, axes) - core.mean(x, axes) ** 2
    return core.center(x, axes) * (v + eps) ** -0.5


def _layer_dx(
    dy: Any,
    x: Any,
    gamma: Any,
    eps: float,
    *,
    axes: Any = (1,),
    weights: tuple[float, float] = (1, 1),
    rescaled: bool = True,
    standardize: Standardize = core.standardize,
) -> Any:
    """Layer norm's dx, with weights for its two subtracted means."""
    x_hat, rstd = standardize(x, (1,), eps)
    g = gamma * dy
    first = weights[0] * core.mean(g, axes)
    second = weights[1] * x_hat * core.mean(g * x_hat, axes)
    return (g - first - second) * (rstd if rescaled else 1)


def _merge_with(between: Callable[[Moments, Moments], Any]) -> Callable[..., Moments]:
    """A merge with one's own idea of the spread between the two means."""

    def merge(a: Moments, b: Moments) -> Moments:
        whole = a.merge(b)
        return whole._replace(m2=a.m2 + b.m2 + between(a, b))

    return merge


def _halfway(a: Moments, b: Moments) -> Moments:
    return a.merge(b)._replace(mean=(a.mean + b.mean) / 2)


def _viewed(
    view: Callable[[Any, int], tuple[int, ...]],
    axes: Any,
    standardize: Standardize = core.standardize,
) -> Any:
    """Group norm with one's own view of x's shape and one's own axes."""

    def group(x: Any, groups: int) -> Any:
        viewed = x.reshape(view(x.shape, groups))
        return standardize(viewed, axes, 1e-5)[0].reshape(x.shape)

    return group


def _groups_first(shape: Any, groups: int) -> tuple[int, ...]:
    return (shape[0], groups, shape[1] // groups, *shape[2:])


def _groups_last(shape: Any, groups: int) -> tuple[int, ...]:
    return (shape[0], shape[1] // groups, groups, *shape[2:])


EXERCISES = {
    "by-hand": Exercise(
        lambda: core.standardize(_BY_HAND, (0,), 0.0)[0],
        {
            "you divided by the unbiased deviation: divide the squares by 4, not 3": (
                lambda: core.center(_BY_HAND, (0,)) / 12**0.5
            ),
            "you divided by the variance: take its square root first": (
                lambda: core.center(_BY_HAND, (0,)) / 9
            ),
            "you did not center: subtract the mean 5 first": (
                lambda: core.rescale(_BY_HAND, (0,), 0.0)[0]
            ),
            "you did not rescale: divide by the deviation": (
                lambda: core.center(_BY_HAND, (0,))
            ),
            "you divided by the uncentered root mean square": (
                lambda: core.center(_BY_HAND, (0,)) / 34**0.5
            ),
        },
        tolerance=0.01,
    ),
    "standardize": Exercise(
        lambda x, axes, eps: core.standardize(x, axes, eps)[0],
        {
            **slips(lambda s: lambda *args: s(*args)[0], fixed_eps=False),
            "you reduced over every axis: use `axes`": (
                lambda x, axes, eps: core.standardize(x, tuple(range(x.ndim)), eps)[0]
            ),
            "the digits are gone near 10,000: E[x²] − E[x]² cancels; center first": (
                _cancelled
            ),
        },
        cases=(
            Case((normal(3, 4), (1,), 0.5)),
            Case((normal(2, 3, 4), (0, 2), 0.3)),
            Case(
                ((1e4 + normal(2, 64)).astype(np.float32), (1,), 1e-5),
                "the digits are gone near 10,000: E[x²] − E[x]² cancels; center first",
            ),
        ),
    ),
    "layer-norm-dx": Exercise(
        _layer_dx,
        {
            "you left γ out: the means are those of g = γ·dy": (
                lambda dy, x, gamma, eps: _layer_dx(dy, x, 1.0, eps)
            ),
            "you multiplied by γ at the end: γ varies inside a set, so form g first": (
                lambda dy, x, gamma, eps: gamma * _layer_dx(dy, x, 1.0, eps)
            ),
            "you dropped the mean of g": (
                lambda *args: _layer_dx(*args, weights=(0, 1))
            ),
            "you dropped x̂ times the mean of g·x̂": (
                lambda *args: _layer_dx(*args, weights=(1, 0))
            ),
            "you added x̂ times the mean of g·x̂: subtract it": (
                lambda *args: _layer_dx(*args, weights=(1, -1))
            ),
            "you took sums for means: divide both by m": (
                lambda *args: _layer_dx(*args, weights=(5, 5))
            ),
            "you reduced over the batch: a set of layer norm is one row": (
                lambda *args: _layer_dx(*args, axes=(0,))
            ),
            "you forgot to divide by σ": (
                lambda *args: _layer_dx(*args, rescaled=False)
            ),
            **slips(
                lambda s: lambda *args: _layer_dx(*args, standardize=s),
                fixed_eps=False,
            ),
        },
        cases=(
            Case((normal(3, 5), normal(3, 5), normal(5), 0.5)),
            Case((normal(4, 5), normal(4, 5), normal(5), 0.1)),
        ),
    ),
    "merge": Exercise(
        Moments.merge,
        {
            "you left out the spread between the two means": _merge_with(
                lambda a, b: 0 * a.m2
            ),
            "your means count alike: weigh each by its count": _halfway,
            "the spread between the means has the wrong weight: it is n_a·n_b/n": (
                _merge_with(lambda a, b: (b.mean - a.mean) ** 2 * (a.count + b.count))
            ),
            "square the difference of the means": _merge_with(
                lambda a, b: abs(b.mean - a.mean) * a.count * b.count / (a[0] + b[0])
            ),
        },
        cases=(
            Case((Moments.of(normal(6), (0,)), Moments.of(normal(2) + 5, (0,)))),
            Case((Moments.of(normal(3, 4), (0,)), Moments.of(normal(9, 4), (0,)))),
        ),
    ),
    "group-view": Exercise(
        lambda x, groups: functional.group_norm(x, groups),
        {
            "a group took every G-th channel: neighbours belong together, (G, C/G)": (
                _viewed(_groups_last, (1, 3, 4))
            ),
            "you left the positions out of the set": _viewed(_groups_first, (2,)),
            "you left the channels out of the set: this is instance norm": (
                _viewed(_groups_first, (3, 4))
            ),
            "you reduced over the groups: this is layer norm": (
                _viewed(_groups_first, (1, 2, 3, 4))
            ),
            "you reduced over the batch": _viewed(_groups_first, (0, 2, 3, 4)),
            **slips(lambda s: _viewed(_groups_first, (2, 3, 4), s)),
        },
        cases=(
            Case((normal(2, 6, 3, 3), 2)),
            Case((normal(3, 8, 2, 2), 2)),
            Case((small(2, 6, 3, 3), 3), NEAR_EPS),
        ),
    ),
}
