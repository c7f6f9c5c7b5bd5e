"""The state of every stored notebook: what nbval does not look at.

nbval runs each cell and compares what it prints. It passes a notebook whose outputs
were cleared, and it never sees alt text, sizes or the order of the runs. Each rule here
takes a notebook and returns what is wrong with it, one line a fault; test_guard.py
shows each of them catching a planted fault.

Some rules are for lessons or for labs alone: chapter 2's lesson is 02_batch_norm.ipynb
once its lab, 02_batch_norm_lab.ipynb, lies beside it. Any other notebook of a chapter
with a lab is a reference page, such as 06_debugging.ipynb.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from reading_time import lines_of, measure, words

from normbook.claims import FAILS, HOLDS, claim_id

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

Rule = Callable[[NotebookNode], list[str]]
Kind = Callable[[Path], bool]
RULES: dict[Rule, Kind] = {}


def any_notebook(path: Path) -> bool:
    return True


def lab(path: Path) -> bool:
    return path.stem.endswith("_lab")


def lesson(path: Path) -> bool:
    return path.with_name(f"{path.stem}_lab.ipynb").exists()


def lesson_of_a_layer(path: Path) -> bool:
    # Chapters 1, 6 and 7 build no layer of their own: the first writes the one formula,
    # the sixth chooses among layers, the seventh makes them fast.
    return lesson(path) and path.stem[:2] in ("02", "03", "04", "05", "08")


def reference(path: Path) -> bool:
    labs = path.parent.glob(f"{path.stem[:2]}_*_lab.ipynb")
    return any(labs) and not lesson(path) and not lab(path)


def lesson_or_reference(path: Path) -> bool:
    return lesson(path) or reference(path)


def rule(holds_for: Kind) -> Callable[[Rule], Rule]:
    """Add the function to the rules that notebooks of a kind are held to."""

    def add(function: Rule) -> Rule:
        RULES[function] = holds_for
        return function

    return add


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
    """Yield every output with its cell and the cell's number among the code cells."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            yield number, cell, output


def printed(output: NotebookNode) -> str:
    """Return what an output shows as text: stdout, a repr, an error."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join([output.ename, output.evalue, *output.traceback])
    return output.data.get("text/plain", "")


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def not_compared(cell: NotebookNode) -> set[str]:
    return {"nbval-ignore-output", "nbval-skip"} & set(tags(cell))


def claims(cell: NotebookNode, *marks: str) -> list[str]:
    """Return every line of a cell's outputs that begins with one of the marks."""
    shown = (printed(output) for output in cell.outputs)
    return [
        line for text in shown for line in text.splitlines() if line.startswith(marks)
    ]


@rule(any_notebook)
def is_valid(notebook: NotebookNode) -> list[str]:
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [str(error).splitlines()[0]]
    return []


@rule(any_notebook)
def was_run_from_top_to_bottom(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if not counts:
        return ["there is no code cell"]
    if counts != list(range(1, len(counts) + 1)):
        return [f"execution counts are {counts}, not 1 to {len(counts)}: make run"]
    return []


@rule(any_notebook)
def has_outputs(notebook: NotebookNode) -> list[str]:
    return [] if any(outputs(notebook)) else ["no output is stored: make run"]


@rule(any_notebook)
def stores_no_times_of_the_run(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} stores when it ran: make run"
        for number, cell in enumerate(code_cells(notebook), start=1)
        if "execution" in cell.metadata
    ]


@rule(any_notebook)
def raises_only_where_tagged(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} stores {output.ename} and is not tagged raises-exception"
        for number, cell, output in outputs(notebook)
        if output.output_type == "error" and "raises-exception" not in tags(cell)
    ]


@rule(any_notebook)
def writes_nothing_to_stderr(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} stores stderr: {output.text.strip()[:60]!r}"
        for number, _, output in outputs(notebook)
        if output.output_type == "stream" and output.name == "stderr"
    ]


@rule(any_notebook)
def describes_every_picture(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} shows a picture without mystnb.image.alt in its metadata"
        for number, cell, output in outputs(notebook)
        if any(kind.startswith("image/") for kind in output.get("data", {}))
        and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
    ]


@rule(any_notebook)
def has_cells_that_fit_a_screen(notebook: NotebookNode) -> list[str]:
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        lines = cell.source.splitlines()
        # A class or a net stays whole.
        whole = re.search(r"^class \w|\bSequential\(", cell.source, re.MULTILINE)
        most = 30 if whole else 20
        if len(lines) > most:
            faults.append(f"cell {number} has {len(lines)} lines, more than {most}")
        if max(map(len, lines), default=0) > 88:
            faults.append(f"cell {number} has a line of more than 88 columns")
    return faults


@rule(any_notebook)
def ends_no_cell_with_a_semicolon(notebook: NotebookNode) -> list[str]:
    # nbval runs cells outside IPython's history, where a last ";" hides no result.
    return [
        f'cell {number} ends with ";": give its last value a name'
        for number, cell in enumerate(code_cells(notebook), start=1)
        if cell.source.rstrip().endswith(";")
    ]


@rule(any_notebook)
def is_under_2_mb(notebook: NotebookNode) -> list[str]:
    size = len(nbformat.writes(notebook).encode())
    return [f"{size / 1e6:.1f} MB, more than 2"] if size > 2e6 else []


@rule(any_notebook)
def prints_at_most_4_decimals(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} prints {number_printed}: more than 4 decimals"
        for number, _, output in outputs(notebook)
        for number_printed in re.findall(r"\d*\.\d{5,}", printed(output))
    ]


@rule(any_notebook)
def prints_no_negative_zero(notebook: NotebookNode) -> list[str]:
    # Its sign is the sign of a rounding error, and that differs between machines.
    zero = re.compile(r"(?<![\w.])[-−]0(?:\.0*)?(?![\w.])")
    return [
        f"cell {number} prints {zero.search(printed(output))[0]}"
        for number, _, output in outputs(notebook)
        if zero.search(printed(output))
    ]


@rule(any_notebook)
def names_no_path_of_a_machine(notebook: NotebookNode) -> list[str]:
    absolute = re.compile(r"(?<![\w.:/<~])(?:/[\w.+-]+){2,}|\b[A-Z]:\\\w+|~/\w+")
    return [
        f"cell {number} prints {absolute.search(printed(output))[0]}"
        " (%xmode Minimal keeps a traceback short)"
        for number, _, output in outputs(notebook)
        if absolute.search(printed(output))
    ]


@rule(any_notebook)
def installs_the_package_first(notebook: NotebookNode) -> list[str]:
    # Colab and Binder open a notebook without the package around it.
    first = (code_cells(notebook) or [NotebookNode(source="", metadata={})])[0]
    wanted = ["import normbook", "except ModuleNotFoundError", "%pip install"]
    faults = [
        f"the first code cell lacks {part!r}"
        for part in wanted
        if part not in first.source
    ]
    if "remove-cell" not in tags(first):
        faults.append("the first code cell is not tagged remove-cell")
    return faults


@rule(any_notebook)
def gives_a_reason_for_what_is_not_compared(notebook: NotebookNode) -> list[str]:
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE_)", cell.source):
            faults.append(f"cell {number} has a comment for nbval: use a tag")
        spared = not_compared(cell)
        if spared and not cell.metadata.get("reason", "").strip():
            faults.append(f"cell {number} is {spared.pop()} without a reason")
    return faults


# What a tag folds on the page, in the words of JupyterLab's metadata.
FOLDED = {
    "hide-input": {"source_hidden"},
    "hide-output": {"outputs_hidden"},
    "hide-cell": {"source_hidden", "outputs_hidden"},
}


@rule(any_notebook)
def folds_the_same_in_jupyterlab(notebook: NotebookNode) -> list[str]:
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        on_page = set().union(*(FOLDED.get(tag, set()) for tag in tags(cell)))
        in_lab = {key for key, on in cell.metadata.get("jupyter", {}).items() if on}
        if on_page != in_lab:
            faults.append(
                f"cell {number} is tagged {tags(cell)}, but its metadata.jupyter has"
                f" {sorted(in_lab)}: set {sorted(on_page)} to true there, no others"
            )
    return faults


SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")
)


@rule(any_notebook)
def prints_functions_as_they_stand(notebook: NotebookNode) -> list[str]:
    # plots.source shows a function of src, so an edited docstring changes an output.
    return [
        f"cell {number} shows {function.split('(')[0].split()[-1]} as src no longer"
        " has it: make run NOTEBOOKS=notebooks/ and the name of this notebook"
        for number, cell, output in outputs(notebook)
        if "source(" in cell.source
        for text in re.findall(
            r"```python\n(.*?)\n*```",
            output.get("data", {}).get("text/markdown", ""),
            re.DOTALL,
        )
        for function in text.split("\n\n\n")
        if function.strip("\n") not in SOURCES
    ]


@rule(any_notebook)
def claims_what_holds(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} stores {line!r}, a claim that does not hold"
        for number, cell in enumerate(code_cells(notebook), start=1)
        for line in claims(cell, FAILS)
    ]


@rule(any_notebook)
def compares_every_claim(notebook: NotebookNode) -> list[str]:
    # A claim only prints, so a stored ✓ that nobody compares would prove nothing.
    return [
        f"cell {number} is {', '.join(not_compared(cell))} and makes a claim: "
        "give the claim a cell of its own"
        for number, cell in enumerate(code_cells(notebook), start=1)
        if not_compared(cell)
        and (re.search(r"\bclaim\(", cell.source) or claims(cell, HOLDS, FAILS))
    ]


# ------------------------------------------------ lessons, labs and reference pages


def python(cell: NotebookNode) -> str:
    """Return a cell's code without IPython's own lines."""
    return "".join(
        line
        for line in cell.source.splitlines(keepends=True)
        if not line.lstrip().startswith(("%", "!"))
    )


def share_of_claims(notebook: NotebookNode) -> float:
    """Return how much of all lines of code are statements that call `claim`."""
    of_claims = every = 0
    for cell in code_cells(notebook):
        if "remove-cell" in tags(cell):
            continue
        code = python(cell)
        every += lines_of(code)
        lines = code.splitlines()
        for node in ast.walk(ast.parse(code)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "claim"
            ):
                statement = lines[node.lineno - 1 : node.end_lineno]
                of_claims += lines_of("\n".join(statement))
    return of_claims / max(every, 1)


def more_than(number: float, most: float, what: str) -> list[str]:
    return [f"{number:,} {what}, more than {most:,}"] if number > most else []


def outside(number: int, least: int, most: int, what: str) -> list[str]:
    if least <= number <= most:
        return []
    return [f"{number} {what}, not {least} to {most}"]


@rule(lesson)
def has_at_most_2000_words(notebook: NotebookNode) -> list[str]:
    return more_than(measure(notebook.cells).words, 2000, "words")


@rule(lesson)
def makes_at_most_14_claims(notebook: NotebookNode) -> list[str]:
    return more_than(measure(notebook.cells).claims, 14, "claims")


@rule(lesson)
def is_claims_for_a_fifth_at_most(notebook: NotebookNode) -> list[str]:
    percent = round(100 * share_of_claims(notebook), 1)
    return more_than(percent, 20, "% of the lines of code are claims")


@rule(lab)
def is_claims_for_a_third_at_most(notebook: NotebookNode) -> list[str]:
    percent = round(100 * share_of_claims(notebook))
    return more_than(percent, 35, "% of the lines of code are claims")


@rule(lesson)
def has_4_to_6_figures(notebook: NotebookNode) -> list[str]:
    return outside(measure(notebook.cells).figures, 4, 6, "figures")


@rule(lesson)
def shows_70_to_220_lines_of_code(notebook: NotebookNode) -> list[str]:
    # Chapters 1 and 4 have 14 screens, which hold half the code of the others.
    shown = measure(notebook.cells).lines
    return outside(shown, 70, 220, "lines of code that are not folded")


@rule(lesson)
def reads_no_record(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number} reads a record: it belongs to the lab"
        for number, cell in enumerate(code_cells(notebook), start=1)
        if "read_record" in cell.source
    ]


@rule(lesson_or_reference)
def trains_in_its_own_cells(notebook: NotebookNode) -> list[str]:
    imports = re.compile(
        r"normbook\.(?:training|labs)\b"
        r"|from normbook import [^\n]*\b(?:training|labs)\b"
        r"|from normbook import \([^)]*\b(?:training|labs)\b"
    )
    return [
        f"cell {number} imports {found[0].split()[-1]}, which is for labs: show the"
        " net and its loop in a cell"
        for number, cell in enumerate(code_cells(notebook), start=1)
        if (found := imports.search(cell.source))
    ]


@rule(lesson_of_a_layer)
def asks_for_the_layer_as_a_class(notebook: NotebookNode) -> list[str]:
    checks = (
        re.search(r'check\("[\w-]+-class"', c.source) for c in code_cells(notebook)
    )
    return [] if any(checks) else ['no exercise checks a class: check("…-class", …)']


@rule(lesson)
def ends_with_questions_for_the_lab(notebook: NotebookNode) -> list[str]:
    last = max(
        (n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"),
        default=-1,
    )
    after = "\n".join(cell.source for cell in notebook.cells[last + 1 :])
    rows = re.findall(r"^\|.*\|\s*$", after, re.MULTILINE)[2:]
    questions = [row for row in rows if re.search(r"\?.*\|.*\]\([^)]*[_-]lab\b", row)]
    if questions:
        return []
    return ["no table after the last cell of code leads from a question to the lab"]


@rule(lab)
def has_short_sections_that_answer_a_question(notebook: NotebookNode) -> list[str]:
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    sections = re.split(r"^## +", "\n\n".join(texts), flags=re.MULTILINE)[1:]
    faults = [] if sections else ["there is no section: ## and a question"]
    for section in sections:
        title, _, text = section.partition("\n")
        if not title.rstrip().endswith("?"):
            faults.append(f"the title {title!r} is no question")
        faults += more_than(words(text), 350, f"words under {title!r}")
    return faults


@rule(reference)
def has_at_most_2600_words(notebook: NotebookNode) -> list[str]:
    return more_than(measure(notebook.cells).words, 2600, "words")


@rule(reference)
def makes_at_most_20_claims(notebook: NotebookNode) -> list[str]:
    return more_than(measure(notebook.cells).claims, 20, "claims")


@rule(reference)
def is_claims_for_three_tenths_at_most(notebook: NotebookNode) -> list[str]:
    percent = round(100 * share_of_claims(notebook), 1)
    return more_than(percent, 30, "% of the lines of code are claims")


# ------------------------------------------------------------------ all of them


def statements(notebooks: list[NotebookNode]) -> list[str]:
    return [
        line.removeprefix(HOLDS)
        for notebook in notebooks
        for cell in code_cells(notebook)
        for line in claims(cell, HOLDS)
    ]


def claimed_twice(notebooks: list[NotebookNode]) -> list[str]:
    counts = Counter(statements(notebooks))
    return [statement for statement, count in counts.items() if count > 1]


@pytest.fixture(scope="module")
def stored() -> dict[Path, NotebookNode]:
    return {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize(
    ("holds", "path"),
    [
        pytest.param(holds, path, id=f"{holds.__name__}-{path.stem}")
        for holds, kind in RULES.items()
        for path in NOTEBOOKS
        if kind(path)
    ],
)
def test_notebook(holds: Rule, path: Path, stored: dict[Path, NotebookNode]) -> None:
    assert holds(stored[path]) == []


def test_a_lesson_is_what_has_a_lab_beside_it(tmp_path: Path) -> None:
    names = ("01_one", "02_two", "02_two_lab", "02_why", "07_fast", "07_fast_lab")
    paths = [tmp_path / f"{name}.ipynb" for name in names]
    for path in paths:
        path.touch()
    assert [path.stem for path in paths if lesson(path)] == ["02_two", "07_fast"]
    assert [path.stem for path in paths if lab(path)] == ["02_two_lab", "07_fast_lab"]
    assert [path.stem for path in paths if lesson_of_a_layer(path)] == ["02_two"]
    assert [path.stem for path in paths if reference(path)] == ["02_why"]


def test_every_claim_is_made_once(stored: dict[Path, NotebookNode]) -> None:
    assert claimed_twice(list(stored.values())) == []


def test_every_claim_has_an_id_of_its_own(stored: dict[Path, NotebookNode]) -> None:
    every = statements(list(stored.values()))
    assert len({claim_id(statement) for statement in every}) == len(set(every)) > 0


def test_no_link_names_a_claim_by_its_number(stored: dict[Path, NotebookNode]) -> None:
    """A number is computed when the book is built; {claim}`statement` links to it."""
    pages = (NOTEBOOKS[0].parents[1] / "book").glob("*.md")
    written = {page: page.read_text(encoding="utf-8") for page in pages}
    for path, notebook in stored.items():
        written[path] = "\n".join(cell.source for cell in notebook.cells)
    typed = re.compile(r"#claim-|\bclaims? \d+\.\d+")
    assert [path.name for path, text in written.items() if typed.search(text)] == []
