"""Python in the page: where its files come from, what it runs, what a reader is told.

In the browser one Python answers every exercise, right and with each named mistake, and
says what CPython says.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

import in_page
import pyodide_files
import run_answer
from test_book import notebook, small_book
from test_exercises import WAITING
from test_pages import (  # noqa: F401
    DESK,
    HTML,
    PHONE,
    ROOT,
    Quiet,
    axe,
    browser,
    served,
    unavailable,
)

from normbook.exercises import EXERCISES
from normbook.exercises.grading import BLANK
from normbook.exercises.limits import LATE, TIME_LIMIT_S

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ANSWERED = {
    answered.key: answered
    for path in NOTEBOOKS
    for answered in in_page.exercises(path)
    if not any(name.endswith("-class") for name in answered.checks)
}
STARTERS = re.findall(
    r"^# %% (.+)\n((?:(?!# %%|```).*\n)+)",
    (ROOT / "book" / "try_it.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
LATE_5 = LATE.format(TIME_LIMIT_S)


def printed(code: str, before: str = "") -> str:
    """What a run of this Python shows."""
    shown: list[str] = []
    run_answer.run(code, before, shown.append)
    return "".join(shown)


def source(stem: str, cell_id: str) -> str:
    """The code of a notebook's cell."""
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (code,) = (cell["source"] for cell in cells if cell["id"] == cell_id)
    return "".join(code)


def solution(key: str) -> str:
    """The code of the cell that answers an exercise's."""
    stem, cell_id = key.split("/exercise-")
    return source(stem, f"solution-{cell_id}")


def mistaken(name: str) -> str:
    """A program that hands in each named mistake of an exercise."""
    call = "" if EXERCISES[name].cases[0].args else "()"
    return (
        f"from normbook.exercises import EXERCISES, check\n"
        f"for wrong in EXERCISES[{name!r}].mistakes.values():\n"
        f"    check({name!r}, wrong{call})\n"
    )


# ---------------------------------------------------------------- the files

WHEEL = {"file_name": "numpy.whl", "sha256": hashlib.sha256(b"the wheel").hexdigest()}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The places to look in, which a test fills; the cache is empty."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(pyodide_files, "user_cache_path", lambda *_, **__: cache)
    places = {"the cache": pyodide_files.from_cache}
    monkeypatch.setattr(pyodide_files, "PLACES", places)
    return places


def test_the_first_place_that_has_the_very_wheel_serves(
    places: dict[str, Any], tmp_path: Path
) -> None:
    def no_network(pyodide: Path, name: str) -> bytes:
        raise OSError("no network")

    places["offline"] = no_network
    places["another file"] = lambda pyodide, name: b"another"
    with pytest.raises(pyodide_files.Missing) as missing:
        pyodide_files.wheel(tmp_path, WHEEL)
    assert "offline: no network" in str(missing.value)
    assert "another file: numpy.whl is not the file" in str(missing.value)
    places["a good one"] = lambda pyodide, name: b"the wheel"
    assert pyodide_files.wheel(tmp_path, WHEEL) == b"the wheel"
    # From now on the cache has it; what it holds is not believed either.
    del places["a good one"]
    assert pyodide_files.wheel(tmp_path, WHEEL) == b"the wheel"
    (tmp_path / "cache" / "numpy.whl").write_bytes(b"broken")
    with pytest.raises(pyodide_files.Missing):
        pyodide_files.wheel(tmp_path, WHEEL)


def test_what_npm_installs_is_pinned_with_its_integrity() -> None:
    manifest, lock = (json.loads(p.read_text("utf-8")) for p in pyodide_files.PINNED)
    packages = lock["packages"]
    assert packages.pop("")["dependencies"] == manifest["dependencies"]
    assert packages.keys() >= {"node_modules/pyodide"}
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package  # the registry is the reader's


# ---------------------------------------------------------------- what runs an answer


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\nx + 1", "2\n"),
        ("print('a', end='')", "a"),
        ("None", ""),
        (
            "x = 1\ndef f():\n    return y\nf()\n",
            "✗ NameError: name 'y' is not defined",
        ),
        ("f(1)\ndef f(:", "✗ SyntaxError: invalid syntax (line 2)\n"),
        ("import sys\nsys.exit(3)", "✗ SystemExit: 3 (line 2)\n"),
        ("print('x' * 9)\n1 / 0", "xxxxxxxxx\n✗ ZeroDivisionError: division by zero"),
        ("helper(2)", "4\n"),
    ],
)
def test_an_answer_shows_what_it_prints_and_how_it_fails(code: str, says: str) -> None:
    assert printed(code, "def helper(x): return 2 * x").startswith(says)


def test_the_place_of_an_error_is_its_line_of_the_answer() -> None:
    assert printed("def f():\n    return y\n\nf()").endswith("(line 2)\n")
    assert printed("import json\njson.loads('{')").endswith("(line 2)\n")


def test_what_needs_pytorch_is_sent_to_the_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    assert printed("print(1)\nimport torch").startswith("1\n✗ PyTorch is not here")
    assert printed("import nosuch").startswith("✗ ModuleNotFoundError")


def test_printing_without_end_is_stopped() -> None:
    shown = printed("while True: print('again')")
    assert shown.endswith("✗ it prints more than 30,000 characters\n")
    assert 29_000 < len(shown) < 31_000


def test_an_answer_has_what_its_page_has_defined_without_pytorch() -> None:
    before = in_page.defined_before(
        [
            "%pip install x",
            "import torch, math\nfrom normbook import core, plots\nimport numpy as np",
            "def with_torch(x): return torch.tensor(x)\n"
            "def twice(x, by=2): return by * core.mean(x, (0,))\n"
            "def reads_a_value(x): return x + number\nnumber = 3",
            "def calls(x): return twice(x) + math.pi\n"
            "def calls_torch(x): return with_torch(x)",
        ]
    )
    names: dict[str, Any] = {}
    exec(before, names)
    own = names.keys() - {"__builtins__"}
    assert own == {"math", "core", "np", "twice", "calls"}


@pytest.mark.parametrize("key", ANSWERED)
def test_the_solution_of_a_notebook_is_right_after_what_its_page_defines(
    key: str,
) -> None:
    right = [f"{name} ✓ right\n" for name in ANSWERED[key].checks]
    assert printed(solution(key), ANSWERED[key].before) == "".join(right)


def test_every_exercise_that_needs_numpy_alone_can_be_answered_in_its_page() -> None:
    answered = {name for one in ANSWERED.values() for name in one.checks}
    assert answered == EXERCISES.keys() - WAITING


# ---------------------------------------------------------------- the build

ASKED = json.loads(
    notebook(
        "# Chapter two",
        ('check("batch-norm-class", 1)', "✗\n"),
        ('check("by-hand", 1)', "✗\n"),
        ('check("merge", 1)', "✗\n"),
        ('check("by-hand", 2)', "✗\n"),
    )
)
for cell, name in zip(ASKED["cells"][1:], ("a", "b", "c"), strict=False):
    cell["id"] = f"exercise-{name}"
TRY = "# Try\n\n```{starters}\n# %% One\nprint(1)\n# %% Two & a half\nprint(2)\n```\n"


def built(folder: Path, starters: str = TRY) -> tuple[str, str, str]:
    """The pages of a notebook and of starters, and what Sphinx warned of."""
    in_page.exercises.cache_clear()
    pages = {"02_two": json.dumps(ASKED), "tried": starters}
    out, warnings = small_book(folder, extensions=("in_page",), **pages)
    texts = ((out / f"{name}.html") for name in ("notebooks/02_two", "tried"))
    return *(text.read_text(encoding="utf-8") for text in texts), warnings


@pytest.fixture
def some_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "pyodide"
    folder.mkdir()
    (folder / "pyodide.mjs").write_text("export {}\n")
    monkeypatch.setattr(in_page, "FOLDER", folder)
    return folder


@pytest.mark.processes
def test_an_exercise_gets_buttons_and_a_class_says_where_it_runs(
    some_files: Path, tmp_path: Path
) -> None:
    lesson, tried, warnings = built(tmp_path)
    assert warnings == ""
    assert lesson.count("Needs PyTorch") == 1
    assert lesson.count('name="run">Check</button>') == 2  # no id, no exercise
    assert lesson.count("The first click loads Python") == 1
    assert 'data-key="02_two/exercise-b"' in lesson
    assert tried.count("<option>") == 2
    assert "<option>Two &amp; a half</option>" in tried
    assert tried.count('class="starter docutils container"') == 2
    folder = re.search(r'data-python="(python-\w+)"', tried)
    assert folder
    static = tmp_path / "out" / "_static"
    names = {path.name for path in (static / folder[1]).iterdir()}
    assert names == {"pyodide.mjs", "files.js", "normbook.zip"}
    for page in (lesson, tried):
        assert re.search(r'<script defer="defer" src="[./]*_static/in_page.js', page)
    assert "in_page.js" not in (tmp_path / "out" / "index.html").read_text("utf-8")


@pytest.mark.processes
def test_a_book_without_python_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_page, "FOLDER", tmp_path / "nowhere")
    untitled = TRY.replace("# %% One\n", "")
    lesson, tried, warnings = built(tmp_path, f"{TRY}\n{untitled[6:]}")
    assert "each program begins with a line # %% Title" in warnings
    for page, times in ((lesson, 2), (tried, 1)):
        assert page.count("This copy of the book has no Python for its pages") == times
        assert "<button" not in page[page.index("in-page-bar") :][:400]
    assert not list((tmp_path / "out" / "_static").glob("python-*"))


# ---------------------------------------------------------------- in the browser

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
LESSON, TRY_IT = "notebooks/01_one_idea.html", "book/try_it.html"


class Strict(Quiet):
    """A plain server that allows a page its own files, without eval."""

    missing = ""  # a file that is not there

    def send_head(self) -> Any:
        if Strict.missing and Strict.missing in self.path:
            return self.send_error(404)
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """The address of the built book behind that policy."""
    with served(Strict) as address:
        if not list((HTML / "_static").glob("python-*")):
            unavailable("the book was built without Python for its pages")
        yield address


class Reader:
    """A window with a cell that can be run, and what was asked of other hosts."""

    def __init__(self, chromium: Any, address: str, path: str, **window: Any) -> None:
        self.context = chromium.new_context(**{"viewport": DESK, **window})
        self.outside: list[str] = []
        self.told: list[str] = []
        self.address = address
        self.open(path)

    def open(self, path: str) -> None:
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.goto(self.address + path)
        self.cell = self.page.locator(".in-page").first
        self.area = self.cell.get_by_role("textbox")
        self.output = self.cell.locator(".cell_output")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:")):
            self.outside.append(url)

    def press(self, name: str) -> None:
        self.cell.get_by_role("button", name=name, exact=True).click()

    def wait(self) -> str:
        """What the cell shows once it has run."""
        self.cell.locator(".in-page-bar:not(.is-busy)").wait_for(timeout=120_000)
        self.page.wait_for_timeout(50)  # a frame, in which the last is drawn
        return self.output.locator("pre").text_content()

    def run(self, code: str, key: str | None = None) -> str:
        """Run code as if it stood in a cell."""
        if key:
            bar = self.cell.locator(".in-page-bar")
            bar.evaluate("(bar, key) => { bar.dataset.key = key }", key)
        self.area.fill(code)
        self.area.press("Control+Enter")
        return self.wait()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def reader(browser: Any, strict: str) -> Iterator[Reader]:  # noqa: F811
    """One who reads chapter 1 and has started Python."""
    with Reader(browser, strict, LESSON) as reader:
        yield reader


@pytest.mark.browser
def test_a_first_click_loads_python_and_answers(reader: Reader) -> None:
    assert "nothing here yet" in reader.output.inner_text()  # as stored
    workers = len(reader.page.workers)
    reader.press("Check")
    progress = reader.cell.locator(".in-page-progress")
    loading = re.compile(r"Loading Python: [\d.]+ of [\d.]+ MB")
    reader.page.get_by_text(loading).wait_for()
    shown = reader.wait()
    names = ("by-hand", "standardize", "layer-norm-dx")
    assert shown.splitlines() == [f"{name} ✗ {BLANK}" for name in names]
    assert progress.inner_text() == ""
    assert (workers, len(reader.page.workers)) == (0, 1)


@pytest.mark.browser
@pytest.mark.parametrize("key", ANSWERED)
def test_messages_are_those_of_a_notebook(reader: Reader, key: str) -> None:
    code = solution(key) + "\n" + "".join(map(mistaken, ANSWERED[key].checks))
    expected = printed(code, ANSWERED[key].before)
    assert expected.count(" ✗ ") == sum(
        len(EXERCISES[name].mistakes) for name in ANSWERED[key].checks
    )
    assert reader.run(code, key) == expected


ODD = [
    "def f(x, axes, eps):\n    return f(x, axes, eps)\ncheck('standardize', f)",
    "check('standardize', lambda x, axes, eps: x - x.mean(axes))",
    "check('standardize', lambda x, axes, eps: x[0])",
    "def f(x, axes, eps):\n    x -= 1\n    return standardize(x, axes, eps)[0]\n"
    "check('standardize', f)",
    "def f(*_):\n    for n in range(10**6): print(n)\ncheck('standardize', f)",
    "for n in range(10**6): print(n)",
    "1 / 0",
    "def f(:",
    "<b>not bold</b>",
    "print('<b>bold</b>')",
]


@pytest.mark.browser
@pytest.mark.parametrize("code", ODD)
def test_what_an_odd_answer_is_told_is_the_same_too(reader: Reader, code: str) -> None:
    key = "01_one_idea/exercise-by-hand"
    assert reader.run(code, key) == printed(code, ANSWERED[key].before)
    assert reader.output.locator("b").count() == 0


@pytest.mark.browser
def test_a_cell_with_a_result_is_accessible_in_the_dark(reader: Reader) -> None:
    reader.run("def f(x):\n    return 'text', 1.5  # why\nprint(f(1), True)")
    assert reader.output.locator("[role=status]").count() == 1
    reader.page.emulate_media(color_scheme="dark")
    assert axe(reader, ".in-page:has(textarea)") == []
    reader.page.emulate_media(color_scheme="light")


@pytest.mark.browser
def test_keys_indent_undo_leave_and_run(reader: Reader) -> None:
    area, press = reader.area, reader.page.keyboard.press
    area.fill("")
    area.focus()
    reader.page.keyboard.type("def f(x):")
    press("Enter")
    reader.page.keyboard.type("return x")
    press("Tab")
    assert area.input_value() == "def f(x):\n    return x    "
    press("Control+z")
    press("Control+z")
    assert not area.input_value().endswith("    ")
    area.fill("a = 1\n\nb = 2")
    press("Control+a")
    press("Tab")
    assert area.input_value() == "    a = 1\n\n    b = 2"
    press("Shift+Tab")
    assert area.input_value() == "a = 1\n\nb = 2"
    press("Control+z")
    assert area.input_value() == "    a = 1\n\n    b = 2"
    press("Escape")
    press("Tab")
    focused = "document.activeElement.textContent"
    assert reader.page.evaluate(focused) == "Check"
    press("Shift+Tab")
    press("Escape")
    press("Shift+Tab")
    assert reader.page.evaluate("document.activeElement.tagName") != "TEXTAREA"


@pytest.mark.browser
def test_a_loop_is_stopped_and_python_started_anew(reader: Reader) -> None:
    loop = "print('begun')\ndef f(*_):\n    while True: pass\ncheck('by-hand', 1)\n"
    shown = reader.run(f'{loop}check("merge", f)\ncheck("standardize", f)')
    assert shown.startswith("begun\nby-hand ✗")
    assert shown.endswith(f"\nmerge ✗ {LATE_5}\n")
    reader.press("Check")  # starts another Python, for which the next test has no use
    reader.page.get_by_text("Loading Python").wait_for()
    reader.page.close()


@pytest.mark.browser
def test_on_the_second_page_python_is_there_and_each_starter_runs(
    reader: Reader,
) -> None:
    reader.open(TRY_IT)
    reader.page.set_viewport_size(PHONE)
    assert len(STARTERS) == 6
    for title, code in STARTERS:
        reader.cell.get_by_label("Start from").select_option(title)
        assert reader.area.input_value() == code.strip()
        reader.press("Run")
        shown = reader.wait()
        assert shown == printed(code)
        assert 2 <= len(shown.splitlines()) <= 12
    width = reader.page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    (worker,) = reader.page.workers
    loaded = worker.evaluate(
        "() => performance.getEntriesByType('resource').map(e => e.transferSize)"
    )
    assert len(loaded) > 5
    assert sum(loaded) < 20_000  # it asks whether each file has changed


@pytest.mark.browser
def test_nobody_else_was_asked_and_the_policy_held(reader: Reader) -> None:
    assert reader.outside == []
    # The theme's own lines in the page; nothing of ours is among them.
    blocked = [text for text in reader.told if "inline" not in text]
    assert not [text for text in blocked if "Security Policy" in text]


@pytest.mark.browser
def test_what_was_written_is_kept_until_it_is_forgotten(
    browser: Any,  # noqa: F811
    strict: str,
) -> None:
    with Reader(browser, strict, LESSON) as reader:
        starter = reader.area.input_value()
        assert starter == source("01_one_idea", "exercise-by-hand")
        reader.area.fill("by_hand = 1")
        reader.open(LESSON)
        assert reader.area.input_value() == "by_hand = 1"
        assert reader.output.inner_text().strip() == ""  # no verdict on another answer
        reader.press("Start over")
        assert reader.area.input_value() == starter
        reader.area.press("Control+z")
        assert reader.area.input_value() == "by_hand = 1"
        reader.press("Forget all that I wrote")
        assert reader.area.input_value() == starter
        keys = reader.page.evaluate("Object.keys(localStorage)")
        assert not [key for key in keys if "answer" in key]  # the theme's stay
        fold = reader.page.locator(".in-page + .cell details").first
        reader.press("Solution")
        assert fold.get_attribute("open") is not None


# ---------------------------------------------------------------- where it cannot


@pytest.mark.browser
def test_a_file_that_does_not_come_is_named(
    browser: Any,  # noqa: F811
    strict: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Reader(browser, strict, LESSON) as reader:
        for missing in ("in_page_worker.js", "wasm-gzip"):
            monkeypatch.setattr(Strict, "missing", missing)
            reader.press("Check")
            shown = reader.wait()
            assert "Python did not start" in shown
            assert "make lab" in shown
        assert "(pyodide.asm.wasm-gzip: 404)" in shown


@pytest.mark.browser
def test_where_no_python_runs_a_sentence_says_what_to_do(
    browser: Any,  # noqa: F811
    strict: str,
) -> None:
    with Reader(browser, f"{HTML.as_uri()}/", LESSON) as reader:
        assert "make serve" in reader.cell.locator(".in-page-bar").inner_text()
        assert reader.area.count() == 0
    with Reader(browser, strict, "book/notation.html") as reader:
        reader.context.add_init_script("delete window.WebAssembly")
        reader.open(LESSON)
        told = reader.cell.locator(".in-page-bar").inner_text()
        assert "it has no WebAssembly" in told
    with Reader(browser, strict, TRY_IT, java_script_enabled=False) as reader:
        assert reader.page.locator(".starter:visible").count() == len(STARTERS)
        assert reader.page.locator(".in-page button:visible").count() == 0
