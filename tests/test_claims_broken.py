"""Every claim that a notebook stores is broken by a fault, or has a reason not to be.

What breaks a claim stands in claims_broken.json, as mutate_claims.py measured it; the
reasons stand in claims_unbroken.json. Nothing is run here: a new or reworded claim
fails until the tool has seen it.
"""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from claim_faults import FAULTS, exchanges, function, plant
from mutate_claims import BROKEN, EXCHANGED, ON_PAGE, UNBROKEN, Run, faults_on_page
from mutate_claims import statements as statements_of
from test_notebooks import NOTEBOOKS, statements

from normbook import core

NAMES = {fault.name for fault in FAULTS}


def faults(
    stored: list[str], broken: dict[str, list[str]], reasons: dict[str, str]
) -> list[str]:
    """What is wrong with the two lists of a notebook that stores these claims."""
    return [
        *(
            f"nothing is known to break: {claim}: run tests/mutate_claims.py --record"
            for claim in stored
            if claim not in broken and not reasons.get(claim, "").strip()
        ),
        *(
            f"is broken, so {UNBROKEN.name} needs no reason for: {claim}"
            for claim in reasons
            if claim in broken
        ),
        *(
            f"is claimed no more: {claim}"
            for claim in [*broken, *reasons]
            if claim not in stored
        ),
        *(
            f"no fault is named {name}, which is said to break: {claim}"
            for claim, names in broken.items()
            for name in names or ["(none)"]
            if name not in NAMES and not name.startswith((EXCHANGED, ON_PAGE))
        ),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_is_broken_or_has_a_reason(path: Path) -> None:
    broken, reasons = (
        json.loads(file.read_text(encoding="utf-8")).get(path.stem, {})
        for file in (BROKEN, UNBROKEN)
    )
    stored = statements([nbformat.read(path, as_version=4)])
    assert faults(stored, broken, reasons) == []


def test_every_notebook_of_the_lists_is_there() -> None:
    for file in (BROKEN, UNBROKEN):
        listed = json.loads(file.read_text(encoding="utf-8"))
        assert set(listed) <= {path.stem for path in NOTEBOOKS}


def test_a_claim_on_neither_side_is_caught() -> None:
    name = FAULTS[0].name
    assert faults(["a", "b"], {"a": [name]}, {"b": "a fact of the data"}) == []
    assert faults(["a"], {}, {}) != []
    assert faults(["a"], {}, {"a": " "}) != []
    assert faults(["a"], {"a": [name]}, {"a": "arithmetic"}) != []
    assert faults(["a"], {"a": [name], "b": [name]}, {}) != []
    assert faults(["a"], {"a": ["a fault that was renamed"]}, {}) != []


def test_every_fault_has_its_place() -> None:
    pytest.importorskip("numba")  # for the kernels among them
    assert len(NAMES) == len(FAULTS)
    for fault in FAULTS:
        for target in fault.makers:
            function(target)


def test_a_planted_function_is_called_by_all_who_hold_it() -> None:
    held, table = core.center_vjp, {"vjp": core.center_vjp}
    undo = plant("normbook.core:center_vjp", lambda original: lambda dy, S: dy + 1)
    assert held(1, ()) == table["vjp"](1, ()) == core.center_vjp(dy=1, S=()) == 2
    undo()
    assert held(np.ones(3), (0,)).tolist() == [0, 0, 0]


NOTEBOOK = """
from normbook.claims import claim
x = 1
---
claim("one", x == 1)
claim("raises", 1 / 0 > 0)
claim("goes on", True)
---
y = x / 0
claim("is not asked", y == 0)
claim("needs no y", x == 1)
---
for name in ("first", "second"):
    claim(name, [1][len(name) - 5])
y = 2
---
claim("has y again", lambda: y == 3)
"""


def test_a_run_notes_what_held_and_goes_on(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK.split("---\n")]
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    run = Run(path)
    try:
        run.all()
    finally:
        run.undo()
    assert run.holds == {
        "one": True,
        "raises": False,
        "goes on": True,
        "needs no y": True,
        "first": True,
        "second": False,
        "has y again": False,
    }
    assert run.stopped == {2: "ZeroDivisionError: division by zero"}


def test_a_change_of_a_page_is_planted_and_undone(tmp_path: Path) -> None:
    cells = [
        "from normbook.claims import claim",
        "def half(x):\n    return x / 2",
        "figure = half(2) + 1",  # what is drawn is not changed
        'claim("half of 4 is 2", lambda: half(4) == 2)',
    ]
    path = tmp_path / "tiny.ipynb"
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    broken = {}
    for fault in faults_on_page(statements_of(path)):
        run = Run(path, fault.on_page)
        try:
            run.all()
        finally:
            run.undo()
        broken[fault.name] = not run.holds["half of 4 is 2"]
    assert broken == {
        "page: half: x / 2 → x * 2": True,
        "page: half: x / 2 → 2 / x": True,
        "page: half: x / 2 → x": True,
        "page: half: x / 2 → 2": False,  # half of 4 alone
        "page: half: 2 → 3": True,
        "page: half: 2 → -2": True,
    }


def test_sides_of_a_record_are_exchanged_and_places_are_not() -> None:
    record = {
        "rates": {
            kind: {"rates": [1, 2], "test": [[error], [2 * error]]}
            for kind, error in (("BN", 5), ("none", 7))
        },
        "rows": [{"time": {"ours": 1.0, "torch": 2.0}}],
    }
    ways = exchanges(record)
    changed = {name: way(record) for name, way in ways.items()}
    sides = changed.pop("rates: none for BN, BN for none")
    assert sides["rates"]["BN"] == record["rates"]["none"]
    moved = changed.pop("rates/BN/test one place on")
    assert moved["rates"]["BN"] == {"rates": [1, 2], "test": [[10], [5]]}
    times = changed.pop("rows/*/time: torch for ours, ours for torch")
    assert times["rows"] == [{"time": {"ours": 2.0, "torch": 1.0}}]
    assert list(changed) == ["rates/none/test one place on"]
