"""Every solution passes; every starter and every known mistake fails, each its own way.

The starters and solutions that the notebooks show are cells of theirs, `exercise-…` and
`solution-…`, so their stored outputs are checked here and compared by nbval.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from normbook.exercises import EXERCISES, check
from normbook.exercises.fast import launch
from normbook.exercises.layers import EXERCISES as LAYERS

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Of no notebook: folding, and layers as functions; the lessons ask for classes.
WAITING = {
    "batch-norm",
    "group-norm",
    "fold",
    "instance-norm",
    "layer-norm",
}
MISTAKES = [
    (name, message) for name, exercise in EXERCISES.items() for message in exercise[1]
]


def as_attempt(name, function):
    return function if EXERCISES[name].cases[0].args else function()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, capsys):
    check(name, as_attempt(name, EXERCISES[name].solution))
    assert capsys.readouterr().out == f"{name} ✓ right\n"


@pytest.mark.parametrize(("name", "message"), MISTAKES)
def test_a_known_mistake_is_named(name, message, capsys):
    check(name, as_attempt(name, EXERCISES[name].mistakes[message]))
    assert capsys.readouterr().out == f"{name} ✗ {message}\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_a_starter_fails(name, capsys):
    starter = (lambda *args: None) if EXERCISES[name].cases[0].args else ...
    check(name, starter)
    assert capsys.readouterr().out.startswith(f"{name} ✗ nothing here yet")


def test_an_attempt_cannot_change_the_inputs(capsys):
    def spoil(x, axes, eps):
        x *= 0
        return x

    check("standardize", spoil)
    check("standardize", EXERCISES["standardize"].solution)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("standardize ✗")
    assert second == "standardize ✓ right"


@pytest.mark.parametrize(
    ("name", "attempt", "says"),
    [
        ("standardize", lambda x, axes, eps: x - x.mean(axes), "keepdims=True"),
        ("standardize", lambda x, axes, eps: x[0], "its shape is (4,)"),
        ("standardize", lambda x, axes, eps: x * np.nan, "it gives nan at (0, 0)"),
        ("standardize", lambda x, axes, eps: x * 0 + 100, "it gives 100.0000 at"),
        ("standardize", lambda x, axes, eps: x * [[1, 2], [3]], "it raised ValueError"),
        ("standardize", lambda x, axes, eps: [[1.0], [2.0, 3.0]], "it gives a list"),
        ("standardize", lambda x, axes, eps: "x", "it gives str: real numbers"),
        ("standardize", lambda x, axes, eps: {1: x}, "it gives a dict"),
        ("standardize", 3.0, "it asks for a function"),
        ("merge", lambda a, b: a.count, "its shape is (); it should be (), (1,), (1,)"),
        ("by-hand", lambda: 3.0, "it asks for a value"),
        ("by-hand", [-1, ..., ..., ...], "nothing here yet"),
        ("by-hand", [-1.0, -0.33, -0.33, 1.66], "✓ right"),
        ("by-hand", [0.0, 0.0, 0.0, 0.0], "it gives 0.0000 at (0,)"),
        ("by-hand", [1.0, 2.0], "its shape is (2,); it should be (4,)"),
        ("keras-to-torch", [0.05, 1e-3], "✓ right"),
        ("keras-to-torch", np.array([0.05, 1e-3]), "✓ right"),
        ("keras-to-torch", (0.05, 1.001e-3), "result 2 is 0.001001; the right value"),
        ("who-survives", (False, True, False, False, True), "✓ right"),
        # two slips at once: the first is named
        ("who-survives", (1, 1, 1, 0, 1), "batch norm has two values"),
        ("fused-rms-norm", launch(lambda row, memory, *_: memory.load(row)), "store("),
    ],
)
def test_what_an_unforeseen_answer_is_told(name, attempt, says, capsys):
    check(name, attempt)
    told = capsys.readouterr().out
    assert says in told
    assert ("✗" in told) == (says != "✓ right")


def test_an_unknown_exercise_is_refused():
    with pytest.raises(KeyError, match="nosuch"):
        check("nosuch", 1.0)


@cache
def lines_of(kind):
    """What the cells of every notebook print whose id begins so."""
    return [
        line
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and cell["id"].startswith(kind)
        for output in cell["outputs"]
        for line in "".join(output.get("text", "")).splitlines()
    ]


def begins(start, lines):
    return any(line.startswith(start) for line in lines)


@pytest.mark.parametrize("name", sorted((EXERCISES | LAYERS).keys() - WAITING))
def test_the_notebook_shows_a_starter_that_fails_and_a_solution_that_passes(name):
    assert begins(f"{name} ✗ nothing here yet", lines_of("exercise-"))
    assert begins(f"{name} ✓ right", lines_of("solution-"))


@pytest.mark.parametrize("name", sorted(WAITING))
def test_what_stands_in_a_notebook_waits_no_longer(name):
    assert name in EXERCISES | LAYERS
    assert not begins(f"{name} ", lines_of("exercise-"))


def test_only_layers_need_torch():
    code = """
import sys
sys.modules["torch"] = None  # its import fails
from normbook.exercises import check
check("by-hand", [-1, -1 / 3, -1 / 3, 5 / 3])
try:
    check("batch-norm-class", object)
except ModuleNotFoundError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    right, missing = run.stdout.splitlines()
    assert right == "by-hand ✓ right"
    assert "torch" in missing
