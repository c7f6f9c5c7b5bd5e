"""What a page loads: one style sheet, scripts that wait for the text, small fonts.

The theme's files are made for any page of any book. This book's pages are known once
they are written, so one sheet keeps the rules that can match on some page (a seventh),
and each font the letters that some page holds.
"""

import base64
import io
import posixpath
import re
import shutil
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from logging import WARNING, getLogger
from math import ceil
from pathlib import Path
from zlib import crc32

import tinycss2
from bs4 import BeautifulSoup
from bs4.element import Tag
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from tinycss2.ast import AtRule, HashToken, LiteralToken, Node, QualifiedRule

SHEET = "book-pages.css"
SMALL = ".small.woff2"  # what a font of the letters in use is called
# Files of extensions whose elements no page has; a test looks for the elements.
UNUSED = ("thebe", "togglebutton", "design-tabs", "fontawesome.js")
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")
DROP = (
    "**/*.map",
    "**/*.LICENSE.txt",
    "scripts/fontawesome.js",
    "sphinx-thebe.*",
    "images/logo_deepnote.svg",
    "images/logo_jupyterhub.svg",
    "images/logo_jupyterlite.svg",
    "togglebutton.*",
    "design-tabs.js",
    "copybutton_funcs.js",
    "*webpack-macros.html",
    *(f"{name}.png" for name in ("plus", "minus", "file")),
    *(f"{name}.svg" for name in ("play-solid", "copy-button", "check-solid")),
)


# ---------------------------------------------------------------- what a page asks for


def leave_out_scripts(page: BeautifulSoup) -> Iterator[Tag]:
    """Icons that are a font too (1.5 MB), Thebe's settings, search where none is."""
    unwanted = [*UNUSED]
    if not page.select_one("#search-results"):
        unwanted += SEARCH
    settings = r"\s*(kernelName|const THEBE|(let|var) toggle|DOCUMENTATION_OPTIONS\.)"
    for script in page.select("script"):
        source, text = str(script.get("src", "")), script.get_text()
        if (
            any(name in source for name in unwanted)
            or script.get("type") == "text/x-thebe-config"
            or re.match(settings, text)
        ):
            script.decompose()
            yield script


def let_scripts_wait(page: BeautifulSoup) -> Iterator[Tag]:
    """Scripts run once the text is there; those that waited before, after the others.

    Nor is one fetched before the style sheet because somebody thought it urgent.
    """
    for script in page.select("head script[src][defer]"):
        page.head.append(script)
    for index in page.select('head script[src^="searchindex.js"]'):
        page.head.append(index)  # starts the search that the others have prepared
    for script in page.select("script[src]:not([defer], [type=module])"):
        script["defer"] = "defer"
        yield script
    for link in page.select("link[rel=preload][as=script]"):
        link.decompose()
        yield link


def let_logos_wait(page: BeautifulSoup) -> Iterator[Tag]:
    """A logo in a closed menu is fetched when the menu opens."""
    for logo in page.select(".dropdown-menu img"):
        logo["loading"] = "lazy"
        yield logo


def read_sheet_as_one(page: BeautifulSoup) -> Iterator[Tag]:
    """One style sheet in place of ten."""
    sheets = page.select('link[rel=stylesheet][href*="_static/"]')
    for sheet in sheets[1:]:
        sheet.decompose()
        yield sheet
    for first in sheets[:1]:
        home = str(first["href"]).partition("_static/")[0]
        first["href"] = f"{home}_static/{SHEET}"


# A font that comes after the first text moves it; these a page shows at once.
SERIF, KATEX = "fonts/source-serif-4-latin", "katex/fonts/KaTeX"
EARLY = {
    f"{SERIF}-400-normal": "article",
    f"{SERIF}-600-normal": "article",
    f"{SERIF}-400-italic": "article :is(em, i, figcaption)",
    f"{KATEX}_Main-Regular": "article .katex",
    f"{KATEX}_Math-Italic": "article .katex .mathnormal",
}


def fetch_fonts_with_the_sheet(page: BeautifulSoup) -> Iterator[Tag]:
    """Fonts that the text needs are fetched with the style sheet, not after it."""
    for sheet in page.select(f'link[href$="_static/{SHEET}"]'):
        home = str(sheet["href"]).removesuffix(SHEET)
        for font, needs_it in EARLY.items():
            if page.select_one(needs_it):
                link = page.new_tag("link", rel="preload", href=f"{home}{font}{SMALL}")
                link.attrs |= {"as": "font", "type": "font/woff2", "crossorigin": ""}
                sheet.insert_after(link)
                yield link


# A phone draws a section when it comes near (book.css): at first a tenth of a page.
# Until then it stands as high as it is likely to be, most within 10 % on 390 px. In
# pixels a line of 40 letters, a paragraph, a line of code, a cell, a row, a formula:
LINE, PARAGRAPH, CODE, CELL, ROW, FORMULA = 25, 25, 15, 18, 60, 44
WIDTH, WITH_CAPTION = 358, 1.4
TEXTS = "p:not(li p, td p), li, figcaption, h2, h3, summary, dt, dd:not(:has(p))"


def tell_heights(page: BeautifulSoup) -> Iterator[Tag]:
    """Each section says how high it is about, for as long as it is not drawn.

    Pages with code, which are long; others are drawn at once.
    """
    if not page.select_one(".bd-article div.cell"):
        return
    for section in page.select(".bd-article > section > section"):
        section["style"] = f"--height: {round(height(section))}px"
        yield section


def height(section: Tag) -> float:
    """About how many pixels high a section is on a phone, its folds closed."""

    def shown(selector: str) -> Iterator[Tag]:
        for part in section.select(selector):
            if not part.find_parent("details") or part.name == "summary":
                yield part

    pixels = 0.0
    for text in shown(TEXTS):
        math = text.select(".katex")
        letters = len(text.get_text()) - sum(len(m.get_text()) - 8 for m in math)
        pixels += PARAGRAPH + LINE * ceil(letters / 40)
    for code in shown("pre"):
        pixels += CELL + CODE * len(code.get_text().splitlines())
    for image in shown("img[width][height]"):
        width, high = float(str(image["width"])), float(str(image["height"]))
        pixels += WITH_CAPTION * min(WIDTH, width) * high / width
    rows, formulas = list(shown("tr")), list(shown(".katex-display"))
    return pixels + ROW * len(rows) + FORMULA * len(formulas)


# ---------------------------------------------------------------- what pages hold


@dataclass
class Held:
    """What all pages hold together: names that a rule can match, letters, sheets."""

    names: set[str] = field(default_factory=set)
    letters: set[str] = field(default_factory=lambda: set(string.printable))
    sheets: list[str] = field(default_factory=list)

    def add(self, other: "Held") -> None:
        """Add what is held elsewhere; a new sheet follows the one before it there."""
        self.names |= other.names
        self.letters |= other.letters
        before = -1
        for name in other.sheets:
            if name not in self.sheets:
                self.sheets.insert(before + 1, name)
            before = self.sheets.index(name)

    def add_sheets(self, page: BeautifulSoup) -> None:
        """Add the style sheets of a page as it was built, in their order."""
        links = page.select('link[rel=stylesheet][href*="_static/"]')
        addresses = (str(link["href"]).partition("_static/")[2] for link in links)
        self.add(Held(sheets=[name.partition("?")[0] for name in addresses]))

    def add_page(self, page: BeautifulSoup) -> None:
        """Add the classes, ids and letters of a page as readers get it."""
        for element in page.find_all(True):
            self.names.update(element.get_attribute_list("class") or ())
            self.names.add(str(element.get("id")))
        self.names.update(PROPERTY.findall(str(page)))
        self.letters.update(page.get_text())

    def add_script(self, text: str) -> None:
        """Add every word of a script, which may become a class, and its letters."""
        self.names.update(re.findall(r"[\w-]+", text))
        self.letters.update(text)


# ---------------------------------------------------------------- one style sheet


def named(selector: Iterable[Node]) -> Iterator[str]:
    """The classes and ids that an element must have; not those of :not() and :is()."""
    before = None
    for token in selector:
        is_class = token.type == "ident" and before == "."
        if is_class or isinstance(token, HashToken):
            yield token.value
        before = token.value if isinstance(token, LiteralToken) else None


def selectors(prelude: Iterable[Node]) -> list[list[Node]]:
    """The selectors of a rule, which commas divide."""
    found: list[list[Node]] = [[]]
    for token in prelude:
        if token == ",":
            found.append([])
        else:
            found[-1].append(token)
    return found


def rules(sheet: Path, home: Path) -> Iterator[Node]:
    """The rules of a sheet and of those that it imports; addresses are from `home`."""
    text = re.sub(r"/\*.*?\*/", " ", sheet.read_text(encoding="utf-8"), flags=re.S)
    place = posixpath.relpath(sheet.parent.as_posix(), home.as_posix())

    def from_home(match: re.Match[str]) -> str:
        return f"url({posixpath.normpath(posixpath.join(place, match[1]))})"

    text = re.sub(r"""url\(["']?(?!data:|#)([^"')]+)["']?\)""", from_home, text)
    for rule in tinycss2.parse_stylesheet(text, True, True):
        if isinstance(rule, AtRule) and rule.lower_at_keyword == "import":
            (address,) = (t.value for t in rule.prelude if t.type in ("string", "url"))
            if "string" in {t.type for t in rule.prelude}:
                address = posixpath.join(place, address)
            yield from rules(home / posixpath.normpath(address), home)
        else:
            yield rule


def only_used(found: Iterable[Node], names: set[str]) -> str:
    """Return the rules that can match an element with none but these names."""
    text = []
    for rule in found:
        if isinstance(rule, QualifiedRule):
            left = [s for s in selectors(rule.prelude) if names.issuperset(named(s))]
            if left:
                head = ",".join(tinycss2.serialize(s).strip() for s in left)
                text.append(f"{head}{{{one_line(rule.content)}}}")
        elif not isinstance(rule, AtRule):
            raise ValueError(f"a style sheet has an error: {rule.message}")
        elif rule.lower_at_keyword in ("media", "supports"):
            inner = only_used(tinycss2.parse_rule_list(rule.content, True, True), names)
            if inner:
                head = tinycss2.serialize(rule.prelude).strip()
                text.append(f"@{rule.at_keyword} {head}{{{inner}}}")
        elif rule.lower_at_keyword != "charset":
            text.append(one_line([rule]))
    return "".join(text)


def one_line(tokens: Iterable[Node]) -> str:
    return re.sub(r"\s+", " ", tinycss2.serialize(tokens)).strip()


PROPERTY = re.compile(r"--[a-z][\w-]*")  # a custom one
DECLARED = re.compile(r"""(?<=[{;])\s*(--[\w-]+)\s*:(?:"[^"]*"|[^;{}"])*(?:;|(?=\}))""")


def only_asked_for(sheet: str, names: set[str]) -> str:
    """Return the sheet without the custom properties that nobody asks for.

    Asked for by var() in the sheet, or by one of `names`; a property that only
    properties without use ask for goes with them.
    """
    asked = names.union(re.findall(r"var\(\s*(--[\w-]+)", sheet))
    left = DECLARED.sub(lambda one: one[0] if one[1] in asked else "", sheet)
    if left != sheet:
        return only_asked_for(left, names)
    return re.sub(r"(^|(?<=[{}]))[^{};@]+\{\s*\}", "", sheet)


# ---------------------------------------------------------------- fonts

FACE = re.compile(r"(@font-face ?\{[^}]*?src:\s*)([^;}]+)")


def letters_drawn(sheet: str) -> set[str]:
    """The characters that a style sheet itself puts on a page, icons above all."""
    escaped = re.findall(r"\\([0-9a-f]{4,5})\b", sheet)
    return set(sheet) | {chr(int(code, 16)) for code in escaped}


def small_fonts(sheet: str, home: Path, letters: set[str]) -> str:
    """Write fonts of these letters alone; return the sheet that loads them.

    A font without any of them, and what other formats there were, are not named.
    """
    written: dict[str, str] = {}

    def shrink(match: re.Match[str]) -> str:
        address = re.findall(r"url\(([^)]+)\)", match[2])[0]
        if address not in written:
            written[address] = shrink_font(home / address, letters)
        small = posixpath.join(posixpath.dirname(address), written[address])
        return f'{match[1]}url({small}) format("woff2")'

    return FACE.sub(shrink, sheet)


def shrink_font(font: Path, letters: Iterable[str]) -> str:
    """Write, beside a font, one that has only some letters; returns its file's name.

    A font of icons has them in Unicode's private area, and its other letters are no
    one's: they are drawn by the font of the text.
    """
    small = TTFont(font)
    icons = {letter for letter in letters if "\ue000" <= letter <= "\uf8ff"}
    if icons & set(map(chr, small.getBestCmap())):
        letters = icons
    # The box that stands for a letter that no font has must be seen.
    options = subset.Options(hinting=False, notdef_outline=True)
    maker = subset.Subsetter(options)
    maker.populate(text="".join(sorted(letters)))
    maker.subset(small)
    small.flavor = "woff2"
    name = f"{font.stem}{SMALL}"
    small.save(font.with_name(name))
    return name


# ---------------------------------------------------------------- photographs

PNG = re.compile(r'data:image/png;base64,([^"]+)"')


def repacked(drawing: str) -> str:
    """Return an SVG whose photographs are WebP: the same pixels in two thirds."""

    def webp(match: re.Match[str]) -> str:
        small = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as image:
            image.save(small, "webp", lossless=True, method=6)
        text = base64.b64encode(small.getvalue()).decode()
        return (
            f'data:image/webp;base64,{text}"' if len(text) < len(match[1]) else match[0]
        )

    return PNG.sub(webp, drawing)


# ---------------------------------------------------------------- after the build

# Where the theme looks which boxes scroll, to let the tab key stop there. Asked of one
# in a closed fold, or in a section far below, a browser lays that out: a third of all
# that it does with a page.
ASKED = "e.tabIndex=e.scrollWidth"
DRAWN = f"if(e.checkVisibility({{contentVisibilityAuto:true}})){ASKED}"


def look_at_what_is_drawn(theme: str) -> str:
    """The theme's script, which asks nothing that is not drawn; book.js does in time.

    Raises ValueError where the script does so no more.
    """
    if theme.count(ASKED) != 1:
        raise ValueError(f"the theme's script does not say {ASKED!r} once")
    return theme.replace(ASKED, DRAWN)


def finish(home: Path, held: Held) -> None:
    """Write the sheet and the fonts that pages load, drop what they load no more."""
    getLogger("fontTools").setLevel(WARNING)  # it tells every table
    static = home / "_static"
    theme = static / "scripts" / "pydata-sphinx-theme.js"
    theme.write_text(look_at_what_is_drawn(theme.read_text("utf-8")), encoding="utf-8")
    for path in static.rglob("*.js"):
        if not any(unused in path.name for unused in UNUSED):
            held.add_script(path.read_text(encoding="utf-8"))
    found = [rule for name in held.sheets for rule in rules(static / name, static)]
    sheet = only_asked_for(only_used(found, held.names), held.names)
    sheet = small_fonts(sheet, static, held.letters | letters_drawn(sheet))
    (static / SHEET).write_text(sheet, encoding="utf-8")
    digest = f"{crc32(sheet.encode()):08x}"
    for path in home.rglob("*.html"):
        if static not in path.parents:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(SHEET, f"{SHEET}?v={digest}"), "utf-8")
    loaded = {static / url for url in re.findall(r"url\(([^)]+)\)", sheet)}
    for path in [*static.rglob("*.woff*"), *static.rglob("*.ttf")]:
        if path not in loaded:
            path.unlink()
    for path in (home / "_images").glob("*.svg"):
        path.write_text(repacked(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in [*held.sheets, "basic.css"]:
        (static / name).unlink(missing_ok=True)
    for pattern in DROP:
        for path in static.glob(pattern):
            path.unlink()
    shutil.rmtree(static / "locales", ignore_errors=True)
