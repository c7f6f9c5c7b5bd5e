"""Exercises that answer back: `check(name, attempt)` says which mistake it sees.

Each exercise of the book stands in `EXERCISES`, from one module a chapter; `grading`
says what an exercise is and compares an attempt with it.
"""

from typing import Any

from normbook.exercises import (
    batch_norm,
    comparison,
    fast,
    group_norm,
    instance_norm,
    layer_norm,
    one_idea,
)
from normbook.exercises.grading import fault

EXERCISES = (
    one_idea.EXERCISES
    | batch_norm.EXERCISES
    | layer_norm.EXERCISES
    | instance_norm.EXERCISES
    | group_norm.EXERCISES
    | comparison.EXERCISES
    | fast.EXERCISES
)


def check(name: str, attempt: Any) -> None:
    """Print whether an attempt, a function or a value, is right, or what is wrong.

    Raises KeyError for a name that is no exercise.
    """
    wrong = fault(EXERCISES[name], attempt)
    print(f"{name} ✗ {wrong}" if wrong else f"{name} ✓ right")
