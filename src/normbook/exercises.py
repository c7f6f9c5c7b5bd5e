"""Exercises that answer back: `check(name, attempt)` says which mistake it sees.

Each exercise of the book stands in `EXERCISES` with its solution, the inputs it is
tried on and the mistakes that people make, each of them a solution gone wrong. An
attempt that gives what a mistake gives has made that mistake.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from normbook import core, functional
from normbook.moments import Moments, running


class Case(NamedTuple):
    """One input; `hint` is what to say when only inputs with a hint go wrong."""

    args: tuple[Any, ...]
    hint: str = ""


class Exercise(NamedTuple):
    """A solution and, by what to say of them, the known wrong ones.

    A value is a function of nothing. Answers may differ by `tolerance`, relative to the
    largest number of the right one.
    """

    solution: Callable[..., Any]
    mistakes: dict[str, Callable[..., Any]]
    cases: tuple[Case, ...] = (Case(()),)
    tolerance: float = 1e-4


def check(name: str, attempt: Any) -> None:
    """Print whether an attempt, a function or a value, is right, or what is wrong.

    Raises KeyError for a name that is no exercise.
    """
    fault = _fault(EXERCISES[name], attempt)
    print(f"{name} ✗ {fault}" if fault else f"{name} ✓ right")


def _fault(exercise: Exercise, attempt: Any) -> str:
    """What is wrong with an attempt; nothing when it is right."""
    cases = exercise.cases
    if attempt is not ... and callable(attempt) != bool(cases[0].args):
        return f"it asks for a {'function' if cases[0].args else 'value'}"
    try:
        answers = [_run(attempt, case) for case in cases]
    except Exception as error:
        hint = ". Keep the reduced axes: keepdims=True" * ("broadcast" in str(error))
        return f"it raised {type(error).__name__}: {error}{hint}"
    if any(array.dtype == object for answer in answers for array in answer):
        return "nothing here yet: write your answer in place of the dots"
    right = [_run(exercise.solution, case) for case in cases]
    if (shape := _shapes(answers)) != (wanted := _shapes(right)):
        return f"its shape is {shape}; it should be {wanted}"

    def same(number: int, other: list[Any]) -> bool:
        return _close(answers[number], other[number], exercise.tolerance)

    failed = [number for number in range(len(cases)) if not same(number, right)]
    if all(cases[number].hint for number in failed):
        return cases[failed[0]].hint if failed else ""
    plain = [number for number, case in enumerate(cases) if not case.hint]
    for message, mistake in exercise.mistakes.items():
        wrong = [_run(mistake, case) for case in cases]
        if all(same(number, wrong) for number in plain):
            return message
    return _difference(answers[failed[0]], right[failed[0]])


def _run(answer: Any, case: Case) -> list[Any]:
    """The answer for one input, which it cannot change, as a list of arrays."""
    args = [np.array(arg) if isinstance(arg, np.ndarray) else arg for arg in case.args]
    with np.errstate(all="ignore"):
        result = answer(*args) if callable(answer) else answer
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part) for part in parts]


def _shapes(answers: list[list[Any]]) -> str:
    return ", ".join(str(part.shape) for part in answers[0])


def _close(left: list[Any], right: list[Any], tolerance: float) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))
        for a, b in zip(left, right, strict=True)
    )


def _difference(answer: list[Any], right: list[Any]) -> str:
    """Where a wrong answer that shows no known mistake first goes wrong."""
    for a, b in zip(answer, right, strict=True):
        wrong = ~np.isclose(a, b, rtol=1e-4, atol=1e-6)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            at = f" at {place}" if place else ""
            return f"it gives {a[place]:.4f}{at}; the right value is {b[place]:.4f}"
    return "not close enough"


# ---------------------------------------------------------------- chapter 1

_BY_HAND = np.array([2.0, 4.0, 4.0, 10.0])


def _standardize(
    x: Any, axes: Any, eps: float, rstd: Callable[[Any, float, int], Any]
) -> Any:
    """Standardize with one's own idea of 1/σ, given v, ε and m."""
    centered = core.center(x, axes)
    return centered * rstd(core.mean(centered**2, axes), eps, core.count(x, axes))


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
) -> Any:
    """Layer norm's dx, with weights for its two subtracted means."""
    x_hat, rstd = core.standardize(x, (1,), eps)
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


def _viewed(view: Callable[[Any, int], tuple[int, ...]], axes: Any) -> Any:
    """Group norm with one's own view of x's shape and one's own axes."""

    def group(x: Any, groups: int) -> Any:
        viewed = x.reshape(view(x.shape, groups))
        return core.standardize(viewed, axes, 1e-5)[0].reshape(x.shape)

    return group


def _groups_first(shape: Any, groups: int) -> tuple[int, ...]:
    return (shape[0], groups, shape[1] // groups, *shape[2:])


def _groups_last(shape: Any, groups: int) -> tuple[int, ...]:
    return (shape[0], shape[1] // groups, groups, *shape[2:])


_RNG = np.random.default_rng(1)


def _normal(*shape: int) -> Any:
    """Numbers of no special mean or spread, which would hide mistakes."""
    return 0.7 + 2 * _RNG.standard_normal(shape)


EXERCISES: dict[str, Exercise] = {
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
            "you divided by the unbiased deviation: the mean divides by m, not m − 1": (
                lambda x, axes, eps: _standardize(
                    x, axes, eps, lambda v, e, m: (v * m / (m - 1) + e) ** -0.5
                )
            ),
            "ε is outside the root: it belongs beside σ², in √(σ² + ε)": (
                lambda x, axes, eps: _standardize(
                    x, axes, eps, lambda v, e, m: 1 / (v**0.5 + e)
                )
            ),
            "you left ε out: add it to σ²": (
                lambda x, axes, eps: _standardize(x, axes, eps, lambda v, e, m: v**-0.5)
            ),
            "you divided by the variance: the root is missing": (
                lambda x, axes, eps: _standardize(
                    x, axes, eps, lambda v, e, m: 1 / (v + e)
                )
            ),
            "you did not center: this is RMSNorm": (
                lambda x, axes, eps: core.rescale(x, axes, eps)[0]
            ),
            "you reduced over every axis: use `axes`": (
                lambda x, axes, eps: core.standardize(x, tuple(range(x.ndim)), eps)[0]
            ),
            "the digits are gone near 10,000: E[x²] − E[x]² cancels; center first": (
                _cancelled
            ),
        },
        cases=(
            Case((_normal(3, 4), (1,), 0.5)),
            Case((_normal(2, 3, 4), (0, 2), 0.3)),
            Case(
                ((1e4 + _normal(2, 64)).astype(np.float32), (1,), 1e-5),
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
            "you left ε out of σ": (
                lambda dy, x, gamma, eps: _layer_dx(dy, x, gamma, 0.0)
            ),
        },
        cases=(
            Case((_normal(3, 5), _normal(3, 5), _normal(5), 0.5)),
            Case((_normal(4, 5), _normal(4, 5), _normal(5), 0.1)),
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
            Case((Moments.of(_normal(6), (0,)), Moments.of(_normal(2) + 5, (0,)))),
            Case((Moments.of(_normal(3, 4), (0,)), Moments.of(_normal(9, 4), (0,)))),
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
        },
        cases=(
            Case((_normal(2, 6, 3, 3), 2)),
            Case((_normal(3, 8, 2, 2), 2)),
        ),
    ),
}

# ---------------------------------------------------------------- chapter 2

_LENGTHS = np.array([5, 2, 3])


def _channels_over(axes: Any) -> Callable[..., Any]:
    """Batch norm of images with one's own idea of S."""

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        gamma, beta = (p.reshape(1, -1, 1, 1) for p in (gamma, beta))
        return core.affine(core.standardize(x, axes, 1e-5)[0], gamma, beta)

    return normalize


def _running(
    mean: Any, var: Any, batch: Any, momentum: float, correction: int = 1
) -> tuple[Any, Any]:
    new = Moments.of(batch, (0,))
    old_and_new = ((mean, new.mean[0]), (var, new.var(correction)[0]))
    first, second = (running(old, new, momentum) for old, new in old_and_new)
    return first, second


def _folded(
    w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5
) -> tuple[Any, Any]:
    s = gamma / np.sqrt(var + eps)
    return w * s[:, None], (b - mean) * s + beta


def _padded(x: Any, lengths: Any, fewer: Callable[[Any], Any] = lambda x: x) -> Any:
    """Masked batch norm of (N, C, T), and what is made of its output."""
    return fewer(functional.batch_norm(x, where=_real(x, lengths)))


def _real(x: Any, lengths: Any) -> Any:
    return np.arange(x.shape[2]) < lengths[:, None, None]


def _centered_on(axes: Any, x: Any, lengths: Any) -> Any:
    real = _real(x, lengths) & np.ones(x.shape, bool)
    return core.standardize(x, axes, 1e-5, real)[0]


EXERCISES |= {
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
            "you divided by the unbiased deviation: the forward pass uses 1/m": (
                lambda x, gamma, beta: functional.batch_norm(
                    x, gamma * (1 - x.shape[1] / x.size) ** 0.5, beta
                )
            ),
            "you left γ and β out": lambda x, gamma, beta: functional.batch_norm(x),
            "you left β out": lambda x, gamma, beta: functional.batch_norm(x, gamma),
        },
        cases=(
            Case((_normal(4, 3, 2, 2), _normal(3), _normal(3))),
            Case((_normal(2, 5, 3, 1), _normal(5), _normal(5))),
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
            Case((np.zeros(2), np.ones(2), _normal(4, 2), 0.1)),
            Case((_normal(3), abs(_normal(3)), _normal(7, 3), 0.3)),
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
                lambda w, b, gamma, beta, mean, var: _folded(
                    w, b, gamma, beta, mean, (var + 1e-5) ** 2, 0.0
                )
            ),
            "the mean is not scaled: b' = (b − mean)·s + β": (
                lambda w, b, gamma, beta, mean, var: (
                    _folded(w, b, gamma, beta, mean, var)[0],
                    _folded(w, b, gamma, beta, 0 * mean, var)[1] - mean,
                )
            ),
        },
        cases=(
            Case((_normal(4, 4), *(_normal(4) for _ in range(4)), abs(_normal(4)))),
            Case((_normal(3, 3), *(_normal(3) for _ in range(4)), abs(_normal(3)))),
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
                lambda x, lengths: _centered_on((2,), x, lengths)
            ),
            "the output at padding must be 0": (
                lambda x, lengths: _padded(
                    x, lengths, lambda y: y + (1 - _real(x, lengths))
                )
            ),
        },
        cases=(
            Case((_normal(3, 2, 5), _LENGTHS)),
            Case((_normal(3, 4, 6), _LENGTHS)),
        ),
    ),
}

# ---------------------------------------------------------------- chapter 3


def _tokens_over(axes: Any) -> Callable[..., Any]:
    """Layer norm of (N, T, C) with one's own idea of S."""

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        return core.affine(core.standardize(x, axes, 1e-5)[0], gamma, beta)

    return normalize


def _token_sums(dy: Any, x: Any, axes: Any = (-1,)) -> tuple[Any, Any]:
    """dγ and dβ of layer norm on (N, T, C), with one's own idea of S."""
    x_hat, _ = core.standardize(x, axes, 1e-5)
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
) -> Any:
    """RMSNorm's dx, with weights for the mean it subtracts and one it does not."""
    y, rstd = core.rescale(x, (1,), eps)
    g = gamma * dy
    taken = weight * y * core.mean(g * y, (1,)) + mean * core.mean(g, (1,))
    return (g - taken) * (rstd if rescaled else 1)


EXERCISES |= {
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
            "you did not center: this is RMSNorm with a β": (
                lambda x, gamma, beta: functional.rms_norm(x, gamma) + beta
            ),
            "you divided by the unbiased deviation: torch.var and ddof=1 give m − 1": (
                lambda x, gamma, beta: functional.layer_norm(
                    x, gamma * (1 - 1 / x.shape[-1]) ** 0.5, beta
                )
            ),
            "γ and β are missing": lambda x, gamma, beta: functional.layer_norm(x),
            "β is missing": lambda x, gamma, beta: functional.layer_norm(x, gamma),
        },
        cases=(
            Case((_normal(2, 3, 4), _normal(4), _normal(4))),
            Case((_normal(3, 2, 5), _normal(5), _normal(5))),
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
        },
        cases=(
            Case((_normal(2, 3, 4), _normal(2, 3, 4))),
            Case((_normal(3, 2, 5), _normal(3, 2, 5))),
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
            "ε belongs inside the root": (
                lambda dy, x, gamma, eps: _rms_dx(dy, x, gamma, 0.0)
            ),
        },
        cases=(
            Case((_normal(3, 5), _normal(3, 5), _normal(5), 0.5)),
            Case((_normal(4, 5), _normal(4, 5), _normal(5), 0.1)),
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
            Case((_normal(4, 4), _normal(4))),
            Case((_normal(5, 5), _normal(5))),
        ),
    ),
}
