"""Repairs to what the theme puts on each page. Nothing here changes the text."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import copied_code
import page_weight
from bs4 import BeautifulSoup
from bs4.element import NavigableString, PageElement, Tag
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)

JAPANESE = r"[\u3005\u3040-\u30ff\u4e00-\u9fff]+"

# ---------------------------------------------------------------- what a page says

# Each takes a page and yields what it mended, so that the build can tell a repair that
# mends nothing any more: the theme has changed, or does better now.
Repair = Callable[[BeautifulSoup], Iterator[Tag]]


def light_without_a_script(page: BeautifulSoup) -> Iterator[Tag]:
    """No colour is defined for the theme "auto"; a script sets the reader's own."""
    for html in page.select('html[data-theme="auto"]'):
        html["data-theme"] = "light"
        yield html


# The theme's own way is to write "auto", draw, and then style every element once more.
SCHEME = """
    const { dataset } = document.documentElement
    const dark = matchMedia("(prefers-color-scheme: dark)").matches
    dataset.mode = localStorage.getItem("mode") || "auto"
    dataset.theme = dataset.mode !== "auto" ? dataset.mode : dark ? "dark" : "light"
  """


def scheme_before_the_text(page: BeautifulSoup) -> Iterator[Tag]:
    """A page is drawn once, in the reader's scheme."""
    for script in page.select("head script:not([src])"):
        if "dataset.theme" in script.get_text():
            script.string = SCHEME
            yield script


def skip_to_the_article(page: BeautifulSoup) -> Iterator[Tag]:
    """The link that skips what stands before the text leads past the buttons too."""
    for main in page.select("main#main-content:has(article.bd-article)"):
        del main["id"]
        article = main.select_one("article.bd-article")
        article["id"], article["tabindex"] = "main-content", "-1"
        yield main


def name_buttons(page: BeautifulSoup) -> Iterator[Tag]:
    """A button's label contains what it shows (WCAG 2.5.3), and says what it does."""
    for button in page.select(".search-button__button[aria-label]"):
        del button["aria-label"]
        yield button
    says = {
        ".btn-download-pdf-button": ("Print", "Print this page"),
        '.btn-download-source-button[href$=".ipynb"]': ("Notebook", "The notebook"),
        '.btn-download-source-button[href$=".md"]': ("Text", "The page's Markdown"),
    }
    for kind, (name, title) in says.items():
        for button in page.select(kind):
            button.select_one(".btn__text-container").string = name
            button["title"] = title
            for icon in button.select(".fa-file-pdf"):
                icon["class"] = ["fas", "fa-print"]
            yield button
    for link in page.select('a.btn-source-issues-button[href*="body="]'):
        address, _, query = str(link["href"]).partition("?")
        title = parse_qs(query)["title"][0].removeprefix("Issue on page /")
        link["href"] = f"{address}?{urlencode({'title': f'{title}: '})}"
        yield link


def tell_icons_alone(page: BeautifulSoup) -> Iterator[Tag]:
    """A button that has words needs no tooltip beside the browser's own.

    The theme makes each while the page loads.
    """
    for button in page.select('[data-bs-toggle="tooltip"]:has(.btn__text-container)'):
        del button["data-bs-toggle"]
        button.attrs.pop("data-bs-placement", None)
        yield button


def name_landmarks(page: BeautifulSoup) -> Iterator[Tag]:
    """What stands outside every landmark, or has no name, a screen reader skips."""
    sidebar = ".sidebar-primary-items__start.sidebar-primary__section:not([role])"
    for box in page.select(sidebar):
        box["role"], box["aria-label"] = "navigation", "Book"
        yield box
    for summary in page.select("a.reference.internal + details > summary"):
        link = summary.parent.find_previous_sibling("a")
        summary["aria-label"] = f"Sections of {link.get_text()}"
        yield summary


def tables_and_lists(page: BeautifulSoup) -> Iterator[Tag]:
    """An empty corner heads nothing; a role that ARIA has given up."""
    for corner in page.select("th"):
        if not corner.get_text(strip=True):
            corner.name = "td"
            corner.clear()
            corner.attrs.clear()
            yield corner
    for entry in page.select('[role="doc-biblioentry"]'):
        entry["role"] = "listitem"  # its parent is a list
        yield entry


def keep_shapes_whole(page: BeautifulSoup) -> Iterator[Tag]:
    """A shape such as (N, C, H, W) in a table's cell stays on one line."""
    for cell in page.select("table.table td:not(.shape)"):
        if re.fullmatch(r"\(\w+(, \w+){1,3}\)", cell.get_text(strip=True)):
            cell["class"] = [*cell.get_attribute_list("class"), "shape"]
            yield cell


def name_folds(page: BeautifulSoup) -> Iterator[Tag]:
    """A fold says what it holds; all were "Toggle hidden content"."""
    for fold in page.select("div.cell > details.hide"):
        cell, summary = fold.parent, fold.summary
        number = cell.select_one("figure .caption-number")
        claims = cell.select("p.claim")
        if fold.select_one(".cell_output"):
            what = "solution"
        elif number:
            what = f"code of figure {number.get_text(strip=True).removeprefix('Fig. ')}"
        elif claims:
            what = f"check of the claim{'s' if len(claims) > 1 else ''} below"
        elif cell.select_one(".cell_output"):
            what = "code of what is below"
        else:
            what = "code that the cells below need"
        del summary["aria-label"]
        for kind, verb in (("collapsed", "Show"), ("expanded", "Hide")):
            summary.select_one(f".{kind}").string = f"{verb} {what}"
        yield fold


def one_of_each_in_head(page: BeautifulSoup) -> Iterator[Tag]:
    """How wide a phone is, is said twice; so is the front page's title."""
    for meta in page.select("meta[name=viewport] ~ meta[name=viewport]"):
        meta.decompose()
        yield meta
    for title in page.select("title"):
        first, dash, second = title.get_text().partition(" \u2014 ")
        if dash and first == second:
            title.string = first
            yield title


def in_japanese(page: BeautifulSoup) -> Iterator[Tag]:
    """Mark Japanese words, so that a reader reads and a browser draws them as such."""
    unread = ["script", "style", "head", "svg"]
    for text in page.find_all(string=re.compile(JAPANESE)):
        if text.find_parent(unread) or text.find_parent(lang="ja"):
            continue
        for part in filter(None, re.split(f"({JAPANESE})", text)):
            new = NavigableString(part)
            if re.match(JAPANESE, part):
                new = page.new_tag("span", lang="ja", string=part)
            text.insert_before(new)
        yield text.parent
        text.extract()


def size_pictures(page: BeautifulSoup, folder: Path) -> Iterator[Tag]:
    """A picture takes its room before it comes, and comes when it is scrolled to.

    The first comes at once, but after what the text needs. On a phone it scrolls inside
    its box where its text would be too small to read.
    """
    pictures = page.select('.bd-article img[src*="_images/"]')
    for number, picture in enumerate(pictures):
        width, height = size(folder / str(picture["src"]))
        picture["width"], picture["height"] = str(width), str(height)
        picture["style"] = f"--width: {width}px"
        picture.attrs |= {"loading": "lazy"} if number else {"fetchpriority": "low"}
        picture.wrap(page.new_tag("span", attrs={"class": "picture"}))
        yield picture


def size(picture: Path) -> tuple[int, int]:
    """Return width and height of a file, in CSS pixels."""
    if picture.suffix != ".svg":
        with Image.open(picture) as image:
            return image.size
    head = picture.read_text(encoding="utf-8")[:2000]
    points = re.search(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', head)
    if not points:
        raise ValueError(f"{picture.name} is no SVG with width and height in points")
    width, height = (round(float(number) * 96 / 72) for number in points.groups())
    return width, height


REPAIRS: tuple[Repair, ...] = (
    light_without_a_script,
    scheme_before_the_text,
    skip_to_the_article,
    name_buttons,
    tell_icons_alone,
    name_landmarks,
    tables_and_lists,
    keep_shapes_whole,
    name_folds,
    one_of_each_in_head,
    in_japanese,
    copied_code.say_what_copied_code_needs,
    page_weight.leave_out_scripts,
    page_weight.let_scripts_wait,
    page_weight.let_logos_wait,
    page_weight.tell_heights,
    page_weight.read_sheet_as_one,
    page_weight.fetch_fonts_with_the_sheet,
)


def repair(page: BeautifulSoup, hits: Counter[str]) -> None:
    """Take the theme's faults from a page; count what each repair mended."""
    with code_as_text(page):
        for mend in REPAIRS:
            hits[mend.__name__] += sum(1 for _ in mend(page))


@contextmanager
def code_as_text(page: BeautifulSoup) -> Iterator[None]:
    """Code without its colours, which are most elements of a page, for a while.

    Every repair looks through all that is there.
    """
    coloured: list[tuple[NavigableString, list[PageElement]]] = []
    for code in page.find_all("pre"):
        text = NavigableString(code.get_text())
        if not re.search(JAPANESE, text):
            parts = [part.extract() for part in list(code.contents)]
            code.append(text)
            coloured.append((text, parts))
    yield
    for text, parts in coloured:
        text.replace_with(*parts)


# ---------------------------------------------------------------- after the build


def finish_page(path: Path) -> tuple[Counter[str], page_weight.Held]:
    """Repair one page; return what each repair mended, and what the page holds."""
    hits: Counter[str] = Counter()
    held = page_weight.Held()
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    held.add_sheets(page)
    repair(page, hits)
    hits["size_pictures"] += sum(1 for _ in size_pictures(page, path.parent))
    held.add_page(page)
    path.write_text(str(page), encoding="utf-8")
    return hits, held


def finish(app: Sphinx, error: Exception | None) -> None:
    """Repair every page, on every core, then see to what pages load."""
    if error or app.builder.format != "html":
        return
    home = Path(app.outdir)
    pages = [
        page for page in home.rglob("*.html") if home / "_static" not in page.parents
    ]
    hits: Counter[str] = Counter()
    held = page_weight.Held()
    with ProcessPoolExecutor() as pool:
        for mended, holds in pool.map(finish_page, pages):
            hits.update(mended)
            held.add(holds)
    for name in (*(mend.__name__ for mend in REPAIRS), "size_pictures"):
        if not hits[name]:
            LOG.warning("repairs: %s mends nothing on any page", name)
    page_weight.finish(home, held)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
