"""Exercises of chapter 8: what came after."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook.exercises.grading import Case, Exercise, normal

Function = Callable[[Any], Any]


def _places(x: Any, f: Function, norm1: Function, norm2: Function) -> tuple[Any, ...]:
    """The sandwich, OLMo 2's place and Post-LN."""
    return x + norm2(f(norm1(x))), x + norm1(f(x)), norm1(x + f(x))


def _with(number: int, wrong: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """The places, one of them gone wrong."""

    def places(*args: Any) -> tuple[Any, ...]:
        right = list(_places(*args))
        right[number] = wrong(*args)
        return tuple(right)

    return places


def _squared_gamma(p: Any, T: int, d: int, *, apart: float = 2.0) -> Any:
    """γ² that lets one key of T have the weight p, `apart` logits above the others."""
    return np.log(p * (T - 1) / (1 - p)) / apart / np.sqrt(d)


def _f(x: Any) -> Any:
    return np.tanh(x) - 0.3 * x[::-1]


def _norm1(x: Any) -> Any:
    return 0.7 * x / np.sqrt((x**2).mean(-1, keepdims=True))


def _norm2(x: Any) -> Any:
    return 1.9 * x / np.sqrt((x**2).mean(-1, keepdims=True))


EXERCISES = {
    "norm-places": Exercise(
        _places,
        {
            "the sandwich's norm2 stands inside the sum: x + norm2(f(norm1(x)))": (
                _with(0, lambda x, f, norm1, norm2: norm2(x + f(norm1(x))))
            ),
            "the sandwich's bypass passes no norm: what is added to is x": (
                _with(0, lambda x, f, norm1, norm2: norm1(x) + norm2(f(norm1(x))))
            ),
            "the sandwich lacks norm2: what leaves f passes it, too": (
                _with(0, lambda x, f, norm1, norm2: x + f(norm1(x)))
            ),
            "the sandwich's norms are swapped: norm1 stands before f": (
                _with(0, lambda x, f, norm1, norm2: x + norm1(f(norm2(x))))
            ),
            "OLMo 2's norm stands after f: you put it before, which is Pre-LN": (
                _with(1, lambda x, f, norm1, norm2: x + f(norm1(x)))
            ),
            "OLMo 2's norm stands inside the sum; after it, it is Post-LN": (
                _with(1, lambda x, f, norm1, norm2: norm1(x + f(x)))
            ),
            "Post-LN's norm takes the sum, x and all": (
                _with(2, lambda x, f, norm1, norm2: x + norm1(f(x)))
            ),
            "the bypass is missing: each place adds to x": (
                lambda x, f, norm1, norm2: (
                    norm2(f(norm1(x))),
                    norm1(f(x)),
                    norm1(f(x)),
                )
            ),
        },
        cases=(
            Case((normal(3, 4), _f, _norm1, _norm2)),
            Case((normal(2, 5), _f, _norm1, _norm2)),
        ),
    ),
    "sharp-enough": Exercise(
        _squared_gamma,
        {
            "twice too large: other keys have −L, not 0: p/(1 − p) = exp(2L)/(T − 1)": (
                lambda p, T, d: _squared_gamma(p, T, d, apart=1.0)
            ),
            "this is the logit: it is at most √d·g², so divide by √d": (
                lambda p, T, d: _squared_gamma(p, T, 1)
            ),
            "a logit is at most √d·g², not d·g²": (
                lambda p, T, d: _squared_gamma(p, T, d**2)
            ),
            "there are T − 1 other keys, not T": (
                lambda p, T, d: _squared_gamma(p, T + 1, d)
            ),
            "this is g: queries and keys have one each, so return g²": (
                lambda p, T, d: _squared_gamma(p, T, d) ** 0.5
            ),
        },
        cases=(
            Case((np.array([0.9, 0.5, 0.99]), 1000, 8)),
            Case((np.array([0.5, 0.3]), 50, 64)),
        ),
    ),
}
