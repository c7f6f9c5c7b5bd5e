"""Exercises of chapter 3: layer norm."""

from collections.abc import Callable
from typing import Any

from normbook import core, functional
from normbook.exercises.grading import Case, Exercise, normal, small
from normbook.exercises.slips import NEAR_EPS, Standardize, slips


def _tokens_over(
    axes: Any, standardize: Standardize = core.standardize
) -> Callable[..., Any]:
    """Layer norm of (N, T, C) with one's own idea of S."""

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        return core.affine(standardize(x, axes, 1e-5)[0], gamma, beta)

    return normalize


def _token_sums(
    dy: Any, x: Any, axes: Any = (-1,), standardize: Standardize = core.standardize
) -> tuple[Any, Any]:
    """dγ and dβ of layer norm on (N, T, C), with one's own idea of S."""
    x_hat, _ = standardize(x, axes, 1e-5)
    return (dy * x_hat).sum((0, 1)), dy.sum((0, 1))


def _rms_dx(
    dy: Any,
    x: Any,
    gamma: Any,
    eps: float,
    *,
    weight: float = 1.0,
    mean: float = 0.0,
    rescaled: bool = True,
    standardize: Standardize = core.rescale,
) -> Any:
    """RMSNorm's dx, with weights for the mean it subtracts and one it does not."""
    y, rstd = standardize(x, (1,), eps)
    g = gamma * dy
    taken = weight * y * core.mean(g * y, (1,)) + mean * core.mean(g, (1,))
    return (g - taken) * (rstd if rescaled else 1)


def _rescaled_outside(x: Any, axes: Any, eps: float) -> tuple[Any, Any]:
    """`core.rescale` with ε outside the root."""
    rstd = 1 / (core.mean(x * x, axes) ** 0.5 + eps)
    return x * rstd, rstd


EXERCISES = {
    "layer-norm": Exercise(
        _tokens_over((-1,)),
        {
            "your sets span the tokens of a sequence: this leaks the future; use C": (
                _tokens_over((1, 2))
            ),
            "you averaged over time: a set of layer norm is one token": (
                _tokens_over((1,))
            ),
            "you averaged over the batch and time: this is batch norm": (
                _tokens_over((0, 1))
            ),
            **slips(lambda s: _tokens_over((-1,), s)),
            "γ and β are missing": lambda x, gamma, beta: functional.layer_norm(x),
            "β is missing": lambda x, gamma, beta: functional.layer_norm(x, gamma),
        },
        cases=(
            Case((normal(2, 3, 4), normal(4), normal(4))),
            Case((normal(3, 2, 5), normal(5), normal(5))),
            Case((small(2, 3, 4), normal(4), normal(4)), NEAR_EPS),
        ),
    ),
    "layer-parameters": Exercise(
        lambda: (128, 6272, 128, 64),
        {
            "RMSNorm has no β": lambda: (128, 6272, 128, 128),
            "LayerNorm([64, 7, 7]) has a γ and a β for every pixel of every channel": (
                lambda: (128, 128, 128, 64)
            ),
            "GroupNorm has a γ and a β for each channel, never for each group": (
                lambda: (128, 6272, 2, 64)
            ),
            "count β too, where there is one": lambda: (64, 3136, 64, 64),
        },
        tolerance=1e-9,
    ),
    "layer-dgamma": Exercise(
        _token_sums,
        {
            "you averaged: γ and β act at every token, and the gradients add up": (
                lambda dy, x: _token_sums(dy * x.shape[2] / x.size, x)
            ),
            "γ multiplies x̂, so dγ sums dy·x̂; you took dy·x": (
                lambda dy, x: ((dy * x).sum((0, 1)), _token_sums(dy, x)[1])
            ),
            "x̂ is standardized over C for each token; you took batch norm's": (
                lambda dy, x: _token_sums(dy, x, axes=(0, 1))
            ),
            "the order is dγ, dβ: you swapped them": (
                lambda dy, x: _token_sums(dy, x)[::-1]
            ),
            **slips(lambda s: lambda dy, x: _token_sums(dy, x, standardize=s)),
        },
        cases=(
            Case((normal(2, 3, 4), normal(2, 3, 4))),
            Case((normal(3, 2, 5), normal(3, 2, 5))),
            Case((normal(2, 3, 4), small(2, 3, 4)), NEAR_EPS),
        ),
    ),
    "rms-norm-dx": Exercise(
        _rms_dx,
        {
            "you subtracted the mean of g: nothing was centered, so nothing is here": (
                lambda *args: _rms_dx(*args, mean=1.0)
            ),
            "you left γ out: g is γ·dy": (
                lambda dy, x, gamma, eps: _rms_dx(dy, x, 1.0, eps)
            ),
            "you multiplied by γ last: γ varies inside a set, so form g before": (
                lambda dy, x, gamma, eps: gamma * _rms_dx(dy, x, 1.0, eps)
            ),
            "you treated the root mean square as a constant": (
                lambda *args: _rms_dx(*args, weight=0.0)
            ),
            "you took a sum for the mean: divide by C": (
                lambda *args: _rms_dx(*args, weight=5.0)
            ),
            "you forgot the factor 1/√(mean(x²) + ε)": (
                lambda *args: _rms_dx(*args, rescaled=False)
            ),
            "your root mean square is that of the centered x": (
                lambda dy, x, gamma, eps: _rms_dx(dy, core.center(x, (1,)), gamma, eps)
            ),
            "ε is outside the root: divide by √(mean(x²) + ε)": (
                lambda *args: _rms_dx(*args, standardize=_rescaled_outside)
            ),
            "ε is missing or far too small: divide by √(mean(x²) + ε)": (
                lambda dy, x, gamma, eps: _rms_dx(dy, x, gamma, 0.0)
            ),
        },
        cases=(
            Case((normal(3, 5), normal(3, 5), normal(5), 0.5)),
            Case((normal(4, 5), normal(4, 5), normal(5), 0.1)),
        ),
    ),
    "fold-centering": Exercise(
        lambda w, b: (core.center(w, (0,)), core.center(b, (0,))),
        {
            "you centered each row: the mean runs over the outputs, the columns": (
                lambda w, b: (core.center(w, (1,)), core.center(b, (0,)))
            ),
            "you took one mean from the whole matrix: each input needs its own": (
                lambda w, b: (core.center(w, (0, 1)), core.center(b, (0,)))
            ),
            "center b too": lambda w, b: (core.center(w, (0,)), b),
            "center W too": lambda w, b: (w, core.center(b, (0,))),
            "you changed nothing: subtract the mean over the outputs": (
                lambda w, b: (w, b)
            ),
        },
        cases=(
            Case((normal(4, 4), normal(4))),
            Case((normal(5, 5), normal(5))),
        ),
    ),
}
