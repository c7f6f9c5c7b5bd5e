"""What an exercise is, and how an attempt is compared with it.

An exercise has its solution, the inputs it is tried on and the mistakes that people
make, each of them a solution gone wrong. An attempt that gives what a mistake gives has
made that mistake.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


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


def fault(exercise: Exercise, attempt: Any) -> str:
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


_RNG = np.random.default_rng(1)


def normal(*shape: int) -> Any:
    """Numbers of no special mean or spread, which would hide mistakes."""
    return 0.7 + 2 * _RNG.standard_normal(shape)
