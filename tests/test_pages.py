"""The built pages in a real browser: what a reader's machine asks for, shows, allows.

Skipped without Chromium or without a built book; in continuous integration (CI set)
either is a failure.
"""

import contextlib
import functools
import gzip
import http.server
import json
import math
import os
import posixpath
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from normbook.methods import METHODS

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for page in HTML.rglob("*.html")
    # The one redirects, the other has its own test.
    if "_static" not in page.parts
    and page not in (HTML / "index.html", HTML / "404.html")
) or [None]
# The shell is Chromium without its own windows, and takes two thirds of the time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--font-render-hinting=none",  # as in a window: lines break at the same words
    "--disable-quic",
    "--no-first-run",
    # Chromium's own errands are no request of a page.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def unavailable(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"continuous integration must test the pages, but {what}")
    pytest.skip(what)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(handler: type[Quiet]) -> Iterator[str]:
    """The address of the built book, served from this machine."""
    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    home = functools.partial(handler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), home) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with served(Quiet) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed")
    if not CHROMIUM:
        unavailable("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page opened in a window of its own, and what went wrong meanwhile."""

    def __init__(self, browser: Any, site: str, path: str, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda r: self._asked(r.url, site))
        self.page.on("requestfailed", lambda r: self.faults.append(f"failed: {r.url}"))
        self.page.on("response", self._answered)
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.site = site
        self.scripts = window.get("java_script_enabled", True)
        self.open(path)

    def open(self, path: str) -> None:
        """Open a page in this window: a third of the time that a new window takes."""
        self.outside.clear()
        self.faults.clear()
        self.path = path
        self.page.goto(self.site + path, wait_until="load")
        if self.scripts:
            self.page.wait_for_function("document.fonts.status === 'loaded'")
        # Asked from here: a page without scripts has no frame to wait in.
        while self.page.evaluate("document.fonts.status") != "loaded":
            self.page.wait_for_timeout(20)

    def _asked(self, url: str, site: str) -> None:
        if not url.startswith((site, "data:", "blob:")):
            self.outside.append(url)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def _told(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def visit(browser: Any, site: str) -> Any:
    return functools.partial(Visit, browser, site)


# ---------------------------------------------------------------- every page

# Of axe's rules, those that ask how things are coloured; the others see no scheme.
COLOURED = ["color-contrast", "link-in-text-block"]
# Contrast takes a millisecond a word, and most words are coloured as words before them.
# Takes away what stands in a place that was met, here or on a page before: one with the
# same tags, classes and colours from the body down; a drawing is one place, so is a
# formula of one colour. What has an id stays, empty: the page's scripts look for it.
# Hands on all places met.
CUT_REPEATS = """(known) => {
    const met = new Set(known)
    const place = (e, above) => {
        const classes = e.className.baseVal ?? e.className
        const {color, background, opacity} = e.style
        return `${above} ${e.tagName}.${classes}{${[color, background, opacity]}}`
    }
    const whole = "svg, .katex:not(:has([style*=color]))"
    const inside = (e) => e.matches(whole) ? [] : [...e.children]
    const repeats = (e, above) => {
        const here = place(e, above)
        return met.has(here) && inside(e).every((child) => repeats(child, here))
    }
    const cut = (e, above) => {
        if (repeats(e, above)) return e.id ? e.replaceChildren() : e.remove()
        const here = place(e, above)
        met.add(here)
        for (const child of inside(e)) cut(child, here)
    }
    for (const child of inside(document.body)) cut(child, "")
    return [...met]
}"""


def show_in(page: Any, scheme: str) -> None:
    """Show a page in light or dark, and wait until it does."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(
        "scheme => document.documentElement.dataset.theme === scheme"
        " && document.getAnimations().every(a => a.playState !== 'running')",
        arg=scheme,
    )


def axe(seen: Any, within: str = "html", **options: Any) -> list[str]:
    """What axe finds fault with on the page as it stands: rules and elements."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not seen.page.evaluate("'axe' in window"):
        seen.page.evaluate(AXE_SCRIPT)
    report = seen.page.evaluate(
        "([within, options]) => axe.run(within, options)",
        [within, {**options, "resultTypes": ["violations"]}],
    )
    return [
        f"{rule['id']}: {node['html']}"
        for rule in report["violations"]
        for node in rule["nodes"]
    ]


@pytest.fixture(scope="module")
def known() -> list[str]:
    """The places whose colours were looked at."""
    return []


@pytest.fixture(scope="module")
def desk(visit: Any) -> Iterator[Any]:
    """A window that stays open from page to page."""
    with visit("book/index.html", viewport=DESK, color_scheme="light") as seen:
        yield seen


@pytest.fixture(scope="module", params=PAGES)
def opened(desk: Any, request: Any) -> Any:
    """A page in one window, in which the tests that take it follow each other."""
    desk.page.set_viewport_size(DESK)
    desk.page.emulate_media(color_scheme="light")
    desk.open(request.param)
    return desk


def test_a_page_asks_nobody_else_and_nothing_fails(opened: Any) -> None:
    assert opened.outside == []
    assert opened.faults == []


def test_a_lesson_and_a_lab_have_so_many_screens(opened: Any) -> None:
    most = most_screens(PAGES).get(opened.path, math.inf)
    screens: list[float] = []
    # Fonts that a busy machine brings late are not drawn, and the next time are there.
    while not screens or (screens[-1] > most + 0.5 and len(screens) < 3):
        if screens:
            opened.open(opened.path)
        height = opened.page.evaluate("document.documentElement.scrollHeight")
        screens.append(height / DESK["height"])
    # To the half, since other fonts for Japanese break lines elsewhere.
    assert min(screens) <= most + 0.5


def test_images_have_text_and_links_a_target(opened: Any) -> None:
    bare = "img:not([alt]), .bd-article img[alt='']"
    assert opened.page.locator(bare).count() == 0
    dead = opened.page.evaluate(
        """() => [...document.querySelectorAll('.bd-article a[href^="#"]')]
          .map(a => a.getAttribute('href').slice(1))
          .filter(id => id && !document.getElementById(decodeURIComponent(id)))"""
    )
    assert dead == []


# Most elements are the parts of formulas, which are hidden from who listens, and the
# coloured words of code: only the rules of colours have a word for them, so they stand
# aside meanwhile.
ASIDE = """() => {
    const parts = ".katex-html[aria-hidden=true], .highlight > pre"
    const words = [...document.querySelectorAll(parts)].map((e) => [e, e.innerText])
    window.aside = new Map(words.map(([e]) => [e, [...e.childNodes]]))
    words.forEach(([e, text]) => e.replaceChildren(text))
}"""
BACK = "() => window.aside.forEach((nodes, e) => e.replaceChildren(...nodes))"


def test_a_page_is_accessible(opened: Any) -> None:
    others = {rule: {"enabled": False} for rule in COLOURED}
    opened.page.evaluate(ASIDE)
    assert axe(opened, rules=others) == []
    opened.page.evaluate(BACK)


def test_nothing_scrolls_sideways_on_a_phone(opened: Any) -> None:
    page = opened.page
    told = page.locator("meta[name=viewport]").first.get_attribute("content")
    assert "width=device-width" in told  # or a phone draws 980 px
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
          if (e.getBoundingClientRect().right <= 391) return false;
          for (let box = e; box; box = box.parentElement) {
            if (getComputedStyle(box).overflowX !== 'visible') return false;
          }
          return true;
        }).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []  # neither cut off nor outside a box that scrolls


# The last that takes the window, because it takes words away.
def test_a_page_is_well_coloured(opened: Any, known: list[str]) -> None:
    opened.page.set_viewport_size(DESK)
    known[:] = opened.page.evaluate(CUT_REPEATS, known)
    for scheme in ("light", "dark"):
        show_in(opened.page, scheme)
        assert axe(opened, runOnly=COLOURED) == []


def test_pale_words_are_seen_where_all_else_is_known(visit: Any) -> None:
    path, window = "notebooks/01_one_idea.html", {"viewport": DESK}
    with visit(path, **window, color_scheme="light") as seen:
        known = seen.page.evaluate(CUT_REPEATS, [])
    with visit(path, **window, color_scheme="light") as seen:
        for where in ("section > p", "li p", "figcaption", ".highlight .k:visible"):
            last = seen.page.locator(f".bd-article {where}").last
            last.evaluate("e => e.style.color = '#bbb'")
        seen.page.evaluate(CUT_REPEATS, known)
        found = "\n".join(axe(seen, runOnly=COLOURED))
    for pale in ("<p style=", '<span class="caption-text">', '<span class="k" style='):
        assert pale in found


def test_a_missing_name_of_a_picture_is_seen(visit: Any) -> None:
    with visit("book/notation.html", viewport=DESK) as seen:
        article = seen.page.locator(".bd-article").first
        article.evaluate("e => e.append(document.createElement('img'))")
        assert axe(seen) == ["image-alt: <img>"]


def prose(path: str) -> str:
    """What an author wrote on a page, without code; "" for a generated page."""
    page = (ROOT / path).with_suffix(".md")
    notebook = page.with_suffix(".ipynb")
    text = ""
    if page.exists():
        text = page.read_text(encoding="utf-8")
    elif notebook.exists():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        written = (cell["source"] for cell in cells if cell["cell_type"] == "markdown")
        text = "\n".join("".join(source) for source in written)
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def soup(path: str) -> Any:
    from bs4 import BeautifulSoup

    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    return BeautifulSoup((HTML / path).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module", params=PAGES)
def built(request: Any) -> tuple[str, Any]:
    """A page's path, and the page as it was built: what is there without a script."""
    return request.param, soup(request.param)


def test_math_is_on_the_page_without_a_script(built: tuple[str, Any]) -> None:
    path, page = built
    # Twice a dollar is one formula; $$ opens and closes one as well.
    written = len(re.findall(r"\$\$?", prose(path))) // 2
    assert len(page.select(".bd-article .katex")) >= written
    assert page.select(".katex-error") == []
    unread = {"script", "style", "annotation"}
    dollars = page.body.find_all(string=re.compile(r"\$\$"))
    assert [d for d in dollars if d.parent.name not in unread] == []


def test_no_page_needs_a_script_that_was_left_out(built: tuple[str, Any]) -> None:
    needy = ".toggle, .admonition.dropdown, .sd-tab-set, [class*=thebe]"
    assert built[1].select(needy) == []


def test_only_one_sheet_stands_before_the_text(built: tuple[str, Any]) -> None:
    path, page = built
    assert len(page.head.select("link[rel=stylesheet]")) == 1
    assert page.head.select("script[src]:not([defer], [type=module])") == []
    for link in page.head.select("link[rel=preload]"):
        assert (HTML / path).parent.joinpath(link["href"]).exists()


@pytest.fixture(scope="module")
def linked() -> dict[str, list[tuple[str, str]]]:
    """By page, the ids to which the page of claims leads, and their statements."""
    there: dict[str, list[tuple[str, str]]] = {}
    for link in soup("book/claims.html").select("ul.claims a"):
        address, line = link["href"].split("#")
        path = posixpath.normpath(f"book/{address}")
        there.setdefault(path, []).append((line, link.get_text()))
    return there


def test_every_claim_leads_to_its_own_line(
    built: tuple[str, Any], linked: dict[str, list[tuple[str, str]]]
) -> None:
    path, page = built
    lines = page.select("p.claim[id]")
    said = [(line["id"], str(next(line.strings)).strip()) for line in lines]
    assert said == linked.get(path, [])


def test_the_page_of_claims_leads_to_many(
    linked: dict[str, list[tuple[str, str]]],
) -> None:
    assert sum(map(len, linked.values())) > 100
    assert linked.keys() <= set(PAGES)


def test_a_linked_claim_is_ringed_and_in_view_with_its_code(visit: Any) -> None:
    for window in (DESK, PHONE):
        with visit("book/audit.html", viewport=window) as seen:
            seen.page.locator(".bd-article td a[href*='#claim-']").first.click()
            seen.page.wait_for_load_state()
            line = seen.page.locator("p.claim:target")
            box = line.bounding_box()
            # Below the middle of the window there is nothing of the code to see.
            assert 0.3 < box["y"] / window["height"] < 0.6
            assert line.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
            assert seen.page.locator("p.claim").count() > 1


def test_claims_can_be_filtered_by_keyboard(visit: Any) -> None:
    with visit("book/claims.html", viewport=DESK) as seen:
        page = seen.page
        every = page.locator("ul.claims li").count()
        total = page.get_by_role("status")
        numbers = {Path(lesson).name[:2] for lesson in LESSONS}
        in_all = f"{every} claims in {len(numbers)} chapters."
        assert total.inner_text() == in_all
        page.get_by_label("Words of a claim").focus()
        page.keyboard.type("GRADIENT layer")
        left = page.locator("ul.claims li:visible")
        words = [text.lower() for text in left.all_inner_texts()]
        assert 0 < len(words) < every
        assert all("gradient" in text and "layer" in text for text in words)
        assert total.inner_text() == f"{len(words)} of {in_all}"
        page.keyboard.press("Tab")  # to the chapters
        page.keyboard.type("Batch norm")
        numbers = page.locator("ul.claims .number:visible").all_inner_texts()
        assert 0 < len(numbers) < len(words)
        assert all(number.startswith("2.") for number in numbers)
        # Nothing is left of another chapter, nor a line that leads there.
        left_over = page.locator("section.claims-of:visible")
        others = page.locator("section.claims-of:not(.chapter-2):visible")
        assert (left_over.count() > 0, others.count()) == (True, 0)
        assert page.locator(".page-toc a:visible").count() == left_over.count()
        assert seen.faults == []
        assert axe(seen) == []
        page.keyboard.press("Home")  # letters would go on with those typed before
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        assert left.count() == every
        page.keyboard.press("Enter")  # sends nothing anywhere
        assert page.url.endswith("claims.html")


def test_the_claims_page_is_whole_without_a_script(visit: Any) -> None:
    with visit("book/claims.html", viewport=DESK, java_script_enabled=False) as seen:
        rows = seen.page.locator("ul.claims li")
        assert seen.page.locator("ul.claims li:visible").count() == rows.count() > 100
        assert not seen.page.locator("form.claims-filter").is_visible()


def test_the_filter_is_loaded_on_its_page_alone() -> None:
    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    loading = [
        page for page in PAGES if "claims.js" in (HTML / page).read_text("utf-8")
    ]
    assert loading == ["book/claims.html"]


def test_lessons_and_labs_can_be_chosen(browser: Any, tmp_path: Path) -> None:
    from test_book import LAB, NONE, TWO, small_book

    pages = {"02_two": TWO, "02_two_lab": LAB, "03_three": NONE}
    out, _ = small_book(tmp_path, **pages, claims="# Claims\n\n```{claims}\n```\n")
    script = ROOT / "book" / "_static" / "claims.js"
    shutil.copy(script, out / "_static")
    page = browser.new_page()
    page.goto((out / "claims.html").as_uri())  # from a disk, as `make book` says
    shown = page.locator("section.claims-of:visible")
    assert shown.count() == 3
    page.get_by_label("Where").select_option("Labs")
    assert shown.locator("h2").all_inner_texts() == ["Lab: Does it last?"]
    assert page.get_by_role("status").inner_text() == "1 of 4 claims in 2 chapters."
    page.get_by_label("Where").select_option("Lessons")
    assert shown.locator("li").count() == 3
    page.get_by_label("Chapter").select_option("Chapter three")
    assert shown.count() == 0
    page.close()


def test_the_book_can_be_used_by_keyboard(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK) as seen:
        focused = "document.activeElement"
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate(f"{focused}.getAttribute('href')") == "#main-content"
        reached = set()
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            reached.add(seen.page.evaluate(f"{focused}.id"))
        assert "sets-bn" in reached  # one stop for the group; arrows go on
        seen.page.locator("#sets-bn").focus()
        said = set()
        for method in ("ln", "in", "gn", "rmsnorm"):
            seen.page.keyboard.press("ArrowRight")
            assert seen.page.evaluate(f"{focused}.id") == f"sets-{method}"
            said.add(seen.page.locator(".say:visible").inner_text())
        assert len(said) == 4
        seen.page.keyboard.press("ArrowLeft")
        for groups in (1, 2, 3, 6):
            seen.page.locator(f"#sets-g{groups}").focus()
            seen.page.keyboard.press("Space")
            assert seen.page.locator(f".say.is-g{groups}").is_visible()


def test_the_picture_shows_the_chosen_set_without_a_script(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK, java_script_enabled=False) as seen:
        color = "e => getComputedStyle(e).fill"
        cell = seen.page.locator(".large polygon.is-in:not(.is-ln)")
        assert cell.count() == 0  # an instance's set is part of the layer's
        cell = seen.page.locator(".large polygon.is-ln:not(.is-bn)").first
        before = cell.evaluate(color)
        seen.page.locator("label.choice.ln").click()
        seen.page.wait_for_timeout(400)
        assert cell.evaluate(color) != before


def most_screens(pages: list[str]) -> dict[str, int]:
    """How long each page of a chapter with a lab may be."""
    of_chapters = {page[:12] for page in pages if page.endswith("_lab.html")}
    limits = {page: 24 for page in pages if page[:12] in of_chapters}
    for page in pages:
        lab = page.replace(".html", "_lab.html")
        if lab in pages:
            short = page.startswith(("notebooks/01", "notebooks/04"))
            limits[page] = 14 if short else 18
    return limits


def test_how_long_a_lesson_a_lab_and_a_reference_page_may_be() -> None:
    of_1, of_2 = "notebooks/01_one_idea", "notebooks/02_batch_norm"
    pages = [f"{page}.html" for page in (of_1, of_2, f"{of_1}_lab")]
    assert most_screens(pages) == {pages[0]: 14, pages[2]: 24}
    pages += [f"{of_2}_lab.html", "notebooks/02_why.html"]
    limits = most_screens(pages)
    assert [limits[page] for page in pages] == [14, 18, 24, 24, 24]


def test_the_front_page_is_four_screens_to_how_to_run(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK) as seen:
        place = seen.page.locator("#how-to-run").bounding_box()
        assert 2 < place["y"] / DESK["height"] <= 4


@pytest.mark.parametrize("paper", ["A4", "Letter"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_cheat_sheet_prints_on_one_sheet(
    visit: Any, paper: str, scheme: str
) -> None:
    def pages(seen: Any) -> int:
        printed = seen.page.pdf(format=paper)
        return len(re.findall(rb"/Type\s*/Page\b(?!s)", printed))

    with visit("book/cheatsheet.html", viewport=DESK, color_scheme=scheme) as seen:
        assert seen.page.locator(".card-of-method").count() == len(METHODS)
        assert pages(seen) == 1
        # Nothing was cut off: what is twice as long takes a second sheet.
        seen.page.evaluate(
            "document.querySelectorAll('.card-of-method').forEach("
            "card => card.append(card.cloneNode(true)))"
        )
        assert pages(seen) == 2


# ---------------------------------------------------------------- weight

LESSONS = [page for page in PAGES if page and re.match(r"notebooks/(?!.*_lab)", page)]
# As a reader scrolls: what comes near is drawn before it is there.
SCROLL = """async () => {
    const frame = () => new Promise(requestAnimationFrame)
    while (scrollY + innerHeight < document.documentElement.scrollHeight - 1) {
        scrollBy({ top: innerHeight * 0.8, behavior: "instant" })
        await frame()
        await frame()
    }
    const late = (e) => e.checkVisibility() && !e.complete
    const waits = () => [...document.images].some(late)
    for (let frames = 0; waits() && frames < 200; frames++) await frame()
    await frame()
    await frame()
}"""
SHIFTS = """() => {
    window.shift = 0
    const add = (list) => list.getEntries().forEach((e) => { window.shift += e.value })
    new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true })
}"""


def on_the_wire(path: Path) -> int:
    """The bytes of a file as a host sends them: text compressed, the rest as it is."""
    content = path.read_bytes()
    packed = path.suffix in (".png", ".woff2")
    return len(content if packed else gzip.compress(content))


class Slow(Quiet):
    """A line on which what is below a picture must not wait for it."""

    def do_GET(self) -> None:
        if self.path.endswith(".svg"):
            time.sleep(0.1)
        super().do_GET()


@pytest.fixture(scope="module")
def phone(browser: Any) -> Iterator[Any]:
    """A phone's window, whose pages say how far things moved under the reader."""
    with (
        served(Slow) as slow,
        Visit(browser, slow, "book/index.html", viewport=PHONE) as seen,
    ):
        seen.page.add_init_script(f"({SHIFTS})()")
        yield seen


@pytest.mark.parametrize("path", ["book/index.html", *LESSONS])
def test_a_lesson_is_light_and_stands_still(phone: Any, path: str) -> None:
    asked: set[str] = set()
    note = lambda request: asked.add(request.url.partition("?")[0])  # noqa: E731
    phone.page.on("request", note)
    phone.open(path)
    phone.page.remove_listener("request", note)
    files = {HTML / url.removeprefix(phone.site) for url in asked}
    assert len(files) > 10
    assert sum(map(on_the_wire, files)) < 300_000
    guessed = phone.page.evaluate("document.documentElement.scrollHeight")
    # Fonts that a busy machine brings late move text once; a fault moves it each time.
    shifts = []
    while not shifts or (shifts[-1] >= 0.02 and len(shifts) < 3):
        if shifts:
            phone.open(path)
        phone.page.evaluate(SCROLL)
        shifts.append(phone.page.evaluate("window.shift"))
    assert min(shifts) < 0.02
    phone.page.add_style_tag(
        content="section { content-visibility: visible !important }"
    )
    whole = phone.page.evaluate("document.documentElement.scrollHeight")
    assert guessed == pytest.approx(whole, rel=0.1)


def test_a_phone_draws_what_is_near_and_can_scroll_what_it_drew(visit: Any) -> None:
    with visit("notebooks/02_batch_norm.html", viewport=PHONE, is_mobile=True) as seen:
        drawn = (
            "e => e.firstElementChild.checkVisibility({contentVisibilityAuto: true})"
        )
        sections = seen.page.locator(".bd-article > section > section")
        before = [one.evaluate(drawn) for one in sections.all()]
        assert (any(before), all(before)) == (True, False)
        last = sections.filter(has=seen.page.locator("details.hide pre")).last
        last.scroll_into_view_if_needed()
        fold = last.locator("details.hide", has=seen.page.locator("pre")).first
        code = fold.locator("pre").first
        code.evaluate("e => e.tabIndex = 7")  # what nobody has looked at
        fold.locator("summary").first.click()
        seen.page.wait_for_function("e => e.tabIndex !== 7", arg=code.element_handle())
        wide = "e => e.scrollWidth > e.clientWidth ? 0 : -1"
        assert code.evaluate("e => e.tabIndex") == code.evaluate(wide)


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_list_is_laid_out_when_it_is_opened(visit: Any, side: str) -> None:
    with visit("notebooks/02_batch_norm.html", viewport=PHONE) as seen:
        entry = seen.page.locator(f".bd-sidebar-{side} a.reference").first
        drawn = "e => e.getClientRects().length > 0"
        assert not entry.evaluate(drawn)
        seen.page.locator(f"button.{side}-toggle").first.click()
        entry.wait_for()
        seen.page.keyboard.press("Escape")
        entry.wait_for(state="hidden")
        assert not entry.evaluate(drawn)
        seen.page.set_viewport_size(DESK)
        entry.wait_for()


def test_a_wrong_address_gets_a_page_that_leads_on(visit: Any) -> None:
    with visit("book/index.html", viewport=PHONE) as seen:
        home = "/normbook/"

        def at_home(route: Any) -> None:
            route.continue_(url=route.request.url.replace(home, "/"))

        seen.page.route(f"**{home}**", at_home)
        seen.open("404.html")
        assert (
            seen.page.locator(".bd-article h1").inner_text() == "This page is not here"
        )
        assert seen.faults == []
        assert axe(seen) == []
        for link in seen.page.locator(".bd-article a, .bd-sidebar-primary a").all():
            address = str(link.get_attribute("href"))
            if address.startswith(home):
                assert (HTML / address.removeprefix(home).partition("#")[0]).exists()
        seen.page.locator(".bd-article a", has_text="first page").click()
        seen.page.wait_for_url("**/book/index.html")


def test_what_is_copied_says_what_it_needs(visit: Any) -> None:
    window = {"viewport": DESK, "permissions": ["clipboard-read", "clipboard-write"]}
    with visit("notebooks/02_batch_norm.html", **window) as seen:
        note = seen.page.locator(".needs", has_text="# Needs")
        cell = seen.page.locator(".cell_input:visible", has=note)
        shown = cell.first.locator("pre").inner_text()
        cell.first.hover()
        cell.first.locator("button.copybtn").click()
        seen.page.locator(".copybtn.success").first.wait_for()
        copied = seen.page.evaluate("navigator.clipboard.readText()")
        before, _, code = copied.partition(shown.splitlines()[0])
        assert "import torch" in before
        assert "# Needs from the cells above: " in before
        assert "# Needs" not in shown
        assert code in shown


def test_the_button_of_the_colours_tells_which_are_shown(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK, color_scheme="light") as seen:
        button = seen.page.locator(".theme-switch-button:visible")
        said = []
        for _ in range(4):
            said.append(button.get_attribute("aria-label"))
            button.click()
        modes = [name.removeprefix("Color mode: ") for name in said]
        assert sorted(modes[:3]) == ["auto", "dark", "light"]
        assert modes[3] == modes[0] == "auto"
        # What was chosen is there before anything is drawn.
        seen.page.reload()
        mode = seen.page.evaluate("document.documentElement.dataset.mode")
        assert mode == modes[1]


def test_search_finds_a_word(visit: Any) -> None:
    with visit("search.html?q=notation", viewport=DESK) as seen:
        seen.page.wait_for_selector("#search-results li a")
        titles = seen.page.locator("#search-results li a").all_inner_texts()
        assert any("Notation" in title for title in titles)
        assert seen.faults == []


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("batch norm", "02_batch_norm"),
        ("layer norm", "03_layer_norm"),
        ("instance norm", "04_instance_norm"),
        ("group norm", "05_group_norm"),
    ],
)
def test_a_methods_own_chapter_is_found_first(
    visit: Any, asked: str, first: str
) -> None:
    with visit(f"search.html?q={asked}", viewport=DESK) as seen:
        results = seen.page.locator("#search-results li")
        results.nth(3).locator("p.context").wait_for()
        link = results.first.locator("a")
        assert f"notebooks/{first}.html" in link.get_attribute("href")
        for excerpt in seen.page.locator("p.context").all_inner_texts():
            assert "Repository" not in excerpt  # a button's name


def test_a_result_leads_to_the_section_and_marks_its_words(visit: Any) -> None:
    with visit("search.html?q=running variance", viewport=DESK) as seen:
        lesson = "#search-results a[href*='02_batch_norm.html#']"
        seen.page.locator(lesson).first.wait_for()
        seen.page.wait_for_load_state("networkidle")  # excerpts come page by page
        seen.page.locator(lesson).first.click()
        seen.page.wait_for_selector("span.highlighted")
        seen.page.wait_for_timeout(200)
        section = seen.page.locator("section:target")
        assert 0 <= section.bounding_box()["y"] < DESK["height"] / 2
        marked = seen.page.locator("span.highlighted").count()
        assert 0 < marked == section.locator("span.highlighted").count()
        assert seen.faults == []


def test_what_is_typed_stands_clear_of_the_magnifier(visit: Any) -> None:
    with visit("search.html?q=eps", viewport=PHONE) as seen:
        field = seen.page.locator("main .bd-search")
        icon = field.locator("i").bounding_box()
        box = field.locator("input").bounding_box()
        padding = "e => parseFloat(getComputedStyle(e).paddingLeft)"
        text = box["x"] + field.locator("input").evaluate(padding)
        assert text >= icon["x"] + icon["width"]


def test_every_stop_of_the_tab_key_is_seen(visit: Any) -> None:
    with visit("notebooks/02_batch_norm.html", viewport=DESK) as seen:
        unseen = set()
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            unseen.add(
                seen.page.evaluate(
                    """() => {
                      const e = document.activeElement, look = getComputedStyle(e)
                      const ring = look.outlineStyle !== "none" ||
                        look.boxShadow !== "none"
                      return ring ? "" : e.outerHTML.slice(0, 90)
                    }"""
                )
            )
        assert unseen == {""}


def test_the_skip_link_leads_past_the_buttons(visit: Any) -> None:
    with visit("notebooks/02_batch_norm.html", viewport=DESK) as seen:
        for key in ("Tab", "Enter", "Tab"):
            seen.page.keyboard.press(key)
        inside = "document.activeElement.closest('article.bd-article') !== null"
        assert seen.page.evaluate(inside)


def test_the_list_of_sections_follows_the_reader(visit: Any) -> None:
    window = {"width": 1280, "height": 500}
    with visit("notebooks/05_group_norm_lab.html", viewport=window) as seen:
        seen.page.locator("section section").last.scroll_into_view_if_needed()
        active = seen.page.locator("#pst-secondary-sidebar .nav-link.active").last
        seen.page.wait_for_function(
            """() => {
              const all = document.querySelectorAll(
                "#pst-secondary-sidebar .nav-link.active")
              const box = [...all].pop()?.getBoundingClientRect()
              return box && box.top >= 0 && box.bottom <= innerHeight
            }"""
        )
        assert active.is_visible()


def test_a_phone_can_read_the_letters_of_a_figure(visit: Any) -> None:
    with visit("notebooks/02_batch_norm.html", viewport=PHONE, is_mobile=True) as seen:
        shares = seen.page.locator(".picture img[src$='.svg']").evaluate_all(
            "all => all.map(e => e.clientWidth / Number(e.getAttribute('width')))"
        )
        # The smallest letters have 9 pt, which are 12 px.
        assert len(shares) >= 4
        assert min(shares) * 12 >= 8.9


def test_paper_has_the_answers_and_no_labels_of_folds(visit: Any) -> None:
    with visit("notebooks/07_fast.html", viewport=DESK) as seen:
        answers = seen.page.locator("details.sd-dropdown")
        assert answers.count() > 0
        seen.page.emulate_media(media="print")
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert all(
            answers.nth(i).evaluate("e => e.open") for i in range(answers.count())
        )
        assert seen.page.locator("details.hide > summary:visible").count() == 0
        assert seen.page.locator("details.hide .cell_input:visible").count() > 0
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not answers.first.evaluate("e => e.open")


def test_without_a_script_a_page_has_the_colours_of_light(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK, java_script_enabled=False) as seen:
        ground = "getComputedStyle(document.body).getPropertyValue('--paper').trim()"
        assert seen.page.evaluate(ground) == "#fdfcf9"
