"""Proof that the guard over the notebooks holds: each planted fault is caught.

A small notebook is run and stored as `make run` does it; behind its cells come changed
copies of them. nbval sees it under the options of pyproject.toml, which are those of
`make test`. Its verdicts are by cell, so each copy carries one change. The rules of
test_notebooks.py see their changes one by one.
"""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import test_notebooks as state
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]

INSTALL = """\
try:
    import normbook  # noqa: F401
except ModuleNotFoundError:
    %pip install --quiet normbook"""
FIGURE = """\
import matplotlib.pyplot as plt
from normbook import plots

plots.use_style()
figure, ax = plt.subplots()
ax.plot([0, 1, 2], [0, 1, 4], "o-")
ax.set_xlabel("steps")
plots.show(figure)"""
FIRST, PRINT, REPR, CLAIM, RAISES, DRAW = range(6)

Change = Callable[[NotebookNode, int], None]


@pytest.fixture(scope="module")
def notebook() -> NotebookNode:
    """Return a small notebook, run from top to bottom."""
    alt = {"mystnb": {"image": {"alt": "A curve through three marks."}}}
    cells = [
        new_code_cell(INSTALL, metadata={"tags": ["remove-cell"]}),
        new_code_cell('print("mean 0.2500")\nprint("device: cpu")'),
        new_code_cell("import numpy as np\n\nnp.array([1.0, -0.5])"),
        new_code_cell('from normbook.claims import claim\n\nclaim("2 > 1", 2 > 1)'),
        new_code_cell(
            '%xmode Minimal\nraise ValueError("0 channels")',
            metadata={"tags": ["raises-exception"]},
        ),
        new_code_cell(FIGURE, metadata=alt),
    ]
    small = new_notebook(cells=cells)
    small.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    NotebookClient(small, timeout=120, record_timing=False).execute()
    return small


def output(small: NotebookNode, cell: int) -> NotebookNode:
    return small.cells[cell].outputs[-1]


def swapped(old: str, new: str) -> Change:
    """Return a change of text in the last output of a cell; the text must be there."""

    def change(small: NotebookNode, cell: int) -> None:
        one = output(small, cell)
        if one.output_type == "stream":
            holder, key = one, "text"
        elif one.output_type == "error":
            holder, key = one, "evalue"
        else:
            holder, key = one.data, next(iter(one.data))
        assert old in holder[key]
        holder[key] = holder[key].replace(old, new)

    return change


def moved_marks(small: NotebookNode, cell: int) -> None:
    svg = output(small, cell).data["image/svg+xml"]
    moved = re.sub(
        r'(?<=\s[dxy]=")[^"]+',
        lambda place: re.sub(r"\d\b", lambda last: str(9 - int(last[0])), place[0]),
        svg,
    )
    assert moved != svg
    output(small, cell).data["image/svg+xml"] = moved


def fewer_outputs(small: NotebookNode, cell: int) -> None:
    small.cells[cell].outputs = []


def extra_output(small: NotebookNode, cell: int) -> None:
    extra = new_output("display_data", {"text/plain": "one more"})
    small.cells[cell].outputs.append(extra)


def no_longer_raises(small: NotebookNode, cell: int) -> None:
    small.cells[cell].source = "%xmode Minimal"


def raises_unannounced(small: NotebookNode, cell: int) -> None:
    small.cells[cell].metadata.tags = []


def fewer_marks(small: NotebookNode, cell: int) -> None:
    small.cells[cell].source = small.cells[cell].source.replace("o-", "-")


# What is changed, in which cell, and what nbval must say of that cell.
CHANGES: dict[str, tuple[int, str, Change]] = {
    "a number printed": (PRINT, "FAILED", swapped("0.2500", "0.2501")),
    "a missing output": (PRINT, "FAILED", fewer_outputs),
    "the device's name": (PRINT, "PASSED", swapped("device: cpu", "device: X1")),
    "a number in a repr": (REPR, "FAILED", swapped("-0.5", "-0.6")),
    "a tensor on a GPU": (REPR, "PASSED", swapped("])", "], device='cuda:0')")),
    "a claim": (CLAIM, "FAILED", swapped("2 > 1", "2 > 0")),
    "an extra output": (CLAIM, "FAILED", extra_output),
    "the message of an error": (RAISES, "FAILED", swapped("0 ch", "1 ch")),
    "a cell that no longer raises": (RAISES, "FAILED", no_longer_raises),
    "a cell that raises unannounced": (RAISES, "FAILED", raises_unannounced),
    "a label in a figure": (DRAW, "FAILED", swapped("-- steps --", "-- step --")),
    "a tick in a figure": (DRAW, "FAILED", swapped("-- 2.0 --", "-- 3.0 --")),
    "a colour in a figure": (DRAW, "FAILED", swapped("#0072b2", "#d55e00")),
    "the number of marks": (DRAW, "FAILED", fewer_marks),
    "the place of marks": (DRAW, "PASSED", moved_marks),
}


# The number of a change's cell, behind those as they were stored.
CELLS = {name: DRAW + 1 + number for number, name in enumerate(CHANGES)}


@pytest.fixture(scope="module")
def verdicts(
    notebook: NotebookNode, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, str]:
    """What nbval says of each cell as it was stored, and with each of the changes."""
    folder = tmp_path_factory.mktemp("changed")
    changed = copy.deepcopy(notebook)
    for name, (cell, _, change) in CHANGES.items():
        changed.cells.append(copy.deepcopy(notebook.cells[cell]))
        changed.cells[CELLS[name]].id = f"change-{CELLS[name]}"
        change(changed, CELLS[name])
    nbformat.write(changed, folder / "changed.ipynb")
    options = ["-rA", "--tb=no", "--color=no", "-o", f"cache_dir={folder}"]
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", folder]
    run = subprocess.run(
        command + options, cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = re.findall(
        r"^(PASSED|FAILED) .*?\.ipynb::Cell (\d+)", run.stdout, re.MULTILINE
    )
    assert lines, run.stdout + run.stderr
    return {int(cell): verdict for verdict, cell in lines}


def test_nbval_passes_what_was_stored(verdicts: dict[int, str]) -> None:
    assert {verdicts[cell] for cell in range(DRAW + 1)} == {"PASSED"}


@pytest.mark.parametrize("name", CHANGES)
def test_nbval_on_a_change_of(name: str, verdicts: dict[int, str]) -> None:
    assert verdicts[CELLS[name]] == CHANGES[name][1]


def clear(small: NotebookNode, cell: int) -> None:
    for one in small.cells:
        one.outputs, one.execution_count = [], None


def swap_counts(small: NotebookNode, cell: int) -> None:
    small.cells[cell].execution_count, small.cells[0].execution_count = 1, cell + 1


def remove(small: NotebookNode, cell: int) -> None:
    del small.cells[cell]


def tag(name: str) -> Change:
    return lambda small, cell: small.cells[cell].metadata.update(tags=[name])


def folds(**keys: bool) -> Change:
    return lambda small, cell: small.cells[cell].metadata.update(jupyter=keys)


def forget(key: str) -> Change:
    return lambda small, cell: small.cells[cell].metadata.pop(key)


def timed(small: NotebookNode, cell: int) -> None:
    small.cells[cell].metadata.execution = {"iopub.status.busy": "now"}


def source(text: str) -> Change:
    return lambda small, cell: small.cells[cell].update(source=text)


def prints(text: str) -> Change:
    return lambda small, cell: output(small, cell).update(text=text)


def printed_unseen(small: NotebookNode, cell: int) -> None:
    """A claim that a function of the package makes, where nbval compares nothing."""
    tag("nbval-ignore-output")(small, cell)
    prints("✓ 2 > 1\n")(small, cell)


def shows(function: str) -> Change:
    def change(small: NotebookNode, cell: int) -> None:
        small.cells[cell].source = "plots.source(core.center)"
        data = {"text/markdown": f"```python\n{function}\n```"}
        small.cells[cell].outputs = [new_output("display_data", data)]

    return change


def becomes(key: str, value: str) -> Change:
    return lambda small, cell: output(small, cell).update({key: value})


CAUGHT: list[tuple[state.Rule, int, Change]] = [
    (state.is_valid, PRINT, becomes("output_type", "unknown")),
    (state.was_run_from_top_to_bottom, PRINT, clear),
    (state.was_run_from_top_to_bottom, PRINT, swap_counts),
    (state.has_outputs, PRINT, clear),
    (state.stores_no_times_of_the_run, PRINT, timed),
    (state.raises_only_where_tagged, RAISES, forget("tags")),
    (state.writes_nothing_to_stderr, PRINT, becomes("name", "stderr")),
    (state.describes_every_picture, DRAW, forget("mystnb")),
    (state.has_cells_that_fit_a_screen, PRINT, source("1\n" * 21)),
    (state.has_cells_that_fit_a_screen, PRINT, source("1" * 89)),
    (state.has_cells_that_fit_a_screen, PRINT, source("class A:\n" + "    1\n" * 30)),
    (state.ends_no_cell_with_a_semicolon, PRINT, source("1;\n")),
    (state.is_under_2_mb, PRINT, prints("0" * 2_000_000)),
    (state.prints_at_most_4_decimals, PRINT, prints("mean 0.25001")),
    (state.prints_no_negative_zero, PRINT, prints("mean -0.0000")),
    (state.prints_no_negative_zero, PRINT, prints("tensor([1., -0.])")),
    (state.names_no_path_of_a_machine, PRINT, prints("File /usr/lib/os.py:1")),
    (state.names_no_path_of_a_machine, PRINT, prints("File ~/book/core.py")),
    (state.installs_the_package_first, FIRST, remove),
    (state.installs_the_package_first, FIRST, forget("tags")),
    (state.folds_the_same_in_jupyterlab, PRINT, tag("hide-input")),
    (state.folds_the_same_in_jupyterlab, PRINT, tag("hide-cell")),
    (state.folds_the_same_in_jupyterlab, PRINT, folds(source_hidden=True)),
    (state.folds_the_same_in_jupyterlab, PRINT, folds(outputs_hidden=True)),
    (state.prints_functions_as_they_stand, PRINT, shows("def center(x):\n    pass")),
    (state.gives_a_reason_for_what_is_not_compared, PRINT, tag("nbval-skip")),
    (state.gives_a_reason_for_what_is_not_compared, PRINT, tag("nbval-ignore-output")),
    (state.gives_a_reason_for_what_is_not_compared, PRINT, source("# NBVAL_SKIP")),
    (state.claims_what_holds, CLAIM, prints("✗ 2 > 1\n")),
    (state.claims_what_holds, CLAIM, prints("✗ 2 > 1\n  TypeError: no order\n")),
    (state.claims_what_holds, PRINT, prints("mean 0.2500\n✗ 2 > 1\n")),
    (state.compares_every_claim, CLAIM, tag("nbval-skip")),
    (state.compares_every_claim, CLAIM, tag("nbval-ignore-output")),
    (state.compares_every_claim, PRINT, printed_unseen),
]


@pytest.mark.parametrize(("holds", "cell", "change"), CAUGHT)
def test_a_rule_catches(
    holds: state.Rule,
    cell: int,
    change: Change,
    notebook: NotebookNode,
) -> None:
    changed = copy.deepcopy(notebook)
    assert holds(changed) == []
    change(changed, cell)
    assert holds(changed) != []


# ------------------------------------------------------------------ lessons and labs

WORDS, SHOWN, CLAIMED, DRAWN, ASKED, LEADS = range(6)
QUESTION = "## Does it last?\n\nAt rate 0.1, 5 seeds."
HEAD = "| question | lab |\n|---|---|"


@pytest.fixture
def lesson() -> NotebookNode:
    """Return a notebook at most of a lesson's limits, which no kernel has run."""
    text = f"{HEAD}\n| why so? | [there](02_two_lab) |"
    claims = "".join(f"✓ {number} < 14\n" for number in range(14))
    picture = new_output("display_data", {"image/svg+xml": "<svg/>"})
    return new_notebook(
        cells=[
            new_markdown_cell("word " * 1990),
            new_code_cell("x = 1\n" * 198),
            new_code_cell(
                'claim("n < 14", True)\n' * 50,
                metadata={"tags": ["hide-input"]},
                outputs=[new_output("stream", text=claims)],
            ),
            new_code_cell("draw()", outputs=[picture] * 6),
            new_code_cell('check("batch-norm-class", BatchNorm)'),
            new_markdown_cell(text),
        ]
    )


@pytest.fixture
def lab() -> NotebookNode:
    """Return a notebook at a lab's limits."""
    return new_notebook(
        cells=[
            new_markdown_cell(f"# Lab\n\nAs long as it likes.\n\n{QUESTION}"),
            new_markdown_cell("word " * 345),
            new_code_cell("x = 1\n" * 65),
            new_code_cell('claim("2 > 1", True)\n' * 35),
        ]
    )


@pytest.fixture
def reference() -> NotebookNode:
    """Return a notebook at a reference page's limits."""
    claims = "".join(f"✓ {number} < 20\n" for number in range(20))
    return new_notebook(
        cells=[
            new_markdown_cell("word " * 2600),
            new_code_cell("x = 1\n" * 70),
            new_code_cell(
                'claim("n < 20", True)\n' * 30,
                outputs=[new_output("stream", text=claims)],
            ),
        ]
    )


def adds(text: str) -> Change:
    def change(small: NotebookNode, cell: int) -> None:
        small.cells[cell].source += text

    return change


def one_more(text: str) -> Change:
    return lambda small, cell: output(small, cell).update(
        text=output(small, cell).text + text
    )


def draws(number: int) -> Change:
    def change(small: NotebookNode, cell: int) -> None:
        small.cells[cell].outputs = [output(small, cell)] * number

    return change


FAULTS_OF_LESSONS: list[tuple[state.Rule, int, Change]] = [
    (state.has_at_most_2000_words, WORDS, adds("more " * 20)),
    (state.makes_at_most_14_claims, CLAIMED, one_more("✓ 14 < 14\n")),
    (state.is_claims_for_a_fifth_at_most, CLAIMED, adds('claim(\n    "1", 2\n)')),
    (state.is_claims_for_a_fifth_at_most, SHOWN, source("x = 1\n" * 197)),
    (state.has_4_to_6_figures, DRAWN, draws(3)),
    (state.has_4_to_6_figures, DRAWN, draws(7)),
    (state.shows_70_to_220_lines_of_code, SHOWN, source("x = 1\n" * 67)),
    (state.shows_70_to_220_lines_of_code, SHOWN, source("x = 1\n" * 219)),
    (state.shows_70_to_220_lines_of_code, SHOWN, tag("hide-input")),
    (state.reads_no_record, SHOWN, adds('read_record("batch_norm")')),
    (state.trains_in_its_own_cells, SHOWN, adds("from normbook.training import loop")),
    (state.trains_in_its_own_cells, SHOWN, adds("import normbook.labs.batch_norm")),
    (state.trains_in_its_own_cells, SHOWN, adds("from normbook import core, labs")),
    (
        state.trains_in_its_own_cells,
        SHOWN,
        adds("from normbook import (\n    core,\n    training,\n)"),
    ),
    (state.asks_for_the_layer_as_a_class, ASKED, source('check("batch-norm", f)')),
    (state.ends_with_questions_for_the_lab, LEADS, source("The end.")),
    (state.ends_with_questions_for_the_lab, LEADS, source(HEAD)),
    (
        state.ends_with_questions_for_the_lab,
        LEADS,
        source(f"{HEAD}\n| why? | [there](03_layer_norm) |"),
    ),
]
FAULTS_OF_LABS: list[tuple[state.Rule, int, Change]] = [
    (state.is_claims_for_a_third_at_most, 3, adds('claim("3 > 2", True)')),
    (state.has_short_sections_that_answer_a_question, 0, source("# Lab")),
    (state.has_short_sections_that_answer_a_question, 0, source("## It lasts")),
    (state.has_short_sections_that_answer_a_question, 1, adds("\n\nword")),
    (state.has_short_sections_that_answer_a_question, 1, adds("\n\n## Sources")),
]
FAULTS_OF_REFERENCES: list[tuple[state.Rule, int, Change]] = [
    (state.has_at_most_2600_words, 0, adds("more")),
    (state.makes_at_most_20_claims, 2, one_more("✓ 20 < 20\n")),
    (state.is_claims_for_three_tenths_at_most, 2, adds('claim("3 > 2", True)')),
    (state.trains_in_its_own_cells, 1, adds("from normbook.training import loop")),
]


@pytest.mark.parametrize(("holds", "cell", "change"), FAULTS_OF_LESSONS)
def test_a_rule_for_lessons_catches(
    holds: state.Rule, cell: int, change: Change, lesson: NotebookNode
) -> None:
    assert holds(lesson) == []
    change(lesson, cell)
    assert holds(lesson) != []


@pytest.mark.parametrize(("holds", "cell", "change"), FAULTS_OF_LABS)
def test_a_rule_for_labs_catches(
    holds: state.Rule, cell: int, change: Change, lab: NotebookNode
) -> None:
    assert holds(lab) == []
    change(lab, cell)
    assert holds(lab) != []


@pytest.mark.parametrize(("holds", "cell", "change"), FAULTS_OF_REFERENCES)
def test_a_rule_for_reference_pages_catches(
    holds: state.Rule, cell: int, change: Change, reference: NotebookNode
) -> None:
    assert holds(reference) == []
    change(reference, cell)
    assert holds(reference) != []


@pytest.mark.parametrize(
    "start", ["class Net(nn.Module):\n    pass\n", "net = nn.Sequential()\n"]
)
def test_a_class_or_a_net_may_take_30_lines(start: str) -> None:
    fits = state.has_cells_that_fit_a_screen
    lines = 30 - start.count("\n")
    assert fits(new_notebook(cells=[new_code_cell(start + "1\n" * lines)])) == []
    assert fits(new_notebook(cells=[new_code_cell(start + "1\n" * (lines + 1))]))


def test_a_question_may_lead_to_a_section_of_the_lab(lesson: NotebookNode) -> None:
    lesson.cells[LEADS].source = f"{HEAD}\n| why? | [lab](02_two_lab.ipynb#depth) |"
    assert state.ends_with_questions_for_the_lab(lesson) == []


def test_every_rule_has_a_planted_fault() -> None:
    planted = (CAUGHT, FAULTS_OF_LESSONS, FAULTS_OF_LABS, FAULTS_OF_REFERENCES)
    assert {holds for faults in planted for holds, *_ in faults} == set(state.RULES)


def test_a_claim_made_twice_is_caught(notebook: NotebookNode) -> None:
    assert state.claimed_twice([notebook]) == []
    assert state.claimed_twice([notebook, notebook]) == ["2 > 1"]


def test_an_honest_text_passes(notebook: NotebookNode) -> None:
    honest = copy.deepcopy(notebook)
    output(honest, REPR).data["text/plain"] = "by-hand ✗ nothing here yet"
    output(honest, PRINT).text = "-0.5 N/A and/or 1.2346e-07 x/y/z 1/3 -0.0001 C·H/G\n"
    rules = [rule for rule, kind in state.RULES.items() if kind is state.any_notebook]
    assert [fault for holds in rules for fault in holds(honest)] == []
