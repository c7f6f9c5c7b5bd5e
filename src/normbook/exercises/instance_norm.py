"""Exercises of chapter 4: instance norm."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import core, functional
from normbook.exercises.grading import Case, Exercise, normal, small
from normbook.exercises.slips import NEAR_EPS, Standardize, slips


def _maps_over(
    axes: Any, standardize: Standardize = core.standardize
) -> Callable[..., Any]:
    """Standardize (N, C, H, W) with one's own idea of S."""
    return lambda x: standardize(x, axes, 1e-5)[0]


def _map_sums(
    dy: Any, x: Any, axes: Any = (2, 3), standardize: Standardize = core.standardize
) -> tuple[Any, Any]:
    """dγ and dβ of instance norm on (N, C, H, W), with one's own idea of S."""
    x_hat, _ = standardize(x, axes, 1e-5)
    return (dy * x_hat).sum((0, 2, 3)), dy.sum((0, 2, 3))


def _by_batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    batch_norm: Callable[..., Any],
    *,
    spread: Callable[[Any, int], Any] = np.tile,
) -> Any:
    """Instance norm through batch norm on (1, N·C, H, W)."""
    n, c, h, w = x.shape
    flat = x.reshape(1, n * c, h, w)
    return batch_norm(flat, spread(gamma, n), spread(beta, n)).reshape(x.shape)


def _adain(
    content: Any,
    style: Any,
    *,
    axes: Any = (1, 2),
    correction: int = 0,
    power: float = 0.5,
    mean: bool = True,
    deviation: bool = True,
    own: bool = True,
) -> Any:
    """AdaIN of (C, H, W), with what can be left out or done otherwise."""

    def spread(x: Any) -> Any:
        return x.var(axes, keepdims=True, ddof=correction) ** power

    x = content - content.mean(axes, keepdims=True)
    if own:
        x = x / spread(content)
    x = x * (spread(style) if deviation else 1)
    return x + (style.mean(axes, keepdims=True) if mean else 0)


EXERCISES = {
    "instance-norm": Exercise(
        _maps_over((2, 3)),
        {
            "your sets span the batch: this is batch norm; leave N alone": (
                _maps_over((0, 2, 3))
            ),
            "your sets span the channels: this is layer norm over C, H and W": (
                _maps_over((1, 2, 3))
            ),
            "you reduced over C, the axis that instance norm keeps": _maps_over((1,)),
            "you averaged along one line of the map: reduce over H and W": (
                _maps_over((3,))
            ),
            "you averaged along one column of the map: reduce over H and W": (
                _maps_over((2,))
            ),
            **slips(lambda s: _maps_over((2, 3), s)),
        },
        cases=(
            Case((normal(2, 3, 4, 5),)),
            Case((normal(3, 2, 3, 4),)),
            Case((small(2, 3, 4, 5),), NEAR_EPS),
        ),
    ),
    "instance-counts": Exercise(
        lambda: (256, 196, 0, 64),
        {
            "32 means are batch norm's: each image has means of its own": (
                lambda: (32, 196, 0, 64)
            ),
            "a set is one map, 14 × 14 values: N and C are not in it": (
                lambda: (256, 1568, 0, 64)
            ),
            "by default torch's instance norm learns nothing": (
                lambda: (256, 196, 64, 64)
            ),
            "γ and β have one value a channel, shared by all images": (
                lambda: (256, 196, 0, 512)
            ),
            "count β too": lambda: (256, 196, 0, 32),
        },
        tolerance=1e-9,
    ),
    "instance-dgamma": Exercise(
        _map_sums,
        {
            "you averaged: γ acts at every pixel of every image, and gradients add": (
                lambda dy, x: _map_sums(dy * x.shape[1] / x.size, x)
            ),
            "γ multiplies x̂, so dγ sums dy·x̂; you took dy·x": (
                lambda dy, x: ((dy * x).sum((0, 2, 3)), _map_sums(dy, x)[1])
            ),
            "x̂ is standardized over H and W of each image; you took batch norm's": (
                lambda dy, x: _map_sums(dy, x, axes=(0, 2, 3))
            ),
            "x̂ is standardized over H and W; your sets hold the channels too": (
                lambda dy, x: _map_sums(dy, x, axes=(1, 2, 3))
            ),
            "the order is dγ, dβ: you swapped them": (
                lambda dy, x: _map_sums(dy, x)[::-1]
            ),
            **slips(lambda s: lambda dy, x: _map_sums(dy, x, standardize=s)),
        },
        cases=(
            Case((normal(2, 3, 4, 5), normal(2, 3, 4, 5))),
            Case((normal(3, 2, 3, 4), normal(3, 2, 3, 4))),
            Case((normal(2, 3, 4, 5), small(2, 3, 4, 5)), NEAR_EPS),
        ),
    ),
    "instance-by-batch": Exercise(
        _by_batch_norm,
        {
            "you called batch norm on x itself: its sets span the batch": (
                lambda x, gamma, beta, batch_norm: batch_norm(x, gamma, beta)
            ),
            "np.repeat gives γ₀ γ₀ … γ₁ γ₁ …: maps lie image by image, so np.tile": (
                lambda *args: _by_batch_norm(*args, spread=np.repeat)
            ),
            "γ and β are missing": (
                lambda x, gamma, beta, batch_norm: functional.instance_norm(x)
            ),
        },
        cases=(
            Case((normal(2, 3, 4, 5), normal(3), normal(3), functional.batch_norm)),
            Case((normal(3, 2, 3, 4), normal(2), normal(2), functional.batch_norm)),
        ),
    ),
    "adain": Exercise(
        _adain,
        {
            "you swapped them: keep the content, take the statistics of the style": (
                lambda content, style: _adain(style, content)
            ),
            "you took one mean and one deviation for all channels: each has its own": (
                lambda *args: _adain(*args, axes=(0, 1, 2))
            ),
            "you used unbiased deviations: the two pictures differ in size": (
                lambda *args: _adain(*args, correction=1)
            ),
            "you scaled by variances: take their roots": (
                lambda *args: _adain(*args, power=1.0)
            ),
            "the style's mean is missing": lambda *args: _adain(*args, mean=False),
            "the style's deviation is missing": (
                lambda *args: _adain(*args, deviation=False)
            ),
            "you did not divide by the content's own deviation": (
                lambda *args: _adain(*args, own=False)
            ),
            "this is instance norm of the content: the style is missing": (
                lambda *args: _adain(*args, mean=False, deviation=False)
            ),
        },
        cases=(
            Case((normal(3, 4, 4), 3 * normal(3, 4, 4))),
            Case((normal(3, 4, 5), 0.2 * normal(3, 3, 4))),
            Case(
                (small(3, 4, 4), normal(3, 3, 4)),
                "ε is 0 here: yours weakens a picture of little contrast",
            ),
        ),
    ),
}
