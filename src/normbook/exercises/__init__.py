"""Exercises that answer back: `check(name, attempt)` says which mistake it sees.

Each exercise of the book stands in `EXERCISES`, from one module a chapter; `grading`
says what an exercise is and compares an attempt with it. Those that ask for a layer, a
class, need torch and stand in `layers`, which nothing imports before it is asked for.
"""

from importlib import import_module
from typing import Any

from normbook.exercises.grading import Exercise, fault

CHAPTERS = (
    "one_idea",
    "batch_norm",
    "layer_norm",
    "instance_norm",
    "group_norm",
    "comparison",
    "fast",
    "after",
    "machines",
)
EXERCISES: dict[str, Exercise] = {
    name: exercise
    for chapter in CHAPTERS
    for name, exercise in import_module(f"{__name__}.{chapter}").EXERCISES.items()
}


def check(name: str, attempt: Any) -> None:
    """Print whether an attempt is right, or what is wrong.

    attempt: a value, a function, or the class of a layer where the name ends in -class.
    Raises KeyError for a name that is no exercise.
    """
    exercises = EXERCISES
    if name.endswith("-class"):
        exercises = import_module(f"{__name__}.layers").EXERCISES
    wrong = fault(exercises[name], attempt)
    print(f"{name} ✗ {wrong}" if wrong else f"{name} ✓ right")
