"""Repairs to what the theme puts on each page, and what it ships that no page needs.

Nothing here changes the text. Thebe names another host; Font Awesome comes twice, as a
script of 1.5 MB and as fonts of 300 KB, for some twenty icons.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)

FONTS = "vendor/fontawesome/webfonts"
SHEET = "styles/pydata-sphinx-theme.css"
DROP = (
    "**/*.map",
    "**/*.LICENSE.txt",
    "scripts/fontawesome.js",
    "sphinx-thebe.*",
    "images/logo_deepnote.svg",
    "images/logo_jupyterhub.svg",
    "images/logo_jupyterlite.svg",
    "locales/**/*.*",
    "togglebutton.*",
    "design-tabs.js",
    "copybutton_funcs.js",
    "*webpack-macros.html",
    *(f"{name}.png" for name in ("plus", "minus")),
    *(f"{name}.svg" for name in ("play-solid", "copy-button", "check-solid")),
    f"{FONTS}/*",
)
JAPANESE = r"[\u3005\u3040-\u30ff\u4e00-\u9fff]+"
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")
# Files of extensions whose elements no page has; a test looks for the elements.
UNUSED = ("thebe", "togglebutton", "design-tabs")


def only_needed_files(
    app: Sphinx, page: str, template: str, context: Any, t: Any
) -> None:
    """Leave out files that no page needs, and KaTeX's style where there is no math."""
    math = 'class="math' in (context.get("body") or "")

    def needed(file: Any) -> bool:
        name = str(getattr(file, "filename", None) or "")
        text = f"{name} {getattr(file, 'attributes', '')}".lower()
        return not any(unused in text for unused in UNUSED) and (
            math or "katex" not in text
        )

    for key in ("script_files", "css_files"):
        context[key][:] = list(filter(needed, context[key]))


# ---------------------------------------------------------------- what a page says

# Each takes a page and yields what it mended, so that the build can tell a repair that
# mends nothing any more: the theme has changed, or does better now.
Repair = Callable[[BeautifulSoup], Iterator[Tag]]


def leave_out_scripts(page: BeautifulSoup) -> Iterator[Tag]:
    """Icons that are a font too (1.5 MB), Thebe's settings, search where none is."""
    unwanted = ["fontawesome.js"]
    if not page.select_one("#search-results"):
        unwanted += SEARCH
    for script in page.select("script"):
        source, text = str(script.get("src", "")), script.get_text()
        if (
            any(name in source for name in unwanted)
            or script.get("type") == "text/x-thebe-config"
            or re.match(r"\s*(kernelName|(let|var) toggle)", text)
        ):
            script.decompose()
            yield script


def light_without_a_script(page: BeautifulSoup) -> Iterator[Tag]:
    """No colour is defined for the theme "auto"; a script sets the reader's own."""
    for html in page.select('html[data-theme="auto"]'):
        html["data-theme"] = "light"
        yield html


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

    On a phone it scrolls inside its box where its text would be too small to read.
    """
    pictures = page.select('.bd-article img[src*="_images/"]')
    for number, picture in enumerate(pictures):
        width, height = size(folder / str(picture["src"]))
        picture["width"], picture["height"] = str(width), str(height)
        picture["style"] = f"--width: {width}px"
        if number:
            picture["loading"] = "lazy"
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
    leave_out_scripts,
    light_without_a_script,
    skip_to_the_article,
    name_buttons,
    name_landmarks,
    tables_and_lists,
    keep_shapes_whole,
    name_folds,
    one_of_each_in_head,
    in_japanese,
)


def repair(page: BeautifulSoup, hits: Counter[str]) -> None:
    """Take the theme's faults from a page; count what each repair mended."""
    for mend in REPAIRS:
        hits[mend.__name__] += sum(1 for _ in mend(page))


# ---------------------------------------------------------------- files


def icons_named(texts: Iterable[str]) -> set[str]:
    """Return the classes of Font Awesome's icons that pages or scripts name."""
    return {name for text in texts for name in re.findall(r"\bfa-[\w-]+", text)}


def only_used(sheet: str, named: set[str]) -> str:
    """Return the theme's style sheet without other icons, with the small fonts."""

    def rule(match: re.Match[str]) -> str:
        return match[0] if named & icons_named([match[1]]) else ""

    sheet = re.sub(r'((?:\.fa-[\w-]+:before,?)+)\{content:"[^"]*"\}', rule, sheet)
    sheet = re.sub(r"/\*#.*?\*/", "", sheet)  # where the source map was
    other = r"\.woff2\) format\([^)]*\),url\([^)]*\) format\([^)]*\)"
    return re.sub(rf"(/fa-\w+-\d+){other}", r'\1.woff) format("woff")', sheet)


def icons_drawn(sheet: str) -> set[str]:
    """Return the characters of icon fonts (private use) that a style sheet shows."""
    escaped = re.findall(r"\\([ef][0-9a-f]{3})\b", sheet)
    return set(re.findall("[\ue000-\uf8ff]", sheet)) | {
        chr(int(x, 16)) for x in escaped
    }


def shrink_font(font: Path, characters: Iterable[str]) -> None:
    """Write, beside a TrueType font, a WOFF font that has only some characters."""
    small = TTFont(font)
    maker = subset.Subsetter()
    maker.populate(text="".join(characters))
    maker.subset(small)
    small.flavor = "woff"
    small.save(font.with_suffix(".woff"))


def finish(app: Sphinx, error: Exception | None) -> None:
    """Repair every page, then drop what none of them needs."""
    if error or app.builder.format != "html":
        return
    home = Path(app.outdir)
    static = home / "_static"
    pages = [page for page in home.rglob("*.html") if static not in page.parents]
    hits: Counter[str] = Counter()
    texts = []
    for path in pages:
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        repair(page, hits)
        hits["size_pictures"] += sum(1 for _ in size_pictures(page, path.parent))
        texts.append(str(page))
        path.write_text(texts[-1], encoding="utf-8")
    for name in (*(mend.__name__ for mend in REPAIRS), "size_pictures"):
        if not hits[name]:
            LOG.warning("repairs: %s mends nothing on any page", name)
    scripts = [
        path.read_text(encoding="utf-8")
        for path in static.rglob("*.js")
        if path.name != "fontawesome.js"
    ]
    theme = static / SHEET
    named = icons_named([*texts, *scripts])
    theme.write_text(only_used(theme.read_text(encoding="utf-8"), named), "utf-8")
    sheets = [path.read_text(encoding="utf-8") for path in static.rglob("*.css")]
    icons = set().union(*map(icons_drawn, sheets))
    for font in (static / FONTS).glob("*.ttf"):
        shrink_font(font, icons)
    for pattern in DROP:
        for path in static.glob(pattern):
            if path.suffix != ".woff":
                path.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    getLogger("fontTools").setLevel(WARNING)  # it tells every table
    app.connect("html-page-context", only_needed_files, priority=900)
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
