"""The page of claims, and how a claim looks below its cell.

A claim is a line that a cell printed and that begins with "✓ ". `{claims}` lists those
stored in the notebooks, chapter by chapter, each with a link to its cell;
`{first-claim}` shows one.
"""

import json
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

MARK = "✓ "


class Chapter(NamedTuple):
    """A notebook's title and its claims: (index of the cell, statement), in order."""

    title: str
    claims: list[tuple[int, str]]


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def collect(notebook: Path) -> Chapter:
    """Read a notebook's title and every claim that its stored outputs hold."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    headings = (
        line.removeprefix("# ").strip()
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in _text(cell["source"]).splitlines()
        if line.startswith("# ")
    )
    claims = [
        (index, line.removeprefix(MARK))
        for index, cell in enumerate(cells)
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
        for line in _text(output["text"]).splitlines()
        if line.startswith(MARK)
    ]
    return Chapter(next(headings, notebook.stem), claims)


def claim_id(document: str, number: int) -> str:
    """Return the id of a chapter's n-th claim: claim-02-7 for 02_batch_norm."""
    return f"claim-{Path(document).name.split('_')[0]}-{number}"


def count(number: int) -> str:
    """Return "1 claim", "7 claims"."""
    return f"{number} claim" if number == 1 else f"{number} claims"


class _Claims(SphinxDirective):
    def chapters(self) -> dict[str, Chapter]:
        """Every chapter in the table of contents, as its notebook stands now."""
        self.env.note_reread()  # a notebook may have changed since the last build
        return {
            document: collect(Path(self.env.doc2path(document)))
            for document in sorted(self.env.found_docs)
            if document.startswith("notebooks/")
        }

    def link(self, text: str, document: str, place: str = "") -> nodes.reference:
        page = self.env.app.builder.get_relative_uri(self.env.docname, document)
        link = nodes.reference("", text, internal=True, refuri=page + place)
        link["support_smartquotes"] = False  # a claim is shown as it was printed
        return link


class FirstClaim(_Claims):
    """Show the book's first claim, with a link to its cell."""

    def run(self) -> list[nodes.Node]:
        for document, chapter in self.chapters().items():
            for _, statement in chapter.claims[:1]:
                link = self.link(statement, document, f"#{claim_id(document, 1)}")
                return [nodes.paragraph("", "", link, classes=["claim"])]
        return []


class ClaimsList(_Claims):
    """List every claim of every chapter."""

    def run(self) -> list[nodes.Node]:
        chapters = self.chapters()
        total = sum(len(chapter.claims) for chapter in chapters.values())
        text = f"{count(total)} in {len(chapters)} chapters."
        return [
            nodes.paragraph(text, text, classes=["total"]),
            *(self._section(*item) for item in chapters.items()),
        ]

    def _section(self, document: str, chapter: Chapter) -> nodes.section:
        section = nodes.section(ids=[f"claims-{Path(document).name}"])
        section += nodes.title(chapter.title, chapter.title)
        text = nodes.Text(f"{count(len(chapter.claims))}. ")
        link = self.link("Read the chapter", document)
        section += nodes.paragraph("", "", text, link)
        if chapter.claims:
            rows = nodes.enumerated_list(classes=["claims"])
            section += rows
        for number, (_, statement) in enumerate(chapter.claims, 1):
            link = self.link(statement, document, f"#{claim_id(document, number)}")
            rows += nodes.list_item("", nodes.paragraph("", "", link))
        return section


def mark_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Give each cell with claims their ids, and each claim a look of its own."""
    number = 0
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        for block in list(cell.findall(nodes.literal_block)):
            if "stream" not in block["classes"] or MARK not in block.astext():
                continue
            shown: list[nodes.Node] = []
            for line in block.astext().splitlines():
                if line.startswith(MARK):
                    number += 1
                    cell["ids"].append(claim_id(app.env.docname, number))
                    line = line.removeprefix(MARK)
                    shown.append(nodes.paragraph(line, line, classes=["claim"]))
                    shown[-1]["support_smartquotes"] = False
                elif shown and isinstance(shown[-1], nodes.literal_block):
                    text = f"{shown[-1].astext()}\n{line}"
                    shown[-1] = nodes.literal_block(text, text, **block.attributes)
                else:
                    shown.append(nodes.literal_block(line, line, **block.attributes))
            block.parent.replace(block, shown)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("claims", ClaimsList)
    app.add_directive("first-claim", FirstClaim)
    app.connect("doctree-read", mark_claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
