"""How long a page takes: counted in its notebook, by one rule.

`{reading-time}` says it at the head of a notebook's page; `{reading-paths}` lists the
pages of book/words/paths.toml with their times, their sum and the rule. A lesson's lab
is listed as soon as it is a page of the book.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from words import FOLDER, nearest, read_file

from normbook.claims import HOLDS

WORDS_A_MINUTE = 200
SECONDS_A_LINE = 5  # of code that is not folded
SECONDS_A_RESULT = 20  # a claim or a figure
MINUTES_AN_EXERCISE = 4
RULE = (
    f"Times are counted: {WORDS_A_MINUTE} words a minute, {SECONDS_A_LINE} seconds a "
    f"line of code that is not folded, {SECONDS_A_RESULT} seconds a claim or figure, "
    f"{MINUTES_AN_EXERCISE} minutes an exercise."
)
UNSEEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}  # tags of a cell
EXERCISE = re.compile(r"^\*\*\d+\.", re.MULTILINE)  # how an exercise's text begins
CHECKED = re.compile(r'\bcheck\("([\w-]+)"')  # an exercise that is graded, by name
PATHS = {"exam": "For an exam", "engineer": "For an engineer"}


class Length(NamedTuple):
    """What a reader of a notebook meets."""

    words: int
    lines: int
    claims: int
    figures: int
    exercises: int

    @property
    def minutes(self) -> int:
        """The time by the rule, to the next 5 minutes, and never none."""
        seconds = SECONDS_A_LINE * self.lines
        seconds += SECONDS_A_RESULT * (self.claims + self.figures)
        minutes = self.words / WORDS_A_MINUTE + seconds / 60
        minutes += MINUTES_AN_EXERCISE * self.exercises
        return max(5, 5 * round(minutes / 5))


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def words(markdown: str) -> int:
    """Count what has a letter or a digit, between spaces."""
    return sum(any(map(str.isalnum, word)) for word in markdown.split())


def lines_of(code: str) -> int:
    """Count the lines that are not blank."""
    return sum(bool(line.strip()) for line in code.splitlines())


def measure(cells: list[Any]) -> Length:
    """Count a notebook's cells, as JSON or as nbformat reads them."""
    texts = [_text(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    printed = [_text(output.get("text", "")).splitlines() for output in outputs]
    checked = set(CHECKED.findall("\n".join(_text(cell["source"]) for cell in code)))
    return Length(
        sum(map(words, texts)),
        sum(
            lines_of(_text(cell["source"]))
            for cell in code
            if not UNSEEN & set(cell["metadata"].get("tags", ()))
        ),
        sum(line.startswith(HOLDS) for lines in printed for line in lines),
        sum(
            any(kind.startswith("image/") for kind in output.get("data", ()))
            for output in outputs
        ),
        max(sum(len(EXERCISE.findall(text)) for text in texts), len(checked)),
    )


def read(notebook: Path) -> tuple[str, Length]:
    """Return a notebook's title and length."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    titles = (
        line.removeprefix("# ")
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in _text(cell["source"]).splitlines()
        if line.startswith("# ")
    )
    return next(titles, notebook.stem), measure(cells)


def duration(minutes: int) -> str:
    """Return "35 minutes", "2 hours", "1 h 10 min"."""
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{rest} minutes"
    if not rest:
        return "1 hour" if hours == 1 else f"{hours} hours"
    return f"{hours} h {rest} min"


def sentence(length: Length) -> str:
    """Say how long a page takes, and what is counted; words to the next hundred."""
    counted = {
        "word": max(100, round(length.words, -2)),
        "line of code": length.lines,
        "claim": length.claims,
        "figure": length.figures,
        "exercise": length.exercises,
    }
    parts = []
    for name, number in counted.items():
        first, _, rest = name.partition(" ")
        plural = f"{first}{'s' * (number != 1)} {rest}".strip()
        parts += [f"{number:,} {plural}"] * bool(number)
    return f"About {duration(length.minutes)}: {', '.join(parts)}."


class ReadingTime(SphinxDirective):
    """How long the page takes that it stands on."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.doc2path(self.env.docname))
        if path.suffix != ".ipynb":
            raise self.error("reading-time belongs on the page of a notebook")
        said = sentence(read(path)[1])
        return [nodes.paragraph(said, said, classes=["reading-time"])]


class ReadingPaths(SphinxDirective):
    """Which pages to read for what, what each is good for, and how long it takes."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FOLDER / "paths.toml"))
        pages = read_file(FOLDER / "paths.toml")
        for page in pages:
            if page not in self.env.found_docs or not self.notebook(page).exists():
                known = [p for p in self.env.found_docs if self.notebook(p).exists()]
                raise self.error(
                    f"{FOLDER.name}/paths.toml: entry {page!r} is no notebook of the "
                    f"book: {nearest(page, known)}"
                )
        shown: list[nodes.Node] = []
        for path, title in PATHS.items():
            shown += self.path(
                title, {p: t[path] for p, t in pages.items() if path in t}
            )
        return [*shown, nodes.paragraph(RULE, RULE, classes=["reading-time"])]

    def notebook(self, page: str) -> Path:
        """Return where a page's notebook would lie."""
        return Path(self.env.srcdir, page).with_suffix(".ipynb")

    def path(self, title: str, ability: dict[str, str]) -> list[nodes.Node]:
        """Return a path: its name and time, and a list of pages."""
        items = nodes.enumerated_list(classes=["reading-path"])
        total = further = 0
        for page, text in ability.items():
            link, minutes = self.link(page)
            total += minutes
            line = nodes.paragraph("", "", nodes.strong("", "", link))
            line += nodes.inline("", f" {duration(minutes)}", classes=["time"])
            if (lab := f"{page}_lab") in self.env.found_docs:
                link, minutes = self.link(lab, "lab")
                further += minutes
                line += [nodes.Text(", "), link]
                line += nodes.inline("", f" {duration(minutes)}", classes=["time"])
            line += [nodes.Text(". "), *self.parse_inline(text, lineno=self.lineno)[0]]
            items += nodes.list_item("", line)
        said = f" About {duration(total)}"
        said += f"; with the labs {duration(total + further)}." if further else "."
        head = nodes.paragraph("", "", nodes.strong(title, f"{title}."))
        head += nodes.inline("", said, classes=["time"])
        return [head, items]

    def link(self, page: str, text: str = "") -> tuple[nodes.reference, int]:
        """Return a link to a page, by its title or a text, and its minutes."""
        notebook = self.notebook(page)
        self.env.note_dependency(str(notebook))
        title, length = read(notebook)
        shown = self.parse_inline(text or title, lineno=self.lineno)[0]
        link = nodes.reference("", "", *shown, internal=True)
        link["refuri"] = self.env.app.builder.get_relative_uri(self.env.docname, page)
        return link, length.minutes


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("reading-time", ReadingTime)
    app.add_directive("reading-paths", ReadingPaths)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
