"""Python in the page: which cells a reader can answer there, and what that needs.

A graded exercise gets buttons below its code, and `_static/in_page.js` makes an editor
of the code. `{starters}` shows programs to start from, on a page to try things. Python
itself, the files of `_build/pyodide` and normbook's sources, is fetched on the first
click, from `_static/python-…`; where `make` could not get it, the pages say so.
"""

import ast
import builtins
import html
import io
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import run_answer
from copied_code import bound
from docutils import nodes
from pyodide_files import FOLDER
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from normbook.exercises import limits

PACKAGE = Path(limits.__file__).parents[1]
# Of the package, what needs NumPy alone, and what runs an answer.
SOURCES = ("__init__.py", "core.py", "functional.py", "moments.py", "exercises/*.py")
ARCHIVE = "normbook.zip"
WORKER = Path(__file__).parents[1] / "_static" / "in_page_worker.js"
EXERCISE, SOLUTION = "exercise-", "solution-"  # how the ids of such cells begin
CLASS = "-class"  # how the name of an exercise ends that asks for a torch layer
IMPORTABLE = {"numpy", *sys.stdlib_module_names}
OURS = {"core", "functional", "moments", "exercises"}

NOTEBOOK = "the notebook: <code>make lab</code>, or Binder or Colab, under the rocket"
ELSEWHERE = f"Needs PyTorch, which no page can run. Answer in {NOTEBOOK}."
WITHOUT = {
    "exercise": f"This copy of the book has no Python for its pages. Use {NOTEBOOK}.",
    "starter": "This copy of the book has no Python for its pages. Paste a program "
    "into a notebook: <code>make lab</code>.",
}
KEYS = (
    '<span class="in-page-keys">Tab indents; Escape, then Tab, leaves the editor; '
    "Ctrl+Enter runs.</span>"
)
BUTTONS = {
    "exercise": {"run": "Check", "solution": "Solution", "again": "Start over"},
    "starter": {"run": "Run", "again": "Start over"},
}


# ---------------------------------------------------------------- what a page defines


def defined_before(cells: list[str]) -> str:
    """The imports and functions of earlier cells that need NumPy alone.

    An answer may call what its page has defined; what needs PyTorch, or reads a value,
    is left out.
    """
    kept: list[ast.stmt] = []
    known = set(dir(builtins))
    for statement in (s for cell in cells for s in statements(cell)):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [alias for alias in statement.names if importable(statement, alias)]
            if names:
                statement.names = names
                kept.append(statement)
                known |= {(a.asname or a.name).partition(".")[0] for a in names}
        elif isinstance(statement, ast.FunctionDef):
            if needed(statement) <= known | {statement.name}:
                kept.append(statement)
                known.add(statement.name)
            else:
                known.discard(statement.name)
    return "\n".join(map(ast.unparse, kept))


def statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:  # a command of IPython's
        return []


def importable(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether a page can import this name."""
    if isinstance(statement, ast.Import):
        return alias.name.partition(".")[0] in IMPORTABLE
    package, _, module = (statement.module or "").partition(".")
    if package == "normbook":
        return (module or alias.name).partition(".")[0] in OURS
    return package in IMPORTABLE


def needed(function: ast.FunctionDef) -> set[str]:
    """The names that a function reads and does not bind itself."""
    read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return read - {name for name, _ in bound(function)}


def imports(cell: str) -> str:
    """The lines of a cell that import something: they stay when an answer goes."""
    kinds = (ast.Import, ast.ImportFrom)
    return "\n".join(ast.unparse(s) for s in statements(cell) if isinstance(s, kinds))


def checked(code: str) -> list[str]:
    """The exercises that a cell checks, by name."""
    return re.findall(r'^check\("([\w-]+)"', code, re.MULTILINE)


class Answered(NamedTuple):
    """A cell of a notebook that asks for an answer: its place and what it checks."""

    key: str
    index: int
    checks: list[str]
    before: str


@cache
def exercises(notebook: Path) -> list[Answered]:
    """The graded exercises of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    answered, earlier = [], []
    for index, cell in enumerate(cells):
        source = "".join(cell["source"])
        name = cell.get("id", "")
        if cell["cell_type"] != "code":
            continue
        if name.startswith(EXERCISE) and (checks := checked(source)):
            key = f"{notebook.stem}/{name}"
            before = defined_before([*earlier, imports(source)])
            answered.append(Answered(key, index, checks, before))
        elif not name.startswith(SOLUTION):
            earlier.append(source)
    return answered


# ---------------------------------------------------------------- what is served


def archive() -> bytes:
    """The sources that a page runs, in an archive that depends on nothing else."""
    content = io.BytesIO()
    with ZipFile(content, "w", ZIP_DEFLATED) as files:

        def add(path: Path, name: str) -> None:
            info = ZipInfo(name)  # of 1980
            info.compress_type = ZIP_DEFLATED
            files.writestr(info, path.read_bytes())

        add(Path(run_answer.__file__), "run_answer.py")
        for pattern in SOURCES:
            for path in sorted(PACKAGE.glob(pattern)):
                add(path, f"normbook/{path.relative_to(PACKAGE).as_posix()}")
    return content.getvalue()


@cache
def served(notebooks: Path) -> dict[str, bytes]:
    """The files of Python in the page, by name; none where `make` could get none."""
    if not FOLDER.is_dir():
        return {}
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}
    files[ARCHIVE] = archive()
    told = {
        "bytes": {name: len(content) for name, content in files.items()},
        "limit": limits.TIME_LIMIT_S,
        "late": limits.LATE.format(limits.TIME_LIMIT_S),
        "before": {
            exercise.key: exercise.before
            for notebook in sorted(notebooks.glob("*.ipynb"))
            for exercise in exercises(notebook)
        },
    }
    files["files.js"] = f"export default {json.dumps(told)}\n".encode()
    return files


def folder_name(files: dict[str, bytes]) -> str:
    """A name that changes with any of the files, so that no cache mixes two books."""
    digest = sha256(WORKER.read_bytes())
    for name, content in files.items():
        digest.update(name.encode() + content)
    return f"python-{digest.hexdigest()[:12]}"


def write(app: Sphinx, error: Exception | None) -> None:
    """Put the files of Python beside the pages that ask for them."""
    if error or app.builder.format != "html":
        return
    files = served(Path(app.srcdir, "notebooks"))
    if files:
        folder = Path(app.outdir, "_static", folder_name(files))
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)


# ---------------------------------------------------------------- what a page shows


def bar(
    app: Sphinx, kind: str, key: str, checks: Sequence[str] = (), first: bool = True
) -> nodes.raw:
    """What stands below code that can be altered: buttons, and how to use the first."""
    files = served(Path(app.srcdir, "notebooks"))
    if any(name.endswith(CLASS) for name in checks):
        inside = f'<p class="in-page-note">{ELSEWHERE}</p>'
    elif not files:
        inside = f'<p class="in-page-note">{WITHOUT[kind]}</p>'
    else:
        buttons = " ".join(
            f'<button type="button" name="{name}">{label}</button>'
            for name, label in BUTTONS[kind].items()
        )
        megabytes = round(sum(map(len, files.values())) / 1e6)
        inside = f'<p>{buttons} <span class="in-page-progress"></span></p>'
        inside += first * (
            '<p class="in-page-note" id="in-page-note">The first click loads Python, '
            f"{megabytes} MB. {KEYS} What you write is kept in this browser alone. "
            '<button type="button" name="forget">Forget all that I wrote</button></p>'
        )
    data = {"key": key, "python": folder_name(files)}
    attributes = " ".join(f'data-{k}="{html.escape(v)}"' for k, v in data.items())
    text = f'<div class="in-page-bar" {attributes}>{inside}</div>'
    return nodes.raw("", text, format="html")


def mark_exercises(app: Sphinx, doctree: nodes.document) -> None:
    """Put a bar below the code of each graded exercise of a notebook."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    by_index = {exercise.index: exercise for exercise in exercises(path)}
    first, told = True, False
    for cell in doctree.findall(nodes.container):
        exercise = by_index.get(cell.get("cell_index"))
        if exercise and cell.get("nb_element") == "cell_code":
            elsewhere = any(name.endswith(CLASS) for name in exercise.checks)
            if elsewhere and told:
                continue  # where it runs is said once a page
            told = told or elsewhere
            cell["classes"].append("in-page")
            below = bar(app, "exercise", exercise.key, exercise.checks, first)
            cell.insert(1, below)
            first = first and "<button" not in below.astext()


class Starters(SphinxDirective):
    """Programs to start from, each below a line `# %% Title`; one editor for them."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        parts = re.split(r"^# %% (.+)\n", "\n".join(self.content), flags=re.MULTILINE)
        programs = dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
        if parts[0].strip() or not all(programs.values()):
            raise self.error("starters: each program begins with a line # %% Title")
        key = f"{self.env.docname}/starter"
        buttons = bar(self.env.app, "starter", key)
        cell = nodes.container(classes=["cell", "in-page", "in-page-starters"])
        options = "".join(
            f"<option>{html.escape(title)}</option>" for title in programs
        )
        choice = f'<label>Start from <select name="program">{options}</select></label>'
        if "<button" in buttons.astext():
            cell["classes"].append("is-live")
            cell += nodes.raw(
                "", f'<p class="in-page-choice">{choice}</p>', format="html"
            )
        for title, code in programs.items():
            listing = nodes.container(classes=["cell_input"])
            listing += nodes.literal_block(code, code, language="python")
            head = nodes.paragraph("", "", nodes.strong(title, title))
            cell += nodes.container("", head, listing, classes=["starter"])
        output = '<div class="cell_output"><div class="output"><pre></pre></div></div>'
        cell += [buttons, nodes.raw("", output, format="html")]
        return [cell]


def add_files(
    app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None
) -> None:
    """Load script and style on the pages that have something to answer, on no other."""
    cells = doctree.findall(nodes.container) if doctree else ()
    if any("in-page" in cell["classes"] for cell in cells):
        app.add_js_file("in_page.js", loading_method="defer")
        app.add_css_file("in_page.css")


def setup(app: Sphinx) -> dict[str, bool]:
    for remembered in (exercises, served):
        remembered.cache_clear()
    app.add_directive("starters", Starters)
    app.connect("doctree-read", mark_exercises)
    app.connect("html-page-context", add_files)
    # After the repairs, which look at the scripts of pages.
    app.connect("build-finished", write, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
