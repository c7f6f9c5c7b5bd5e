"""The book's own search in Japanese: how text is cut, where a word leads."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

import japanese_search
import words
from sphinx.search.en import SearchEnglish
from test_pages import DESK, HTML, browser, site, visit  # noqa: F401

BOTH = japanese_search.EnglishAndJapanese({})
ENGLISH = SearchEnglish({})

# ---------------------------------------------------------------- how text is cut


def test_a_run_is_cut_into_pairs_and_its_kanji() -> None:
    assert BOTH.split("移動平均を mean") == [
        "移動_", "移__", "動平_", "動__", "平均_", "平__", "均を_", "均__", "mean",
    ]  # fmt: skip
    assert BOTH.split("BNの2") == ["BN", "の__", "2"]
    # Long vowels are written or not.
    assert BOTH.split("レイヤー") == BOTH.split("レイヤ") == ["レイ_", "イヤ_"]
    assert BOTH.split("ー") == ["ー__"]


def test_no_piece_of_japanese_is_left_out_of_the_index() -> None:
    assert not ENGLISH.word_filter("する")
    pieces = BOTH.split("標準化する")
    assert [piece for piece in pieces if BOTH.word_filter(BOTH.stem(piece))] == pieces


def test_english_is_cut_stemmed_and_left_out_as_before() -> None:
    pages = sorted(words.FOLDER.parents[1].glob("*/*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    english = re.sub(japanese_search.JAPANESE, " ", text)
    pieces = BOTH.split(english)
    assert len(pieces) > 1000
    assert pieces == ENGLISH.split(english)
    for word in {*pieces}:
        assert BOTH.stem(word) == ENGLISH.stem(word)
        assert BOTH.word_filter(word) == ENGLISH.word_filter(word)
    assert BOTH.stopwords == ENGLISH.stopwords
    assert BOTH.js_stemmer_code == ENGLISH.js_stemmer_code


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def results(visit: Any) -> Iterator[Any]:  # noqa: F811
    """A function that gives what a query finds, the best first, as on the page."""
    with visit("search.html?q=mean", viewport=DESK) as seen:
        seen.page.wait_for_function("Search.hasIndex()")

        def find(query: str) -> list[tuple[str, int]]:
            return [
                (re.sub(r"\.(md|ipynb)(?=#|$)", "", place), score)
                for place, score in seen.page.evaluate(
                    """query => Search._performSearch(...Search._parseQuery(query))
                    .reverse().map(result => [result[5] + result[2], result[4]])""",
                    query,
                )
            ]

        find.page = seen.page  # type: ignore[attr-defined]
        yield find


TERMS = {term.name: term for term in words.read_terms(words.FOLDER).values()}
NAMES = {name: t for t in TERMS.values() for name in japanese_search.names(t)}


@pytest.mark.browser
def test_a_name_leads_to_its_entry_and_to_where_it_is_taught(results: Any) -> None:
    assert len(NAMES) > 90
    for name, term in NAMES.items():
        ranked = results(name)
        best = {place for place, score in ranked if score == 100}
        assert best == {place for place, _ in ranked[: len(best)]}, name
        assert f"{words.GLOSSARY}#{term.id}" in best, name
        taught = {target.partition("#")[0] for target in term.taught}
        pages = {place.partition("#")[0] for place in best} - {words.GLOSSARY}
        labels = {target for target in taught if "/" not in target}
        assert taught - labels <= pages, name
        assert len(pages) <= len(taught), name
        assert not labels or pages, name


LEADS_TO = {
    # Inside a longer word, or with an ending
    "標準化する": "notebooks/01_one_idea#center-then-rescale",
    "標準化した": "book/glossary#term-standardization",
    "標準偏差で割る": "book/glossary",
    "誤差逆伝播": "book/glossary#term-backpropagation",
    "勾配が": "book/glossary",
    "RMS正規化": "notebooks/03_layer_norm",
    # Written otherwise
    "レイヤ正規化": "book/glossary",
    "スケールパラメーター": "book/glossary",
    "ﾊﾞｯﾁ正規化": "notebooks/02_batch_norm",
    # Several words, two scripts
    "移動平均 PyTorch": "notebooks/02_batch_norm",
    "バッチ正規化 移動分散": "book/glossary",
    # Read, not written
    "いどうへいきん": "book/glossary",
    # On other pages
    "E資格": "book/practice",
    "練習問題": "book/practice",
    "過去問": "book/practice",
    "ゼロから作る": "book/conventions",
    "斎藤康毅": "book/conventions",
}


@pytest.mark.browser
def test_a_word_leads_to_its_page(results: Any) -> None:
    for word, place in LEADS_TO.items():
        found = [place for place, _ in results(word)]
        assert place in found[:4], (word, found)
    assert results("移動標準") == []  # pairs that stand nowhere together


ENGLISH_FIRST = {
    "layer norm": "notebooks/01_one_idea",
    "running variance": "notebooks/01_one_idea_lab",
    "epsilon": "notebooks/02_batch_norm",
    "rms": "notebooks/02_batch_norm#terms",
}


@pytest.mark.browser
def test_english_finds_what_it_found(results: Any) -> None:
    # Sphinx's own splitQuery is Python's \\w+, so a query is cut as the pages are.
    page = (HTML / "book" / "claims.html").read_text(encoding="utf-8")
    text = re.sub(japanese_search.JAPANESE, " ", re.sub("<[^>]*>", " ", page))
    cut = results.page.evaluate("text => splitQuery(text)", text)
    assert cut == ENGLISH.split(text)
    # No name of a term answers to it, which alone scores more than a title does.
    for query, first in ENGLISH_FIRST.items():
        ranked = results(query)
        assert ranked[0][0] == first
        assert max(score for _, score in ranked) <= 15
    for term in TERMS.values():
        for name in (term.name, *term.synonyms):
            assert all(score < 20 for _, score in results(name)), name


@pytest.mark.browser
def test_index_and_query_are_cut_alike(results: Any) -> None:
    page = (HTML / "book" / "glossary.html").read_text(encoding="utf-8")
    text = re.sub("<[^>]*>", " ", page)
    for run in {*re.findall(japanese_search.JAPANESE, text)}:
        cut = results.page.evaluate("run => splitQuery(run)", run)
        assert {*cut} <= {*BOTH.split(run)}, run
        lengths = [len(part.replace("ー", "") or part) for part in run.split("・")]
        assert len(cut) == sum(max(1, length - 1) for length in lengths if length)
        stems = "cut => cut.map((piece) => new Stemmer().stemWord(piece))"
        assert results.page.evaluate(stems, cut) == [*map(BOTH.stem, cut)] == cut


@pytest.mark.browser
def test_excerpts_and_marks_show_what_was_typed(visit: Any) -> None:  # noqa: F811
    with visit("search.html", viewport=DESK) as seen:
        field = seen.page.locator("main input[name=q], article input[name=q]").first
        field.fill("移動平均 PyTorch")
        field.press("Enter")
        # Excerpts come one by one, each with its marks.
        seen.page.wait_for_selector("#search-results .highlighted:text-is('移動平均')")
        seen.page.wait_for_timeout(100)  # what takes marks away, on pages, is over
        lines = seen.page.locator("#search-results li")
        texts = [text for text in lines.all_inner_texts() if "移動平均" in text]
        assert texts
        marks = seen.page.locator("#search-results .highlighted").all_inner_texts()
        assert "移動平均" in marks
        assert {mark.lower() for mark in marks} <= {"移動平均", "pytorch"}
        assert seen.faults == []
