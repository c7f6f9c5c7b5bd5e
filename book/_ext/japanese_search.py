"""Japanese in the book's own search: found by its pairs of characters.

Japanese sets no spaces, so what Sphinx takes for a word is half a sentence. Index and
query cut it alike, here and in `SPLITTER`: 移動平均 is 移動_, 動平_, 平均_. They have
three characters because Sphinx does not demand shorter words. The mark of a long vowel
is left out, so that レイヤ finds レイヤー. All else is cut and stemmed as English.

A Japanese name of a term leads to its entry in the glossary and to where it is taught,
before all pages that only contain it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from repairs import JAPANESE
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from words import GLOSSARY, Term, taught_at

RUN = re.compile(f"({JAPANESE})")
LONG = "ー"
# Overrides what Sphinx's searchtools.js, loaded before it, does to a query. Marks and
# excerpts show what was typed, not its pairs. A keyboard for Japanese types ＢＮ, too.
SPLITTER = r"""
{
  const japanese = /(JAPANESE)/;
  const wide = /[\uff01-\uff9f]+/g;
  const narrow = (text) => text.replace(wide, (s) => s.normalize("NFKC"));
  const verb = /(?<=[一-龯])(する|した|して|される|された)$/; // of a noun: 標準化する
  const words = splitQuery;
  const pairs = (word) => {
    if (!japanese.test(word)) return [word];
    const short = word.replaceAll("LONG", "") || word;
    const last = Math.max(short.length - 1, 1);
    const pair = (_, at) => short.slice(at, at + 2).padEnd(3, "_");
    return Array.from({ length: last }, pair);
  };
  const runs = (query) => words(narrow(query)).flatMap((word) => word.split(japanese));
  splitQuery = (query) => runs(query).filter((run) => run).flatMap(pairs);

  const parse = Search._parseQuery;
  let typed = [];
  Search._parseQuery = (query) => {
    const parsed = parse(query);
    parsed[0] = narrow(query).trim().replace(verb, ""); // may be a term's name
    typed = runs(query).filter((run) => japanese.test(run));
    const others = [...parsed[3]].filter((term) => !japanese.test(term));
    parsed[3] = new Set([...others, ...typed]);
    return parsed;
  };
  Search.typed = (terms) => // for search.js
    [...terms].filter((term) => !japanese.test(term)).concat(typed);
}
""".replace("JAPANESE", JAPANESE).replace("LONG", LONG)


def pairs(run: str) -> Iterator[str]:
    """Cut a run of Japanese: its pairs of characters, and each kanji alone."""
    short = run.replace(LONG, "") or run
    for at, char in enumerate(short):
        if at + 1 < len(short):
            yield f"{short[at : at + 2]}_"
        if char >= "一" or len(short) == 1:
            yield f"{char}__"


class EnglishAndJapanese(SearchEnglish):
    """English as Sphinx cuts it, and Japanese in pairs of characters."""

    lang = "en_ja"
    js_splitter_code = SPLITTER

    def split(self, text: str) -> list[str]:
        pieces = []
        for run in (run for word in super().split(text) for run in RUN.split(word)):
            if run:
                pieces += pairs(run) if RUN.match(run) else [run]
        return pieces

    def word_filter(self, word: str) -> bool:
        # Sphinx drops short hiragana: the する of 標準化する.
        return bool(RUN.match(word)) or super().word_filter(word)


def names(term: Term) -> list[str]:
    """Return a term's Japanese names. One with Latin letters would answer to those."""
    every = [term.japanese, *term.synonyms_ja]
    return [name for name in every if RUN.fullmatch(name)]


def add_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let the search of names lead to the glossary and to where each is taught."""
    places = defaultdict(set)
    for term in app.env.words_terms.values():
        if page == GLOSSARY:
            places[term.id] |= {*names(term)}
        for target in term.taught:
            place = taught_at(app.env, target)
            if place and place.page == page:
                places[place.anchor] |= {*names(term)}
    doctree += [
        addnodes.index(entries=[("single", name, anchor, "main", None)])
        for anchor, found in places.items()
        for name in sorted(found)
    ]


def add_script(app: Sphinx, page: str, template: str, context: Any, tree: Any) -> None:
    """Give the search page what makes Sphinx's search know this theme."""
    if page == "search":
        app.add_js_file("search.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("words")
    app.connect("html-page-context", add_script)
    app.add_search_language(EnglishAndJapanese)
    app.connect("doctree-resolved", add_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
