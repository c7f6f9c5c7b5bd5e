"""The page of claims, links to a claim, and how a claim looks below its cell.

A claim is a line that a cell printed and that begins with "✓ ". `{claims}` lists those
stored in the notebooks, page by page, with a filter; `{first-claim}` shows one; the
role {claim}`statement` links to one, and fails the build when no cell claims it. An
anchor is made from the statement (`normbook.claims.claim_id`). The number that a reader
sees, "2.65", counts a chapter's claims through its lesson and its lab; it is computed
whenever a page is built and stands in no source.
"""

import difflib
import functools
import html
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.logging import getLogger

from normbook.claims import HOLDS, claim_id

logger = getLogger(__name__)


class Chapter(NamedTuple):
    """A notebook's title and its claims: (index of the cell, statement), in order."""

    title: str
    claims: list[tuple[int, str]]


class Place(NamedTuple):
    """Where a claim is made, and the number shown for it: "2.65"."""

    document: str
    number: str


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def collect(notebook: Path) -> Chapter:
    """Read a notebook's title and every claim that its stored outputs hold."""
    return _collect(notebook, notebook.stat().st_mtime_ns)


@functools.cache
def _collect(notebook: Path, changed: int) -> Chapter:
    """Collect once, until the file changes: every link to a claim asks for all."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    headings = (
        line.removeprefix("# ").strip()
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in _text(cell["source"]).splitlines()
        if line.startswith("# ")
    )
    claims = [
        (index, line.removeprefix(HOLDS))
        for index, cell in enumerate(cells)
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
        for line in _text(output["text"]).splitlines()
        if line.startswith(HOLDS)
    ]
    return Chapter(next(headings, notebook.stem), claims)


def chapter_number(document: str) -> str:
    """Return "2" for notebooks/02_batch_norm and for notebooks/02_batch_norm_lab."""
    return Path(document).name.partition("_")[0].lstrip("0")


def is_lab(document: str) -> bool:
    return document.endswith("_lab")


def places(chapters: dict[str, Chapter]) -> dict[str, Place]:
    """Return where each statement is made; a lab's numbers go on from its lesson's."""
    by_statement: dict[str, Place] = {}
    last: dict[str, int] = {}
    for document, chapter in chapters.items():
        of = chapter_number(document)
        for _, statement in chapter.claims:
            last[of] = last.get(of, 0) + 1
            by_statement.setdefault(statement, Place(document, f"{of}.{last[of]}"))
    return by_statement


def find(text: str, statements: Collection[str]) -> str:
    """Return the statement that is text or, where text ends in "…", begins with it.

    Raises LookupError, which names the nearest statement or those that all begin so.
    """
    if text in statements:
        return text
    start = text.removesuffix("…").rstrip()
    if start != text:
        begin = [statement for statement in statements if statement.startswith(start)]
        if len(begin) == 1:
            return begin[0]
        if begin:
            raise LookupError(
                f"{len(begin)} claims begin with {start!r}: {begin}. "
                "Write enough of the statement to tell which."
            )

    def likeness(statement: str) -> float:
        same = statement if start == text else statement[: len(start)]
        return difflib.SequenceMatcher(None, start, same).ratio()

    nearest = max(statements, key=likeness, default="none: no claim is stored")
    raise LookupError(
        f"no cell claims {text!r}. The nearest claim is {nearest!r}: write that one, "
        "or the first words of another, ended by …"
    )


def count(number: int) -> str:
    """Return "1 claim", "7 claims"."""
    return f"{number} claim" if number == 1 else f"{number} claims"


def stored(env: BuildEnvironment) -> dict[str, Chapter]:
    """Every notebook in the table of contents as it stands now, lesson before lab."""
    return {
        document: collect(Path(env.doc2path(document)))
        for document in sorted(env.found_docs)
        if document.startswith("notebooks/")
    }


def link(
    env: BuildEnvironment, place: Place, statement: str, *shown: nodes.Node
) -> nodes.reference:
    """Return a link to a claim from the page that is being read."""
    page = env.app.builder.get_relative_uri(env.docname, place.document)
    uri = f"{page}#{claim_id(statement)}"
    reference = nodes.reference("", "", *shown, internal=True, refuri=uri)
    reference["support_smartquotes"] = False  # a claim is shown as it was printed
    return reference


class ClaimRole(SphinxRole):
    """Link to a claim: {claim}`its statement`, or {claim}`its first words …`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_reread()  # a notebook may have changed since the last build
        by_statement = places(stored(self.env))
        try:
            statement = find(self.text, by_statement)
        except LookupError as error:
            logger.warning("%s", error, location=self.get_location())
            return [nodes.literal(self.text, self.text)], []
        place = by_statement[statement]
        # The words stay together: a line does not end before the number.
        text = nodes.Text(f"claim\N{NO-BREAK SPACE}{place.number}")
        reference = link(self.env, place, statement, text)
        reference["reftitle"] = statement
        return [reference], []


class FirstClaim(SphinxDirective):
    """Show the book's first claim, with a link to it."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        for statement, place in places(stored(self.env)).items():
            reference = link(self.env, place, statement, nodes.Text(statement))
            return [nodes.paragraph("", "", reference, classes=["claim"])]
        return []


class ClaimsList(SphinxDirective):
    """List every claim of every lesson and lab, below a filter."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        chapters = stored(self.env)
        by_statement = places(chapters)
        numbers = {chapter_number(document) for document in chapters}
        text = f"{count(len(by_statement))} in {len(numbers)} chapters."
        return [
            nodes.raw("", form(chapters), format="html"),
            # A live region: the script says here how many claims are left.
            nodes.raw("", f'<p class="total" role="status">{text}</p>', format="html"),
            *(self._section(*item, by_statement) for item in chapters.items()),
        ]

    def _section(
        self, document: str, chapter: Chapter, by_statement: dict[str, Place]
    ) -> nodes.section:
        kind = "lab" if is_lab(document) else "lesson"
        number = chapter_number(document)
        section = nodes.section(
            ids=[f"claims-{Path(document).name}"],
            classes=["claims-of", kind, f"chapter-{number}"],
        )
        title = f"Lab: {chapter.title}" if kind == "lab" else chapter.title
        section += nodes.title(title, title)
        page = self.env.app.builder.get_relative_uri(self.env.docname, document)
        page_kind = "lab" if kind == "lab" else "page"  # some are no lessons
        read = nodes.reference("", f"Read the {page_kind}", internal=True, refuri=page)
        text = nodes.Text(f"{count(len(chapter.claims))}. ")
        section += nodes.paragraph("", "", text, read)
        if chapter.claims:
            rows = nodes.bullet_list(classes=["claims"])
            section += rows
        for _, statement in chapter.claims:
            place = by_statement[statement]
            line = nodes.paragraph()
            line += nodes.inline("", place.number, classes=["number"])
            line += nodes.Text(" ")
            line += link(self.env, place, statement, nodes.Text(statement))
            rows += nodes.list_item("", line)
        return section


def form(chapters: dict[str, Chapter]) -> str:
    """Return the filter, hidden until claims.js finds it: it does nothing alone."""
    names: dict[str, str] = {}
    for document, chapter in chapters.items():
        names.setdefault(chapter_number(document), chapter.title)
    kinds = {"lab": "Labs", "lesson": "Lessons"}
    if not any(map(is_lab, chapters)):
        kinds = {}
    return "\n".join(
        [
            '<form class="claims-filter" hidden>',
            '<p><label for="claims-words">Words of a claim</label>',
            '<input type="search" id="claims-words" autocomplete="off"></p>',
            choice_of("claims-chapter", "Chapter", "all", names),
            choice_of("claims-kind", "Where", "lessons and labs", kinds),
            "</form>",
        ]
    )


def choice_of(name: str, label: str, every: str, options: dict[str, str]) -> str:
    """Return a labelled list to choose from; none where there is nothing to choose."""
    if not options:
        return ""
    rows = "".join(
        f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
        for value, text in {"": every, **options}.items()
    )
    return (
        f'<p><label for="{name}">{label}</label><select id="{name}">{rows}</select></p>'
    )


def add_filter(
    app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None
) -> None:
    """Load the filter's script on the page that has the list, and on no other."""
    sections = doctree.findall(nodes.section) if doctree else ()
    if any("claims-of" in section["classes"] for section in sections):
        app.add_js_file("claims.js", loading_method="defer")


def mark_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Give each claim below a cell its id, its number and a look of its own."""
    chapters = stored(app.env)
    if app.env.docname not in chapters:
        return
    by_statement = places(chapters)
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        for block in list(cell.findall(nodes.literal_block)):
            if "stream" not in block["classes"] or HOLDS not in block.astext():
                continue
            shown: list[nodes.Node] = []
            for line in block.astext().splitlines():
                if line.startswith(HOLDS):
                    statement = line.removeprefix(HOLDS)
                    shown.append(_claim(statement, by_statement[statement].number))
                elif shown and isinstance(shown[-1], nodes.literal_block):
                    text = f"{shown[-1].astext()}\n{line}"
                    shown[-1] = nodes.literal_block(text, text, **block.attributes)
                else:
                    shown.append(nodes.literal_block(line, line, **block.attributes))
            block.parent.replace(block, shown)


def _claim(statement: str, number: str) -> nodes.paragraph:
    """Return a claim as its line looks: the statement, and its number as an anchor."""
    name = claim_id(statement)
    anchor = nodes.reference("", number, internal=True, refuri=f"#{name}")
    anchor["classes"].append("number")
    anchor["reftitle"] = "Link to this claim"
    text = nodes.Text(f"{statement} ")
    line = nodes.paragraph("", "", text, anchor, ids=[name], classes=["claim"])
    line["support_smartquotes"] = False
    return line


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("claims", ClaimsList)
    app.add_directive("first-claim", FirstClaim)
    app.add_role("claim", ClaimRole())
    app.connect("doctree-read", mark_claims)
    app.connect("html-page-context", add_filter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
