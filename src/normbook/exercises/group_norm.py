"""Exercises of chapter 5: group norm."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import core, functional
from normbook.exercises.grading import Case, Exercise, normal, small
from normbook.exercises.slips import NEAR_EPS, Standardize, slips


def _every(x: Any, groups: int) -> Any:
    """Group norm of (N, C, ...) whose groups take every G-th channel."""
    order = np.arange(x.shape[1]).reshape(-1, groups).T.ravel()
    y = np.empty_like(x)
    y[:, order] = functional.group_norm(x[:, order], groups)
    return y


def _viewed(
    x: Any,
    groups: int,
    axes: Any = (2, 3, 4),
    standardize: Standardize = core.standardize,
) -> Any:
    """x standardized over one's own choice of axes of (N, G, C/G, H, W)."""
    view = x.reshape(len(x), groups, -1, *x.shape[2:])
    return standardize(view, axes, 1e-5)[0].reshape(x.shape)


def _with_affine(normalize: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, groups, gamma, beta: core.affine(
        normalize(x, groups), gamma[:, None, None], beta[:, None, None]
    )


def _dx(
    dy: Any,
    x: Any,
    gamma: Any,
    groups: int,
    eps: float,
    *,
    pulled_out: bool = False,
    weight: float = 1.0,
    rescaled: bool = True,
    standardize: Standardize = core.standardize,
) -> Any:
    """Group norm's dx on (N, C), or what becomes of it by one slip."""
    view = (len(x), groups, -1)
    x_hat, rstd = standardize(x.reshape(view), (2,), eps)
    g = (dy if pulled_out else dy * gamma).reshape(view)
    taken = core.mean(g, (2,)) + x_hat * core.mean(g * x_hat, (2,))
    dx = (g - weight * taken) * (rstd if rescaled else 1.0)
    return dx.reshape(x.shape) * (gamma if pulled_out else 1.0)


def _last(normalize: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (N, C, H, W) on (N, H, W, C)."""
    return lambda x, groups: np.moveaxis(
        normalize(np.moveaxis(x, -1, 1), groups), 1, -1
    )


def _renorm(
    x: Any,
    mean: Any,
    std: Any,
    r_max: float,
    d_max: float,
    *,
    bounds: Callable[[float], tuple[float, float]] = lambda r_max: (1 / r_max, r_max),
    upside_down: bool = False,
    by_batch: bool = False,
    sign: float = 1.0,
    standardize: Standardize = core.standardize,
) -> Any:
    """Batch renorm of (N, C), or what becomes of it by one slip."""
    x_hat, rstd = standardize(x, (0,), 1e-5)
    r = std * rstd if upside_down else 1 / (std * rstd)
    scale = 1 / rstd if by_batch else std
    d = sign * (x.mean(0) - mean) / scale
    return x_hat * r.clip(*bounds(r_max)) + d.clip(-d_max, d_max)


def _unbounded(x: Any, mean: Any, std: Any, r_max: float, d_max: float) -> Any:
    return _renorm(x, mean, std, np.inf, np.inf)


EXERCISES = {
    "group-norm": Exercise(
        functional.group_norm,
        {
            "your groups take every G-th channel: a group is C/G neighbours": (
                _with_affine(_every)
            ),
            "you made groups of G channels: G says how many groups there are": (
                lambda x, groups, gamma, beta: functional.group_norm(
                    x, x.shape[1] // groups, gamma, beta
                )
            ),
            "you took each pixel alone: S spans the positions too": _with_affine(
                lambda x, groups: _viewed(x, groups, (2,))
            ),
            "you averaged over the batch as well: a set is of one sample": (
                _with_affine(lambda x, groups: _viewed(x, groups, (0, 2, 3, 4)))
            ),
            "all channels share your mean: this is layer norm over (C, H, W)": (
                lambda x, groups, *affine: functional.group_norm(x, 1, *affine)
            ),
            "every channel has its own mean: this is instance norm": (
                lambda x, groups, *affine: functional.instance_norm(x, *affine)
            ),
            **slips(
                lambda s: _with_affine(
                    lambda x, groups: _viewed(x, groups, standardize=s)
                )
            ),
            "γ and β are missing": lambda x, groups, gamma, beta: functional.group_norm(
                x, groups
            ),
            "β is missing": lambda x, groups, gamma, beta: functional.group_norm(
                x, groups, gamma
            ),
        },
        cases=(
            Case((normal(2, 6, 2, 3), 2, normal(6), normal(6))),
            Case((normal(3, 12, 3, 2), 4, normal(12), normal(12))),
            Case((small(2, 6, 2, 3), 2, normal(6), normal(6)), NEAR_EPS),
        ),
    ),
    "group-counts": Exercise(
        lambda: (32, 144, 64),
        {
            "every sample has means of its own: N·G of them": lambda: (8, 144, 64),
            "S spans the positions too: a set holds C/G·H·W values": (
                lambda: (32, 4, 64)
            ),
            "γ and β have one value a channel, never one a group": (
                lambda: (32, 144, 16)
            ),
            "count β too": lambda: (32, 144, 32),
        },
        tolerance=1e-9,
    ),
    "group-norm-dx": Exercise(
        _dx,
        {
            "you multiplied by γ last: γ varies inside a group, so form g before": (
                lambda *args: _dx(*args, pulled_out=True)
            ),
            "you left γ out: g is γ·dy": (
                lambda dy, x, gamma, *rest: _dx(dy, x, np.ones_like(gamma), *rest)
            ),
            "your means run over all channels: take one for each group": (
                lambda dy, x, gamma, groups, eps: _dx(dy, x, gamma, 1, eps)
            ),
            "you treated the mean and the deviation as constants": (
                lambda *args: _dx(*args, weight=0.0)
            ),
            "you took sums for the means: divide by C/G": (
                lambda dy, x, gamma, groups, eps: _dx(
                    dy, x, gamma, groups, eps, weight=x.shape[1] / groups
                )
            ),
            "you forgot the factor 1/√(σ² + ε)": (
                lambda *args: _dx(*args, rescaled=False)
            ),
            **slips(lambda s: lambda *args: _dx(*args, standardize=s), fixed_eps=False),
        },
        cases=(
            Case((normal(3, 8), normal(3, 8), normal(8), 2, 0.5)),
            Case((normal(2, 12), normal(2, 12), normal(12), 3, 0.1)),
        ),
    ),
    "group-channels-last": Exercise(
        _last(functional.group_norm),
        {
            "you split the axes behind N: they are rows of the image, not channels": (
                lambda x, groups: core.standardize(
                    x.reshape(len(x), groups, -1), (2,), 1e-5
                )[0].reshape(x.shape)
            ),
            "split the last axis into (G, C/G), in this order: yours takes every "
            "G-th channel": _last(_every),
            "you took each pixel alone: S spans H and W too": _last(
                lambda x, groups: _viewed(x, groups, (2,))
            ),
            "all channels share your mean: keep the axis of the groups": _last(
                lambda x, groups: functional.group_norm(x, 1)
            ),
            "you averaged over the batch as well: a set is of one sample": _last(
                lambda x, groups: _viewed(x, groups, (0, 2, 3, 4))
            ),
            **slips(
                lambda s: _last(lambda x, groups: _viewed(x, groups, standardize=s))
            ),
        },
        cases=(
            Case((normal(2, 4, 3, 6), 2)),
            Case((normal(3, 4, 2, 12), 4)),
            Case((small(2, 4, 3, 6), 2), NEAR_EPS),
        ),
    ),
    "batch-renorm": Exercise(
        _renorm,
        {
            "r is the batch's deviation over the running one; yours is upside down": (
                lambda *args: _renorm(*args, upside_down=True)
            ),
            "d is measured in running deviations; you divided by the batch's": (
                lambda *args: _renorm(*args, by_batch=True)
            ),
            "d is the batch's mean minus the running one: its sign": (
                lambda *args: _renorm(*args, sign=-1.0)
            ),
            "you did not clip r and d: unclipped, this is evaluation mode": _unbounded,
            "r is clipped below too, at 1/r_max": (
                lambda *args: _renorm(*args, bounds=lambda r_max: (0.0, r_max))
            ),
            "r is missing": lambda x, mean, std, r_max, d_max: _renorm(
                x, mean, std, 1.0, d_max
            ),
            "d is missing": lambda x, mean, std, r_max, d_max: _renorm(
                x, mean, std, r_max, 0.0
            ),
            "you gave plain batch norm": lambda x, *rest: functional.batch_norm(x),
            **slips(lambda s: lambda *args: _renorm(*args, standardize=s)),
        },
        cases=(
            Case(
                (
                    normal(8, 3),
                    np.array([0.6, 1.5, 6.0]),
                    np.array([2.4, 0.5, 9]),
                    1.5,
                    0.4,
                )
            ),
            Case(
                (
                    normal(9, 3),
                    np.array([0.4, -2.0, 1.0]),
                    np.array([1.6, 7, 0.6]),
                    2.0,
                    0.8,
                )
            ),
            # r is clipped everywhere here; where it is not, ε cancels out of x̂·r.
            Case((small(8, 3), small(3), np.full(3, 0.0015), 1.5, 0.4), NEAR_EPS),
        ),
    ),
}
