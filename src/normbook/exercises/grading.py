"""What an exercise is, and how an attempt is compared with it.

An exercise has its solution, the inputs it is tried on and the mistakes that people
make, each of them a solution gone wrong. An attempt that gives what a mistake gives has
made that mistake. A value, a function and a class differ only in how they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from normbook.exercises.limits import Stopped, described, limited

IN_PLACE = "it changes its input in place: make a new array, y = x - mean, no x -= mean"
BLANK = "nothing here yet: write your answer in place of the dots, and return it"


class Refused(Exception):  # noqa: N818  (nothing failed: it is a verdict)
    """An attempt that cannot be compared; the message says why."""


class Case(NamedTuple):
    """One input; `hint` is what to say when only inputs with a hint go wrong."""

    args: tuple[Any, ...]
    hint: str = ""


def use_value_or_function(attempt: Any, *args: Any) -> Any:
    """The value itself, which takes no arguments, or what the function returns."""
    if attempt is ...:
        return attempt
    if callable(attempt) != bool(args):
        raise Refused(f"it asks for a {'function' if args else 'value'}")
    if not args:
        return attempt
    result = attempt(*args)
    for part in (result, *(result if isinstance(result, tuple) else ())):
        if isinstance(part, list | dict):
            kind = type(part).__name__
            raise Refused(f"it gives a {kind}: return an array, or a tuple of arrays")
    return result


class Exercise(NamedTuple):
    """A solution and, by what to say of them, the known wrong ones.

    The solution of a value and its mistakes are functions of nothing. Answers may
    differ by `tolerance`, relative to the largest number of the right one.
    `use(attempt, *args)` gives the results of an attempt for a case: one array, a
    tuple of them, or a dict of arrays by what they are.
    """

    solution: Callable[..., Any]
    mistakes: Mapping[str, Callable[..., Any]]
    cases: tuple[Case, ...] = (Case(()),)
    tolerance: float = 1e-4
    use: Callable[..., Any] = use_value_or_function

    def results(self, answer: Callable[..., Any]) -> list[dict[str, Any]]:
        """What the solution or a mistake gives for each case."""
        if not self.cases[0].args:
            return [_parts(answer())]
        return [_parts(self.use(answer, *deepcopy(case.args))) for case in self.cases]


def fault(exercise: Exercise, attempt: Any) -> str:
    """What is wrong with an attempt; nothing when it is right."""
    inputs = [deepcopy(case.args) for case in exercise.cases]
    with np.errstate(all="ignore"):
        right = exercise.results(exercise.solution)
        try:
            results = limited(
                lambda: [_use(exercise, attempt, args) for args in inputs]
            )
        except (Refused, Stopped) as reason:
            return str(reason)
        except RecursionError:
            return "it calls itself without an end"
        except Exception as error:
            shapes = "broadcast" in str(error)
            hint = ". Keep the reduced axes: keepdims=True" * shapes
            return f"it raised {described(error)}{hint}"
        if not exercise.cases[0].args:
            results = [_like(results[0], right[0])]
        answers = [_parts(result) for result in results]
        return _no_numbers(answers) or _verdict(exercise, inputs, answers, right)


def _use(exercise: Exercise, attempt: Any, args: tuple[Any, ...]) -> Any:
    with np.errstate(all="ignore"):  # each thread has its own
        return exercise.use(attempt, *args)


def _verdict(
    exercise: Exercise,
    inputs: list[tuple[Any, ...]],
    answers: list[dict[str, Any]],
    right: list[dict[str, Any]],
) -> str:
    """What is wrong with answers that are numbers."""
    cases, tolerance = exercise.cases, exercise.tolerance
    failed = [
        number
        for number, (answer, wanted) in enumerate(zip(answers, right, strict=True))
        if not all(_close(answer.get(part), wanted[part], tolerance) for part in wanted)
    ]
    # First a mistake alone, then one among others: then only what it spoils must agree.
    gone_wrong: dict[str, list[dict[str, Any]]] = {}
    for alone in (True, False) if failed else ():
        for message, mistake in exercise.mistakes.items():
            wrong = gone_wrong.get(message) or exercise.results(mistake)
            gone_wrong[message] = wrong
            if _shows(cases, answers, wrong, right, tolerance, alone):
                return message
    if odd := _odd_shape(answers, right):
        return odd
    if cases[0].args and (odd := _odd_dtype(answers, right)):
        return odd
    if _changed(inputs, [case.args for case in cases]):
        return IN_PLACE
    if all(cases[number].hint for number in failed):
        return cases[failed[0]].hint if failed else ""
    return _difference(answers[failed[0]], right[failed[0]], tolerance)


def _shows(
    cases: tuple[Case, ...],
    answers: list[dict[str, Any]],
    wrong: list[dict[str, Any]],
    right: list[dict[str, Any]],
    tolerance: float,
    alone: bool,
) -> bool:
    """Whether the answers are a mistake's: all of them, or those parts that it spoils.

    Cases with a hint decide only about a mistake that spoils no other; they may fail
    for a reason of their own.
    """
    plain = [number for number, case in enumerate(cases) if not case.hint]
    spoiled = [
        (number, part)
        for number, wanted in enumerate(right)
        for part in wanted
        if not _close(wrong[number].get(part), wanted[part], tolerance)
    ]
    parts = [(number, part) for number, part in spoiled if number in plain]
    if alone:
        every = [(number, part) for number in plain for part in right[number]]
        parts = every if parts else every + spoiled
    return bool(parts) and all(
        _close(answers[number].get(part), wrong[number].get(part), tolerance)
        for number, part in parts
    )


def _parts(result: Any) -> dict[str, Any]:
    """The results by name, as arrays; what makes no array becomes one of objects."""
    if isinstance(result, tuple):
        result = {f"result {n}": part for n, part in enumerate(result, 1)}
    elif not isinstance(result, dict):
        result = {"it": result}
    return {name: _array(part) for name, part in result.items()}


def _array(part: Any) -> Any:
    try:
        return np.asarray(part)
    except ValueError:  # rows of different lengths
        return np.asarray(None)


def _like(value: Any, right: dict[str, Any]) -> Any:
    """A value of several parts may come as a list or an array of them."""
    if isinstance(value, list | np.ndarray) and len(right) > 1:
        return tuple(value)
    return value


def _no_numbers(answers: list[dict[str, Any]]) -> str:
    """Dots, nothing, and results that are no real numbers."""
    arrays = [array for answer in answers for array in answer.values()]
    if any(item is ... or item is None for array in arrays for item in _objects(array)):
        return BLANK
    for array in arrays:
        if array.dtype.kind not in "biuf":
            kind = array.dtype.name.rstrip("0123456789")
            if array.dtype == object:
                kind = type(array.ravel()[0]).__name__
            return f"it gives {kind}: real numbers are needed"
    return ""


def _odd_shape(answers: list[dict[str, Any]], right: list[dict[str, Any]]) -> str:
    """Results of another number or shape."""
    for answer, wanted in zip(answers, right, strict=True):
        if answer.keys() != wanted.keys():
            return f"its shape is {_shapes(answer)}; it should be {_shapes(wanted)}"
        for part, array in wanted.items():
            if answer[part].shape != array.shape:
                of = "its shape" if part == "it" else f"the shape of {part}"
                return f"{of} is {answer[part].shape}; it should be {array.shape}"
    return ""


def _objects(array: Any) -> Iterator[Any]:
    return iter(array.ravel() if array.dtype == object else ())


def _shapes(answer: dict[str, Any]) -> str:
    return ", ".join(str(part.shape) for part in answer.values())


def _close(left: Any, right: Any, tolerance: float) -> bool:
    """Whether two arrays agree; both may be nan, where ε is missing, or absent."""
    if left is None or right is None:
        return left is right
    return left.shape == right.shape and not _far(left, right, tolerance).any()


def _far(left: Any, right: Any, tolerance: float) -> Any:
    """Where two arrays differ by more than the tolerance."""
    size = np.max(np.abs(right), where=np.isfinite(right), initial=0)
    near = np.abs(np.subtract(left, right, dtype=float)) <= tolerance * size
    return ~(near | (left == right) | (np.isnan(left) & np.isnan(right)))


def _odd_dtype(answers: list[dict[str, Any]], right: list[dict[str, Any]]) -> str:
    """Arrays should come in the dtype that went in, which the right ones have."""
    for answer, wanted in zip(answers, right, strict=True):
        for part, array in wanted.items():
            dtype = answer[part].dtype
            if array.ndim and array.dtype.kind == "f" and dtype != array.dtype:
                return (
                    f"its numbers are {dtype}, not {array.dtype} like x: keep the dtype"
                )
    return ""


def _changed(inputs: Any, originals: Any) -> bool:
    """Whether an array among the inputs is no longer what it was."""
    if isinstance(originals, list | tuple):
        return any(map(_changed, inputs, originals))
    return isinstance(originals, np.ndarray) and not np.array_equal(inputs, originals)


def _difference(answer: dict[str, Any], right: dict[str, Any], tolerance: float) -> str:
    """Where a wrong answer that shows no known mistake first goes wrong."""
    for part, wanted in right.items():
        far = _far(answer[part], wanted, tolerance)
        if far.any():
            place = tuple(int(i) for i in np.argwhere(far)[0])
            a, b = float(answer[part][place]), float(wanted[place])
            digits = next((d for d in (4, 6, 9) if f"{a:.{d}f}" != f"{b:.{d}f}"), 12)
            says = "it gives" if part == "it" else f"{part} is"
            at = f" at {place}" if place else ""
            return f"{says} {a:.{digits}f}{at}; the right value is {b:.{digits}f}"
    raise AssertionError("a failed case has a part that differs")


_RNG = np.random.default_rng(1)


def normal(*shape: int) -> Any:
    """Numbers of no special mean or spread, which would hide mistakes."""
    return 0.7 + 2 * _RNG.standard_normal(shape)


def small(*shape: int) -> Any:
    """Numbers whose variance is near 10⁻⁵, so that ε matters."""
    return 2e-3 * normal(*shape)
