"""The practice page in a browser: answers, score, runs, both languages, paper."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

import practice
import practice_data
from test_book import LAB, notebook, small_book
from test_pages import (  # noqa: F401
    COLOURED,
    DESK,
    HTML,
    PAGES,
    PHONE,
    ROOT,
    axe,
    browser,
    desk,
    site,
    unavailable,
    visit,
)

PAGE = "book/practice.html"
QUESTIONS = practice_data.load()
SCRIPT = ROOT / "book" / "_static" / "practice.js"

# ---------------------------------------------------------------- the build

ONE = """
[[question]]
id = "the-only-one"
chapter = 2
level = 1
kind = "blanks"
en = "What stands in ( ア ), and is $m$ `C`?"
ja = "( ア ) に当てはまるものはどれか。"
code = "mean = x.mean(( ア ))"
given = "x = np.ones((2, 3))"
result = "mean"
computed = "np.ones(3)"
taught = "notebooks/02_two"
"""
CHOICE = '[[question.choice]]\nfill = ["{}"]\nwhy_en = "Why."\nwhy_ja = "理由。"\n'
CHOICES = [CHOICE.format(fill) for fill in ("0", "1", "(0, 1)", "-1")]
LESSON = notebook("# Chapter *two*", ("a = 1", "nothing\n"))


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Build a page of one question; returns it and what Sphinx warned of."""
    file = tmp_path / "words" / "practice.toml"
    file.parent.mkdir()
    text = ONE + CHOICES[0].replace("\nwhy", "\nright = true\nwhy", 1)
    file.write_text(text + "".join(CHOICES[1:]), encoding="utf-8")
    schema = practice_data.FILE.with_suffix(".schema.json")
    (file.parent / schema.name).write_bytes(schema.read_bytes())
    monkeypatch.setattr(practice, "FILE", file)

    def run(**pages: str) -> tuple[str, str]:
        asked = "# Practice\n\n{ref}`questions <practice-chapter-2>`\n\n"
        pages["asked"] = f"{asked}```{{practice}}\n```\n"
        out, warnings = small_book(tmp_path, extensions=("practice",), **pages)
        return (out / "asked.html").read_text(encoding="utf-8"), warnings

    return run


@pytest.mark.processes
def test_a_question_is_an_article_with_a_group_of_choices(build: Any) -> None:
    html, warnings = build(**{"02_two": LESSON, "02_two_lab": LAB})
    assert warnings == ""
    assert '<section class="practice-of" id="practice-chapter-2">' in html
    assert "<h2>Chapter <em>two</em>" in html
    assert 'href="#practice-chapter-2">' in html
    assert re.search(
        r'<article .*?class="question" .*?id="practice-the-only-one"', html
    )
    assert html.count('type="radio" name="the-only-one"') == 4
    assert html.count('class="reason') == 4
    assert html.count('class="reason is-right"') == 1
    assert "A is right." in html
    assert "What stands in (\xa0ア\xa0)" in html  # on one line
    assert '<span class="katex">' in html
    assert '<a class="reference internal" href="notebooks/02_two.html">Chapter' in html
    assert "practice.js" in html


@pytest.mark.processes
def test_a_chapter_that_the_book_lacks_fails_the_build(build: Any) -> None:
    _, warnings = build(**{"03_three": LESSON})
    assert "practice: notebooks/ has no chapter 2" in warnings


def test_the_script_is_small() -> None:
    assert SCRIPT.stat().st_size < 15_000


# ---------------------------------------------------------------- an answer


@pytest.fixture
def open_page(visit: Any, desk: Any) -> Any:  # noqa: F811
    """Open the page as a new reader has it, in a new window where one is asked for."""

    def open_as_new(**window: Any) -> Any:
        if window:
            return visit(PAGE, **{"viewport": DESK, **window})
        desk.page.evaluate("localStorage.clear()")
        desk.open(PAGE)
        return contextlib.nullcontext(desk)

    return open_as_new


def article(seen: Any, question: Any) -> Any:
    return seen.page.locator(f"#{question.anchor}")


def choice(seen: Any, question: Any, *, right: bool) -> Any:
    """The label of the right choice, or of the first that is wrong."""
    index = question.right if right else int(question.right == 0)
    return article(seen, question).locator("label").nth(index)


def tally(seen: Any) -> str:
    return seen.page.locator(".tally").inner_text()


def button(seen: Any, name: str) -> Any:
    return seen.page.locator(f".practice-bar button[name={name}]")


def focused(seen: Any) -> str:
    """Which question has the focus, by its anchor."""
    return seen.page.evaluate("document.activeElement.closest('.question')?.id")


FIRST, SECOND, THIRD = sorted(QUESTIONS, key=lambda q: q.chapter)[:3]
NUMBER = len(QUESTIONS)


@pytest.mark.browser
def test_the_script_is_loaded_on_its_page_alone() -> None:
    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    loading = [p for p in PAGES if "practice.js" in (HTML / p).read_text("utf-8")]
    assert loading == [PAGE]


@pytest.mark.browser
def test_a_click_answers_once_and_the_reasons_open(open_page: Any) -> None:
    with open_page() as seen:
        assert seen.page.locator(".question").count() == NUMBER
        assert tally(seen) == f"{NUMBER} questions, 0 answered, 0 right"
        asked = article(seen, FIRST)
        reasons, verdict = asked.locator(".reason"), asked.get_by_role("status")
        assert not reasons.first.is_visible()
        choice(seen, FIRST, right=False).click()
        letter = practice_data.POSITIONS[FIRST.right]
        assert verdict.inner_text() == f"Wrong: {letter} is right."
        assert reasons.locator("visible=true").count() == 4
        assert sorted(asked.locator(".told").all_inner_texts()) == ["", "", "✓", "✗"]
        assert tally(seen) == f"{NUMBER} questions, 1 answered, 0 right"
        before = asked.inner_html()
        choice(seen, FIRST, right=True).click()  # too late
        assert asked.inner_html() == before
        given = choice(seen, FIRST, right=False).locator("input")
        assert given.is_checked()
        choice(seen, SECOND, right=True).click()
        told = article(seen, SECOND).get_by_role("status")
        assert told.inner_text() == "Right."
        assert tally(seen) == f"{NUMBER} questions, 2 answered, 1 right"
        assert seen.faults == []


@pytest.mark.browser
def test_keys_answer_the_question_that_has_the_focus(open_page: Any) -> None:
    with open_page() as seen:
        press = seen.page.keyboard.press
        press("b")  # nothing has the focus: a key does nothing
        assert "0 answered" in tally(seen)
        article(seen, FIRST).locator("input").first.focus()
        press("ArrowDown")
        press("ArrowDown")
        assert "0 answered" in tally(seen)  # arrows only look
        picked = article(seen, FIRST).locator("input:checked")
        assert picked.get_attribute("value") == "2"
        press("Enter")
        assert "1 answered" in tally(seen)
        press("ArrowUp")  # an answer stands
        assert picked.get_attribute("value") == "2"
        press("Enter")
        assert focused(seen) == SECOND.anchor
        press(practice_data.POSITIONS[SECOND.right].lower())
        assert "2 answered" in tally(seen)
        assert article(seen, SECOND).get_by_role("status").inner_text() == "Right."
        press("Enter")
        assert focused(seen) == THIRD.anchor
        press("Control+1")
        assert "2 answered" in tally(seen)
        press(str(THIRD.right + 1))
        assert article(seen, THIRD).get_by_role("status").inner_text() == "Right."
        # A choice that arrows have reached is answered by a click, and by Space.
        fourth, fifth = sorted(QUESTIONS, key=lambda q: q.chapter)[3:5]
        for question in (fourth, fifth):
            article(seen, question).locator("input").first.focus()
            press("ArrowDown")
            if question is fourth:
                article(seen, question).locator("label").nth(1).click()
            else:
                press("Space")
            assert article(seen, question).get_by_role("status").inner_text()
        assert f"{NUMBER} questions, 5 answered" in tally(seen)


@pytest.mark.browser
def test_a_group_of_choices_is_named_and_its_focus_is_visible(open_page: Any) -> None:
    with open_page() as seen:
        group = seen.page.get_by_role("group", name="Choices of 1.1", exact=True)
        assert group.get_by_role("radio").count() == 4
        group.get_by_role("radio").first.focus()
        seen.page.keyboard.press("ArrowDown")
        ring = group.locator("label:has(:focus-visible)")
        assert ring.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


# ---------------------------------------------------------------- the score


@pytest.mark.browser
def test_the_score_stays_until_it_is_forgotten(open_page: Any) -> None:
    with open_page() as seen:
        assert button(seen, "forget").is_disabled()
        choice(seen, FIRST, right=True).click()
        choice(seen, SECOND, right=False).click()
        seen.page.reload()
        assert tally(seen) == f"{NUMBER} questions, 2 answered, 1 right"
        last = seen.page.locator(".last-time")
        assert [text for text in last.all_inner_texts() if text] == [
            "✓ last time", "✗ last time",
        ]  # fmt: skip
        assert seen.page.locator("details.answer[open]").count() == 0
        seen.page.once("dialog", lambda dialog: dialog.dismiss())
        button(seen, "forget").click()
        assert "2 answered" in tally(seen)
        seen.page.once("dialog", lambda dialog: dialog.accept())
        button(seen, "forget").click()
        assert "0 answered" in tally(seen)
        seen.page.reload()
        assert "0 answered" in tally(seen)


@pytest.mark.browser
def test_what_was_wrong_is_asked_again(open_page: Any) -> None:
    with open_page() as seen:
        assert button(seen, "again").is_disabled()
        choice(seen, FIRST, right=True).click()
        choice(seen, SECOND, right=False).click()
        choice(seen, THIRD, right=False).click()
        button(seen, "again").click()
        shown = seen.page.locator(".question:visible")
        assert shown.evaluate_all("all => all.map(e => e.id)") == [
            SECOND.anchor, THIRD.anchor,
        ]  # fmt: skip
        assert focused(seen) == SECOND.anchor
        assert shown.locator("input:checked").count() == 0
        assert shown.locator("details[open]").count() == 0
        choice(seen, SECOND, right=True).click()
        assert tally(seen) == "2 questions, 2 answered, 1 right"
        button(seen, "all").click()
        assert shown.count() == NUMBER
        button(seen, "again").click()
        assert shown.count() == 1


@pytest.mark.browser
@pytest.mark.parametrize(
    "fault",
    [
        "Object.defineProperty(window, 'localStorage', {get() { throw Error() }})",
        "localStorage.setItem('normbook-practice', '{\"gone\": true, \"broken')",
        "localStorage.setItem('normbook-practice', '{\"gone\": true}')",
    ],
)
def test_a_store_that_is_shut_or_broken_stops_nothing(
    open_page: Any, fault: str
) -> None:
    with open_page(color_scheme="light") as seen:
        seen.page.add_init_script(fault)
        seen.page.reload()
        seen.faults.clear()  # the theme's own
        assert f"{NUMBER} questions, 0 answered" in tally(seen)
        choice(seen, FIRST, right=True).click()
        assert tally(seen) == f"{NUMBER} questions, 1 answered, 1 right"
        assert seen.faults == []


@pytest.mark.browser
def test_the_page_works_from_a_disk(browser: Any) -> None:  # noqa: F811
    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    page = browser.new_page()
    page.goto((HTML / PAGE).as_uri())
    page.locator(".question label").first.click()
    assert "1 answered" in page.locator(".tally").inner_text()
    page.close()


# ---------------------------------------------------------------- choosing some


@pytest.mark.browser
def test_questions_are_chosen_by_chapter_kind_and_level(open_page: Any) -> None:
    with open_page() as seen:
        shown = seen.page.locator(".question:visible")
        for chapter in sorted({question.chapter for question in QUESTIONS}):
            seen.page.get_by_label("Chapter").select_option(str(chapter))
            here = [q for q in QUESTIONS if q.chapter == chapter]
            assert shown.count() == len(here)
            assert seen.page.locator(".practice-of:visible").count() == 1
            assert seen.page.locator(".page-toc li li:visible").count() <= 1
            assert tally(seen).startswith(f"{len(here)} questions, ")
        seen.page.get_by_label("Chapter").select_option("")
        for label, field in (("Kind", "kind"), ("Level", "level")):
            for value in {getattr(question, field) for question in QUESTIONS}:
                seen.page.get_by_label(label).select_option(str(value))
                here = [q for q in QUESTIONS if getattr(q, field) == value]
                assert shown.count() == len(here) > 0
            seen.page.get_by_label(label).select_option("")
        assert shown.count() == NUMBER


# ---------------------------------------------------------------- a run


@pytest.mark.browser
def test_a_run_is_ten_at_random_and_tells_at_its_end(open_page: Any) -> None:
    with open_page() as seen:
        orders = []
        for _ in range(2):
            button(seen, "run").click()
            shown = seen.page.locator(".question:visible")
            orders.append(shown.evaluate_all("all => all.map(e => e.id)"))
            assert len({*orders[-1]}) == 10
            if len(orders) == 1:
                button(seen, "finish").click()
                assert tally(seen).startswith("0 of 10 right in 0:0")
                button(seen, "all").click()
        assert orders[0] != orders[1]
        assert seen.page.get_by_role("timer").inner_text() in ("12:00", "11:59")
        by_anchor = {question.anchor: question for question in QUESTIONS}
        for number, anchor in enumerate(orders[1]):
            assert tally(seen) == f"{10 - number} of 10 to answer"
            assert focused(seen) == anchor
            right = by_anchor[anchor].right
            seen.page.keyboard.press(str((right if number < 7 else right ^ 1) + 1))
        assert shown.locator("details:visible").count() == 0
        assert "".join(shown.locator(".verdict").all_inner_texts()) == ""
        # Until its end an answer can be altered.
        first, last = by_anchor[orders[1][0]], by_anchor[orders[1][-1]]
        choice(seen, first, right=False).click()
        choice(seen, last, right=True).click()
        choice(seen, by_anchor[orders[1][-2]], right=True).click()
        assert tally(seen) == "All answered: finish, or alter one"
        button(seen, "finish").click()
        assert re.fullmatch(r"8 of 10 right in 0:\d\d", tally(seen))
        assert shown.locator("details[open]").count() == 10
        button(seen, "all").click()
        # Every question is again where it was, and can be answered.
        order = shown.evaluate_all("all => all.map(e => e.id)")
        by_chapter = sorted(QUESTIONS, key=lambda question: question.chapter)
        assert order == [question.anchor for question in by_chapter]
        assert tally(seen) == f"{NUMBER} questions, 10 answered, 8 right"
        choice(seen, first, right=True).click()
        assert tally(seen) == f"{NUMBER} questions, 10 answered, 9 right"
        assert seen.faults == []


@pytest.mark.browser
def test_the_clock_ends_a_run(open_page: Any) -> None:
    with open_page(color_scheme="light") as seen:
        seen.page.clock.install()
        seen.page.reload()
        kind = "blanks"
        seen.page.get_by_label("Kind").select_option(kind)
        number = min(10, sum(question.kind == kind for question in QUESTIONS))
        button(seen, "run").click()
        seen.page.clock.run_for(61_000)
        left = 72 * number - 61
        clock = seen.page.get_by_role("timer")
        assert clock.inner_text() == f"{left // 60}:{left % 60:02}"
        seen.page.locator(".question:visible input").first.press("a")
        seen.page.clock.run_for(left * 1000)
        assert not clock.is_visible()
        whole = f"{72 * number // 60}:{72 * number % 60:02}"
        assert re.fullmatch(rf"[01] of {number} right in {whole}", tally(seen))
        verdicts = seen.page.locator(".question:visible .verdict").all_inner_texts()
        missing = [text for text in verdicts if text.startswith("Not answered: ")]
        assert len(missing) == number - 1
        # What was not answered counts neither as right nor as wrong.
        button(seen, "all").click()
        assert ", 1 answered" in tally(seen)


@pytest.mark.browser
@pytest.mark.parametrize("window", [DESK, PHONE], ids=["desk", "phone"])
def test_a_runs_clock_stays_in_view_and_covers_no_question(
    open_page: Any, window: dict[str, int]
) -> None:
    with open_page(viewport=window) as seen:
        button(seen, "run").click()
        for _ in range(3):
            box = seen.page.locator(".practice-tools").bounding_box()
            head = seen.page.locator(".question:focus-within h3").bounding_box()
            assert 0 <= box["y"] < 200
            assert head["y"] >= box["y"] + box["height"] - 1
            seen.page.keyboard.press("1")


# ---------------------------------------------------------------- languages


@pytest.mark.browser
def test_the_language_is_chosen_and_kept(open_page: Any) -> None:
    with open_page() as seen:
        asked = article(seen, FIRST)
        en, ja = asked.locator(".pair > .en").first, asked.locator(".pair > .ja").first
        beside = [text.bounding_box() for text in (en, ja)]
        assert beside[0]["y"] == beside[1]["y"]
        assert beside[0]["x"] + beside[0]["width"] <= beside[1]["x"]
        for language in ("日本語", "English"):
            seen.page.get_by_label(language, exact=True).check(force=True)
            for _ in range(2):
                assert en.is_visible() == (language == "English")
                assert ja.is_visible() == (language == "日本語")
                box = seen.page.get_by_label(language, exact=True)
                assert box.is_checked()
                seen.page.reload()
        # What is Japanese inside an English sentence stays.
        blank = seen.page.locator(".pair > .en [lang=ja]").first
        assert blank.is_visible()
        seen.page.get_by_label("日本語", exact=True).check(force=True)
        assert tally(seen) == f"{NUMBER} 問中 0 問解答、0 問正解"
        choice(seen, FIRST, right=True).click()
        assert asked.get_by_role("status").inner_text() == "正解。"


@pytest.mark.browser
def test_on_a_phone_the_languages_are_stacked(open_page: Any) -> None:
    with open_page(viewport=PHONE) as seen:
        pair = article(seen, FIRST).locator(".pair").first
        en, ja = (pair.locator(f"> .{name}").bounding_box() for name in ("en", "ja"))
        assert en["x"] == ja["x"]
        assert en["y"] + en["height"] <= ja["y"]
        seen.page.evaluate(
            "document.querySelectorAll('.question').forEach("
            "question => question.querySelector('label').click())"
        )
        assert f"{NUMBER} questions, {NUMBER} answered" in tally(seen)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_japanese_is_set_as_japanese(open_page: Any) -> None:
    with open_page() as seen:
        styles = seen.page.locator(".practice :is(.ja, .label-ja)").evaluate_all(
            """all => [...new Set(all.map(e => {
                const style = getComputedStyle(e);
                return [e.lang, style.fontStyle, style.lineBreak].join(" ");
            }))]"""
        )
        assert styles == ["ja normal strict"]
        fonts = seen.page.evaluate("[...document.fonts].map((font) => font.family)")
        assert not any("Noto" in font for font in fonts)  # the system's own


@pytest.mark.browser
def test_no_box_is_drawn_in_place_of_japanese(visit: Any) -> None:  # noqa: F811
    with visit(PAGE, viewport=DESK) as seen:
        # A code point that no font has shows the box, in each font of the page.
        boxes = seen.page.evaluate(
            """() => {
                const draw = (text, font) => {
                    const canvas = document.createElement("canvas");
                    [canvas.width, canvas.height] = [64, 64];
                    const context = canvas.getContext("2d");
                    context.font = font;
                    context.fillText(text, 8, 48);
                    return canvas.toDataURL();
                };
                const boxes = [];
                for (const family of ["--serif", "--sans", "--mono"]) {
                    const style = getComputedStyle(document.documentElement);
                    const font = `40px ${style.getPropertyValue(family)}`;
                    const box = draw("\\u{2fe0}", font);
                    if (box === draw(" ", font)) boxes.push("no box is drawn at all");
                    for (const letter of "移動平均層化逆伝播アバッー")
                        if (draw(letter, font) === box) boxes.push(letter);
                }
                return boxes;
            }"""
        )
        if boxes:
            unavailable(f"no font here has Japanese: {''.join(boxes)}")


# ---------------------------------------------------------------- how it looks


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_a_run_and_each_language_are_accessible(
    open_page: Any, scheme: str
) -> None:
    # Only rules about colours see the scheme.
    options = {"runOnly": COLOURED} if scheme == "dark" else {}

    def check() -> None:
        assert axe(seen, within=".practice", **options) == []

    with open_page(color_scheme=scheme) as seen:
        seen.page.get_by_label("Chapter").select_option("4")
        # Axe walks through the hidden ones too, which takes it half a minute.
        seen.page.locator(".question").evaluate_all(
            "all => { const four = all.filter(e => e.offsetParent).slice(0, 4);"
            " all.filter(e => !four.includes(e)).forEach(e => e.remove()) }"
        )
        right, wrong = [q for q in QUESTIONS if q.chapter == 4][:2]
        choice(seen, right, right=True).click()
        choice(seen, wrong, right=False).click()
        check()
        seen.page.get_by_label("日本語", exact=True).check(force=True)
        button(seen, "run").click()
        seen.page.keyboard.press("1")
        check()
        button(seen, "finish").click()
        check()


SHIFT = """() => new Promise((done) => new PerformanceObserver((list) =>
    done(list.getEntries().reduce((sum, { value }) => sum + value, 0)))
    .observe({ type: "layout-shift", buffered: true })
    || setTimeout(() => done(0), 300))"""


@pytest.mark.browser
@pytest.mark.parametrize("window", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_moves_while_the_page_is_drawn(
    open_page: Any, window: dict[str, int]
) -> None:
    with open_page(viewport=window) as seen:
        for language in ("both", "日本語"):
            seen.page.get_by_label(language, exact=True).check(force=True)
            choice(seen, FIRST, right=True).click()
            seen.page.reload()
            seen.page.wait_for_function("document.fonts.status === 'loaded'")
            assert seen.page.evaluate(SHIFT) < 0.01


@pytest.mark.browser
def test_without_a_script_it_reads_as_questions_and_answers(open_page: Any) -> None:
    with open_page(java_script_enabled=False) as seen:
        assert not seen.page.locator(".practice-tools").is_visible()
        assert seen.page.locator(".practice input:visible").count() == 0
        asked = article(seen, FIRST)
        assert asked.locator("label:visible").count() == 4
        assert not asked.locator(".reason").first.is_visible()
        asked.locator("summary").click()
        assert asked.locator(".reason:visible").count() == 4


@pytest.mark.browser
@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_every_answer_is_open(open_page: Any, scripts: bool) -> None:
    with open_page(java_script_enabled=scripts) as seen:
        seen.page.emulate_media(media="print")
        visible = "all => all.filter(e => e.checkVisibility()).length"
        reasons = seen.page.locator(".question .reason")
        assert reasons.evaluate_all(visible) == 4 * NUMBER
        tools = seen.page.locator(".practice :is(form, .verdict, input, summary)")
        assert tools.evaluate_all(visible) == 0
