"""No slip passes: every exercise against every slip that can be made in it.

A slip is a right answer with one thing done otherwise: ε, the statistics, the dtype,
the shape, an input written into, or the answer of another exercise. The answers with an
ε are written here once more, with NumPy alone, as a reader would write them.
`python tests/test_exercise_slips.py` prints the table: exercise, slip, verdict.
"""

import re

import numpy as np
import pytest

from normbook.exercises import EXERCISES
from normbook.exercises.grading import BLANK, fault

pytestmark = pytest.mark.slow

FUNCTIONS = {name: e for name, e in EXERCISES.items() if e.cases[0].args}
VALUES = {name: e for name, e in EXERCISES.items() if not e.cases[0].args}


def by_channel(p):
    return p[:, None, None]


def standardizing(rstd, centered=True):
    """x̂ and 1/σ with one's own 1/σ, made of v, ε and m."""

    def standardize(x, axes, eps=1e-5):
        x = x - x.mean(axes, keepdims=True) * centered
        m = np.prod([x.shape[axis] for axis in axes])
        r = rstd((x * x).mean(axes, keepdims=True), eps, m)
        return (x * r).astype(x.dtype), r

    return standardize


def of_view(view, s, axes, back=None):
    return s(view, axes)[0].reshape(back or view.shape)


def split(x, groups):
    return x.reshape(len(x), groups, -1, *x.shape[2:])


def padded(x, lengths, s):
    real = np.arange(x.shape[2]) < lengths[:, None]
    y = np.zeros_like(x).swapaxes(0, 1)
    y[:, real] = s(x.swapaxes(0, 1)[:, real], (1,))[0]
    return y.swapaxes(0, 1)


def dx(g, x_hat, r, axis, centered=True):
    mean = g.mean(axis, keepdims=True) * centered
    return (g - mean - x_hat * (g * x_hat).mean(axis, keepdims=True)) * r


def group_dx(dy, x, gamma, groups, eps, s):
    g = (dy * gamma).reshape(len(x), groups, -1)
    return dx(g, *s(x.reshape(g.shape), (2,), eps), 2).reshape(x.shape)


def channels_last(x, groups, s):
    view = x.reshape(*x.shape[:3], groups, -1)
    return of_view(view, s, (1, 2, 4), x.shape)


def renorm(x, mean, std, r_max, d_max, s):
    x_hat, rstd = s(x, (0,))
    r = (1 / (rstd[0] * std)).clip(1 / r_max, r_max)
    return x_hat * r + ((x.mean(0) - mean) / std).clip(-d_max, d_max)


# Right answers, by what standardizes.
ANSWERS = {
    "standardize": lambda s: lambda x, axes, eps: s(x, axes, eps)[0],
    "layer-norm-dx": lambda s: (
        lambda dy, x, gamma, eps: dx(gamma * dy, *s(x, (1,), eps), 1)
    ),
    "group-view": lambda s: (
        lambda x, groups: of_view(split(x, groups), s, (2, 3, 4), x.shape)
    ),
    "batch-norm": lambda s: (
        lambda x, gamma, beta: by_channel(gamma) * s(x, (0, 2, 3))[0] + by_channel(beta)
    ),
    "padded-batch": lambda s: lambda x, lengths: padded(x, lengths, s),
    "layer-norm": lambda s: lambda x, gamma, beta: gamma * s(x, (-1,))[0] + beta,
    "layer-dgamma": lambda s: (
        lambda dy, x: (
            (dy * s(x, (-1,))[0]).sum((0, 1)),
            dy.sum((0, 1)),
        )
    ),
    "instance-norm": lambda s: lambda x: s(x, (2, 3))[0],
    "instance-dgamma": lambda s: (
        lambda dy, x: (
            (dy * s(x, (2, 3))[0]).sum((0, 2, 3)),
            dy.sum((0, 2, 3)),
        )
    ),
    "group-norm": lambda s: (
        lambda x, groups, gamma, beta: (
            by_channel(gamma) * of_view(split(x, groups), s, (2, 3, 4), x.shape)
            + by_channel(beta)
        )
    ),
    "group-norm-dx": lambda s: lambda *args: group_dx(*args, s),
    "group-channels-last": lambda s: lambda x, groups: channels_last(x, groups, s),
    "batch-renorm": lambda s: lambda *args: renorm(*args, s),
}
# The same by 1/σ alone: nothing is centered or counted in these.
ROOT_ANSWERS = {
    "rms-norm-dx": lambda rstd: (
        lambda dy, x, gamma, eps: dx(
            gamma * dy, *standardizing(rstd, centered=False)(x, (1,), eps), 1, False
        )
    ),
    "fused-rms-norm": lambda rstd: (
        lambda x, gamma, eps: (
            standardizing(rstd, centered=False)(x, (1,), eps)[0] * gamma,
            len(x),
            len(x),
        )
    ),
    "fold": lambda rstd: (
        lambda w, b, gamma, beta, mean, var: (
            w * (gamma * rstd(var, 1e-5, 1))[:, None],
            (b - mean) * gamma * rstd(var, 1e-5, 1) + beta,
        )
    ),
}


def right(v, eps, m):
    return (v + eps) ** -0.5


def unbiased(v, eps, m):
    return (v * m / (m - 1) + eps) ** -0.5


# Slips in 1/σ, with what the verdict must speak of.
ROOTS = {
    "ε missing": (lambda v, eps, m: v**-0.5, "ε is missing"),
    "ε outside": (lambda v, eps, m: 1 / (v**0.5 + eps), "ε is outside"),
    "ε · 100": (lambda v, eps, m: (v + 100 * eps) ** -0.5, "ε is 10⁻³|gives|is "),
    "ε · 10": (lambda v, eps, m: (v + 10 * eps) ** -0.5, "ε is wrong|gives|is "),
    "ε / 10": (lambda v, eps, m: (v + eps / 10) ** -0.5, "ε is wrong|gives|is "),
    "ε / 1000": (lambda v, eps, m: (v + eps / 1000) ** -0.5, "ε is|gives|is "),
    "no root": (lambda v, eps, m: 1 / (v + eps), "variance|gives|is "),
}


def each(result, change):
    """A result with every array of it changed."""
    if isinstance(result, tuple):
        return tuple(each(part, change) for part in result)
    return change(np.asarray(result))


def arrays_in(args):
    for arg in args:
        yield from arrays_in(arg) if isinstance(arg, tuple) else [arg]


def written_into(solution, *args):
    """Right numbers, and an input that is another one afterwards."""
    result = solution(*args)
    array = next(arg for arg in arrays_in(args) if isinstance(arg, np.ndarray))
    array += 1
    return result


# Slips in the results, with what the verdict must speak of.
RESULTS = {
    "float32": (lambda a: a.astype("f4") if a.ndim else a, "numbers are float32"),
    "float16": (lambda a: a.astype("f2"), "numbers are float16"),
    "integers": (lambda a: np.rint(a).astype(int), "numbers are int64"),
    "complex": (lambda a: a.astype(complex), "real numbers are needed"),
    "text": (lambda a: a.astype(str), "real numbers are needed"),
    "a list": (lambda a: a.tolist(), "list"),
    "nan": (lambda a: a * np.nan, "nan"),
    "another axis": (lambda a: a[None], "shape"),
    "half of it": (lambda a: a[: len(a) // 2] if a.ndim else a, "shape"),
    "twice": (lambda a: 2 * a, "gives|is |twice"),
}
# Slips that are none.
HARMLESS = {
    # three single numbers, zeros and ones, which any type of number holds
    ("probe", "a list"),
    ("probe", "half of it"),
    ("probe", "float32"),
    ("probe", "float16"),
    ("probe", "integers"),
    # float32 went in
    ("one-pass", "float32"),
}
# Answers of other exercises that are right here as well.
IDENTICAL = {
    # It splits the axis behind N, which is the channel in (N, C, H, W).
    (
        "group-view",
        "you split the axes behind N: they are rows of the image, not channels",
    ),
}


def slips():
    """Each slip: the exercise, a name, the attempt, what its verdict speaks of."""
    for name, answer in ANSWERS.items():
        for slip, (rstd, says) in ROOTS.items():
            yield name, slip, answer(standardizing(rstd)), says
        yield name, "unbiased", answer(standardizing(unbiased)), "unbiased"
        uncentered = standardizing(right, centered=False)
        yield name, "not centered", answer(uncentered), "center"
    for name, answer in ROOT_ANSWERS.items():
        for slip, (rstd, says) in ROOTS.items():
            yield name, slip, answer(rstd), says
    for name, exercise in FUNCTIONS.items():
        for slip, (change, says) in RESULTS.items():
            if (name, slip) in HARMLESS:
                continue
            attempt = changed(exercise.solution, change)
            yield name, slip, attempt, says
        if any(isinstance(a, np.ndarray) for a in arrays_in(exercise.cases[0].args)):
            attempt = writing(exercise.solution)
            yield name, "writes into x", attempt, "in place"
        yield name, "a value", 1.0, "asks for a function"
        yield name, "nothing returned", lambda *args: None, re.escape(BLANK)
        yield name, "one argument more", missing_argument, "raised TypeError"
        yield name, "recursion", endless, "calls itself"
        yield name, "exit", leaving, "raised SystemExit"
    for name, exercise in VALUES.items():
        value = exercise.solution()
        yield name, "a function", exercise.solution, "asks for a value"
        yield name, "dots", ..., re.escape(BLANK)
        yield name, "text", "many", "real numbers are needed"
        yield name, "None", None, re.escape(BLANK)
        yield name, "nan", each(value, lambda a: a * np.nan), "nan"
        yield name, "one number less", tuple(value)[:-1], "shape"
        yield name, "twice", each(value, lambda a: 2 * a), ""


def changed(solution, change):
    return lambda *args: each(solution(*args), change)


def writing(solution):
    return lambda *args: written_into(solution, *args)


def missing_argument():
    return 1.0


def endless(*args):
    return endless(*args)


def leaving(*args):
    raise SystemExit


SLIPS = list(slips())


@pytest.mark.parametrize("name", ANSWERS | ROOT_ANSWERS)
def test_the_answers_that_slip_here_are_right_without_the_slip(name):
    if name in ANSWERS:
        answer = ANSWERS[name](standardizing(right))
    else:
        answer = ROOT_ANSWERS[name](right)
    assert fault(EXERCISES[name], answer) == ""


@pytest.mark.parametrize(
    ("name", "slip", "attempt", "says"), SLIPS, ids=[f"{s[0]}-{s[1]}" for s in SLIPS]
)
def test_a_slip_is_found_and_named(name, slip, attempt, says):
    verdict = fault(EXERCISES[name], attempt)
    assert re.search(says, verdict)
    assert verdict
    assert "\n" not in verdict


def neighbours(name):
    """The right and wrong answers of other exercises that take as many arguments."""
    own = EXERCISES[name]
    for other, exercise in EXERCISES.items():
        if other != name and len(exercise.cases[0].args) == len(own.cases[0].args):
            yield other, "", exercise.solution
            for message, mistake in exercise.mistakes.items():
                yield other, message, mistake


@pytest.mark.parametrize("name", EXERCISES)
def test_what_answers_another_exercise_does_not_pass(name):
    exercise = EXERCISES[name]
    for other, message, answer in neighbours(name):
        attempt = answer if exercise.cases[0].args else answer()
        passes = fault(exercise, attempt) == ""
        assert passes == ((name, message) in IDENTICAL), (other, message)


if __name__ == "__main__":
    for name, slip, attempt, _ in SLIPS:
        print(f"{name} | {slip} | {fault(EXERCISES[name], attempt) or 'right'}")
