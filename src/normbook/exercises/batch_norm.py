"""Exercises of chapter 2: batch norm."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import core, functional
from normbook.exercises.grading import Case, Exercise, normal, small
from normbook.exercises.slips import NEAR_EPS, Standardize, slips
from normbook.moments import Moments, running

_LENGTHS = np.array([5, 2, 3])


def _channels_over(
    axes: Any, standardize: Standardize = core.standardize
) -> Callable[..., Any]:
    """Batch norm of images with one's own idea of S."""

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        gamma, beta = (p.reshape(1, -1, 1, 1) for p in (gamma, beta))
        return core.affine(standardize(x, axes, 1e-5)[0], gamma, beta)

    return normalize


def _running(
    mean: Any, var: Any, batch: Any, momentum: float, correction: int = 1
) -> tuple[Any, Any]:
    new = Moments.of(batch, (0,))
    old_and_new = ((mean, new.mean[0]), (var, new.var(correction)[0]))
    first, second = (running(old, new, momentum) for old, new in old_and_new)
    return first, second


def _folded(
    w: Any,
    b: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    *,
    std: Callable[[Any], Any] = lambda var: np.sqrt(var + 1e-5),
) -> tuple[Any, Any]:
    s = gamma / std(var)
    return w * s[:, None], (b - mean) * s + beta


def _padded(x: Any, lengths: Any, fewer: Callable[[Any], Any] = lambda x: x) -> Any:
    """Masked batch norm of (N, C, T), and what is made of its output."""
    return fewer(functional.batch_norm(x, where=_real(x, lengths)))


def _real(x: Any, lengths: Any) -> Any:
    return np.arange(x.shape[2]) < lengths[:, None, None]


def _over_real(
    axes: Any, x: Any, lengths: Any, standardize: Standardize = core.standardize
) -> Any:
    real = _real(x, lengths) & np.ones(x.shape, bool)
    return standardize(x, core.Set(axes, real), 1e-5)[0]


EXERCISES = {
    "batch-norm": Exercise(
        _channels_over((0, 2, 3)),
        {
            "your sets are samples: this is layer norm; average over axes 0, 2 and 3": (
                _channels_over((1, 2, 3))
            ),
            "you left the batch out of the set: this is instance norm": (
                _channels_over((2, 3))
            ),
            "you left the positions out: a channel has one mean, not one a pixel": (
                _channels_over((0,))
            ),
            **slips(lambda s: _channels_over((0, 2, 3), s)),
            "you left γ and β out": lambda x, gamma, beta: functional.batch_norm(x),
            "you left β out": lambda x, gamma, beta: functional.batch_norm(x, gamma),
        },
        cases=(
            Case((normal(4, 3, 2, 2), normal(3), normal(3))),
            Case((normal(2, 5, 3, 1), normal(5), normal(5))),
            Case((small(4, 3, 2, 2), normal(3), normal(3)), NEAR_EPS),
        ),
    ),
    "running": Exercise(
        _running,
        {
            "momentum is the weight of the new value here; you gave it to the old": (
                lambda mean, var, batch, momentum: _running(
                    mean, var, batch, 1 - momentum
                )
            ),
            "the running variance is unbiased: divide by m − 1": (
                lambda mean, var, batch, momentum: _running(
                    mean, var, batch, momentum, correction=0
                )
            ),
            "you returned this batch's statistics: blend them into the old ones": (
                lambda mean, var, batch, momentum: _running(mean, var, batch, 1.0)
            ),
            "you tracked deviations: the buffer holds a variance": (
                lambda mean, var, batch, momentum: (
                    _running(mean, var, batch, momentum)[0],
                    running(var, batch.std(0, ddof=1), momentum),
                )
            ),
        },
        cases=(
            Case((np.zeros(2), np.ones(2), normal(4, 2), 0.1)),
            Case((normal(3), abs(normal(3)), normal(7, 3), 0.3)),
        ),
    ),
    "fold": Exercise(
        _folded,
        {
            "you forgot that the old bias is scaled too: b' = (b − mean)·s + β": (
                lambda w, b, gamma, beta, mean, var: (
                    _folded(w, b, gamma, beta, mean, var)[0],
                    b + _folded(w, 0 * b, gamma, beta, mean, var)[1],
                )
            ),
            "you left the old bias out: b' = (b − mean)·s + β": (
                lambda w, b, *rest: _folded(w, 0 * b, *rest)
            ),
            "you scaled the inputs: s belongs to the rows, the outputs": (
                lambda w, b, gamma, beta, mean, var: (
                    w * _folded(w, b, gamma, beta, mean, var)[0].sum(1) / w.sum(1),
                    _folded(w, b, gamma, beta, mean, var)[1],
                )
            ),
            "you divided by the variance: s = γ/√(var + ε)": (
                lambda *args: _folded(*args, std=lambda var: var + 1e-5)
            ),
            "ε is outside the root: s = γ/√(var + ε)": (
                lambda *args: _folded(*args, std=lambda var: np.sqrt(var) + 1e-5)
            ),
            "ε is missing or far too small: s = γ/√(var + ε)": (
                lambda *args: _folded(*args, std=np.sqrt)
            ),
            "your ε is 10⁻³, as in Keras: it is 10⁻⁵ here": (
                lambda *args: _folded(*args, std=lambda var: np.sqrt(var + 1e-3))
            ),
            "the mean is not scaled: b' = (b − mean)·s + β": (
                lambda w, b, gamma, beta, mean, var: (
                    _folded(w, b, gamma, beta, mean, var)[0],
                    _folded(w, b, gamma, beta, 0 * mean, var)[1] - mean,
                )
            ),
        },
        cases=(
            Case((normal(4, 4), *(normal(4) for _ in range(4)), abs(normal(4)))),
            Case((normal(3, 3), *(normal(3) for _ in range(4)), abs(normal(3)))),
            Case(
                (normal(4, 4), *(normal(4) for _ in range(4)), small(4) ** 2), NEAR_EPS
            ),
        ),
    ),
    "keras-to-torch": Exercise(
        lambda: (0.05, 1e-3),
        {
            "Keras's momentum is the weight of the old value: torch wants 1 − 0.95": (
                lambda: (0.95, 1e-3)
            ),
            "copy ε too: torch's default is not Keras's": lambda: (0.05, 1e-5),
            "neither copied nor converted: momentum is 1 − 0.95 and ε is Keras's": (
                lambda: (0.1, 1e-5)
            ),
            "Keras's momentum is 1 − torch's, and ε must be copied": (
                lambda: (0.95, 1e-5)
            ),
        },
    ),
    "padded-batch": Exercise(
        _padded,
        {
            "the padding went into mean and variance: average real positions only": (
                lambda x, lengths: functional.batch_norm(x) * _real(x, lengths)
            ),
            "the padding went into mean and variance, and came out as if real": (
                lambda x, lengths: functional.batch_norm(x)
            ),
            "you put zeros into the padding and averaged them: divide by the real m": (
                lambda x, lengths: (
                    functional.batch_norm(x * _real(x, lengths)) * _real(x, lengths)
                )
            ),
            "each sequence got statistics of its own: a channel has one mean": (
                lambda x, lengths: _over_real((2,), x, lengths)
            ),
            **slips(lambda s: lambda x, lengths: _over_real((0, 2), x, lengths, s)),
            "the output at padding must be 0": (
                lambda x, lengths: _padded(
                    x, lengths, lambda y: y + (1 - _real(x, lengths))
                )
            ),
        },
        cases=(
            Case((normal(3, 2, 5), _LENGTHS)),
            Case((normal(3, 4, 6), _LENGTHS)),
            Case((small(3, 2, 5), _LENGTHS), NEAR_EPS),
        ),
    ),
}
