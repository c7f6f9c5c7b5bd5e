"""Words: the glossary and the conventions, each from one file in `book/words`.

{word}`running mean` links to the glossary and, where a page uses the term first, adds
its Japanese; {word}`text <term>` shows other text. `{terms}` is the table of a lesson's
terms, one a line. `{conventions}` is the table PyTorch | Keras, Flax | exam code, whole
or of some methods. `{glossary-list}` and `{japanese-index}` make the glossary's page.

Files are read before any page. A fault stops the build and names file, entry and field.
"""

import difflib
import json
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole, SphinxDirective

from normbook.methods import METHODS

LOG = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[1] / "words"
GLOSSARY = "book/glossary"  # the page that holds `{glossary-list}`
KANA = re.compile(r"[ぁ-ゖァ-ヺー・ ]+")


class WordsError(SphinxError):
    """A file of words has faults: one a line."""

    category = "Words"


class Term(NamedTuple):
    """An entry of the glossary. `reading` is "" where `japanese` is kana already."""

    name: str
    japanese: str
    sentence: str
    sentence_ja: str
    reading: str = ""
    synonyms: tuple[str, ...] = ()
    synonyms_ja: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The anchor on the glossary's page: term-running-mean."""
        return nodes.make_id(f"term-{self.name}")


class Convention(NamedTuple):
    """A row of the conventions. `exam` and `beware` are "" where there is none."""

    name: str
    methods: tuple[str, ...]
    pytorch: str
    keras: str
    flax: str
    checks: tuple[str, ...]
    exam: str = ""
    beware: str = ""
    taught: tuple[str, ...] = ()


# ------------------------------------------------------------------ reading


def read_toml(path: Path, entry: str = r"(\[.*)") -> dict[str, Any]:
    """Read a file; name the entry that TOML's own message gives by its line alone.

    entry: a pattern of the lines that name an entry.
    """
    name = _short(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WordsError(f"{name}: {error}. Save the file as UTF-8.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        above = text.splitlines()[: int(line[1]) if line else None]
        heads = [head[1] for row in above if (head := re.match(entry, row))]
        where = f" entry {heads[-1]}:" if heads else ""
        raise WordsError(
            f"{name}:{where} {error}. Each entry and each field stands once, as "
            'field = "text" or field = ["text", "text"].'
        ) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what to say of an unknown word: the one meant, or all there are."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."


def _cure(schema: dict[str, Any], entry: str, field: str) -> str:
    """Return what the schema says of a field."""
    table = schema.get("properties", {}).get(entry, schema["additionalProperties"])
    rule = table["properties"].get(field, {})
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].removeprefix("#/$defs/")]
    return rule.get("description", "write a table of fields below its [name]")


def _schema_faults(data: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return entry, field, fault and cure, wherever a file breaks its schema."""
    faults = []
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(data), key=lambda e: str(e.path)):
        entry, field, *_ = [*map(str, error.absolute_path), "", ""]
        what = repr(error.instance)
        cure = _cure(schema, entry, field)
        if error.validator == "minProperties":
            entry, what, cure = "(any)", "none", "add one"
        elif "propertyNames" in error.absolute_schema_path:
            entry = error.instance
            what, cure = "its name", schema["propertyNames"]["description"]
        elif error.validator == "required":
            name = error.message.split("'")[1]
            entry, field = (entry, name) if entry else (name, "")
            what, cure = "missing", _cure(schema, entry, field)
        elif error.validator == "additionalProperties":
            known = error.schema["properties"]
            names = sorted(set(error.instance) - set(known))
            what = f"unknown field {', '.join(map(repr, names))}"
            cure = nearest(names[0], known)
        where = f"entry {entry!r}" + (f", field {field!r}" if field else "")
        faults.append(f"{where}: {what}: {cure}")
    return faults


def read_file(path: Path) -> dict[str, Any]:
    """Read a file and hold it against the schema beside it."""
    data = read_toml(path)
    schema = path.with_suffix(".schema.json").read_text(encoding="utf-8")
    stop(path, _schema_faults(data, json.loads(schema)))
    return data


def stop(path: Path, faults: list[str]) -> None:
    if faults:
        raise WordsError("\n".join(f"{_short(path)}: {fault}." for fault in faults))


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _fields(table: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}


def normal(word: str) -> str:
    """Return a word as it is compared: one space between parts, no capitals."""
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def read_terms(folder: Path) -> dict[str, Term]:
    """Return every term by each of its names, synonyms and Japanese included.

    Raises WordsError, one fault a line, if terms.toml breaks its schema, gives a name
    twice, or lacks a reading where one is needed.
    """
    path = folder / "terms.toml"
    terms: dict[str, Term] = {}
    faults = []
    for name, table in read_file(path).items():
        term = Term(name=name, **_fields(table))
        own: set[str] = set()
        names = {
            "name": [name],
            "japanese": [term.japanese],
            "synonyms": term.synonyms,
            "synonyms_ja": term.synonyms_ja,
        }
        for field, words in names.items():
            for word in words:
                other = terms.setdefault(normal(word), term)
                if normal(word) in own or other is not term:
                    faults.append(
                        f"entry {name!r}, field {field!r}: {word!r} is a name of "
                        f"{other.name!r} already: a name belongs to one entry, once"
                    )
                own.add(normal(word))
        if not term.reading and not KANA.fullmatch(term.japanese):
            faults.append(
                f"entry {name!r}, field 'reading': missing: "
                f"write how {term.japanese!r} is read, in kana"
            )
        if term.reading and KANA.fullmatch(term.japanese):
            faults.append(
                f"entry {name!r}, field 'reading': {term.japanese!r} is in kana "
                "already: leave the field out"
            )
    stop(path, faults)
    return terms


def read_conventions(folder: Path) -> tuple[dict[str, str], dict[str, Convention]]:
    """Return the versions measured, and every row by its name.

    Raises WordsError, one fault a line, if conventions.toml breaks its schema or names
    a method that `normbook.methods` does not have.
    """
    path = folder / "conventions.toml"
    data = read_file(path)
    versions = data.pop("versions")
    rows = {name: Convention(name=name, **_fields(t)) for name, t in data.items()}
    stop(
        path,
        [
            f"entry {row.name!r}, field 'methods': no method {method!r}: "
            f"{nearest(method, METHODS)}"
            for row in rows.values()
            for method in row.methods
            if method not in METHODS
        ],
    )
    return versions, rows


def gojuon(term: Term) -> tuple[str, str]:
    """Return the key that sorts Japanese as its dictionaries do, and the row's kana.

    Katakana count as hiragana; marks of voicing, small kana and long vowels come after
    all else.
    """
    reading = term.reading or term.japanese
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", reading)
        if c not in "\u3099\u309aー・ "
    )  # fmt: skip
    hiragana = "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in plain)
    large = hiragana.translate(
        str.maketrans("ぁぃぅぇぉっゃゅょゎ", "あいうえおつやゆよわ")
    )
    row = max(kana for kana in "あかさたなはまやらわ" if kana <= large[0])
    return f"{large}\0{reading}", row


# ------------------------------------------------------------------ pieces of a page


def japanese(text: str, *classes: str) -> nodes.inline:
    """Return Japanese, marked as such (docutils writes the class as lang)."""
    return nodes.inline(text, text, classes=["language-ja", *classes])


def with_reading(term: Term) -> list[nodes.Node]:
    """Return a term's Japanese and, in brackets, how it is read."""
    pieces: list[nodes.Node] = [japanese(term.japanese)]
    if term.reading:
        pieces.append(japanese(f"（{term.reading}）", "reading"))
    return pieces


def _link(env: BuildEnvironment, term: Term, *content: nodes.Node) -> nodes.reference:
    page = ""
    if env.docname != GLOSSARY:
        page = env.app.builder.get_relative_uri(env.docname, GLOSSARY)
    link = nodes.reference("", "", *content, internal=True, classes=["word"])
    link["refuri"] = f"{page}#{term.id}"
    return link


def _find(env: BuildEnvironment, text: str) -> Term | str:
    """Return the term of a name or of its plural, or what is wrong."""
    word = normal(text)
    term = env.words_terms.get(word) or env.words_terms.get(word.removesuffix("s"))
    return term or (
        f"no term {text!r} in book/words/terms.toml: "
        f"{nearest(word, env.words_terms)} Or add an entry."
    )


class Word(ReferenceRole):
    """{word}`running mean`: a term, its Japanese at first use, and a link."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(FOLDER / "terms.toml"))
        term = _find(self.env, self.target)
        if isinstance(term, str):
            return [], [self.inliner.reporter.error(term, line=self.lineno)]
        pieces: list[nodes.Node] = [_link(self.env, term, nodes.Text(self.title))]
        used = self.env.temp_data.setdefault("words", set())
        if term.name not in used:
            used.add(term.name)
            pieces += [nodes.Text(" ("), japanese(term.japanese), nodes.Text(")")]
        return pieces, []


class WordsDirective(SphinxDirective):
    """A directive that shows a file of words: the page is built anew if it changes."""

    file = "terms.toml"

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FOLDER / self.file))
        return self.pieces()

    pieces: Callable[[], list[nodes.Node]]  # what each of them shows

    def terms(self) -> list[Term]:
        """Every term, from A to Z."""
        terms = {term.name: term for term in self.env.words_terms.values()}
        return sorted(terms.values(), key=lambda term: normal(term.name))

    def inline(self, text: str) -> list[nodes.Node]:
        return self.parse_inline(text, lineno=self.lineno)[0]

    def places(self, file: str, entry: str, taught: Iterable[str]) -> list[nodes.Node]:
        """Links to pages, headings and labels, resolved once all pages are read."""
        links = []
        for target in taught:
            link = addnodes.pending_xref("", nodes.inline("", target))
            links.append(nodes.Text(", ") if links else nodes.Text("See "))
            links.append(link)
            link.attributes |= {
                "reftype": "taught",
                "reftarget": target,
                "refdoc": self.env.docname,
                "entry": f"{FOLDER.name}/{file}: entry {entry!r}",
            }
        return [*links, nodes.Text(".")] if links else []


class GlossaryList(WordsDirective):
    """Every term from A to Z, one section a letter."""

    def pieces(self) -> list[nodes.Node]:
        if self.env.docname != GLOSSARY:
            raise self.error(f"glossary-list belongs on the page {GLOSSARY}")
        sections = []
        for letter, terms in groupby(self.terms(), lambda term: term.name[0].upper()):
            section = nodes.section(ids=[f"glossary-{nodes.make_id(letter)}"])
            section += nodes.title(letter, letter)
            section += nodes.definition_list(
                "", *map(self.entry, terms), classes=["glossary-list"]
            )
            sections.append(section)
        return sections

    def entry(self, term: Term) -> nodes.definition_list_item:
        name = nodes.term("", term.name + " ", *with_reading(term), ids=[term.id])
        also: list[nodes.Node] = []
        if others := [*term.synonyms, *map(japanese, term.synonyms_ja)]:
            also.append(nodes.Text("Also "))
        for other in others:
            also += [nodes.Text(other) if isinstance(other, str) else other]
            also.append(nodes.Text(". " if other is others[-1] else ", "))
        also += self.places("terms.toml", term.name, term.taught)
        body = nodes.definition(
            "", nodes.paragraph("", "", *self.inline(term.sentence))
        )
        body += nodes.paragraph(
            "", "", *self.inline(term.sentence_ja), classes=["language-ja"]
        )
        if also:
            body += nodes.paragraph("", "", *also, classes=["also"])
        return nodes.definition_list_item("", name, body)


class JapaneseIndex(WordsDirective):
    """Every term in the order of Japanese dictionaries, one line a row of kana."""

    def pieces(self) -> list[nodes.Node]:
        items = []
        for row, terms in groupby(
            sorted(self.terms(), key=gojuon), lambda t: gojuon(t)[1]
        ):
            item = nodes.definition_list_item("", nodes.term("", "", japanese(row)))
            words = nodes.bullet_list()
            for term in terms:
                line = nodes.paragraph(
                    "", "", _link(self.env, term, japanese(term.japanese))
                )
                line += nodes.Text(f" {term.name}")
                words += nodes.list_item("", line)
            item += nodes.definition("", words)
            items.append(item)
        return [nodes.definition_list("", *items, classes=["japanese-index"])]


class Terms(WordsDirective):
    """The table of a lesson's terms: one a line, English and Japanese."""

    has_content = True

    def pieces(self) -> list[nodes.Node]:
        found = [_find(self.env, line) for line in self.content if line.strip()]
        for fault in found:
            if isinstance(fault, str):
                raise self.error(fault)
        if not found:
            raise self.error("terms: name at least one term, one a line")
        grid = table([[nodes.Text("English")], [japanese("日本語（よみ）")]], ["terms"])
        for term in found:
            link = _link(self.env, term, nodes.Text(term.name))
            add_row(grid, [[link], with_reading(term)])
        return [grid]


def names_of(text: str) -> list[str]:
    """Split the value of an option at its commas."""
    return [" ".join(name.split()) for name in text.split(",") if name.strip()]


class Conventions(WordsDirective):
    """The table of conventions, whole or of some methods or rows."""

    file = "conventions.toml"
    option_spec = {"methods": names_of, "rows": names_of}  # noqa: RUF012

    def pieces(self) -> list[nodes.Node]:
        versions, rows = self.env.words_conventions
        methods = self.options.get("methods", list(METHODS))
        names = self.options.get("rows", list(rows))
        for chosen, known in ((methods, METHODS), (names, rows)):
            for name in set(chosen) - set(known):
                raise self.error(f"conventions: no {name!r}: {nearest(name, known)}")
        shown = [rows[n] for n in names if set(methods) & set(rows[n].methods)]
        if not shown:
            raise self.error("conventions: no row is of both these methods and rows")
        titles = [
            f"PyTorch {versions['pytorch']}",
            f"Keras {versions['keras']}, Flax {versions['flax']}",
            "exam code",
        ]
        head = [[], *([nodes.Text(title)] for title in titles)]
        grid = table(head, ["conventions"], stub=True)
        for row in shown:
            add_row(grid, self.cells(row))
            below = self.inline(row.beware)
            below += [nodes.Text(" "), *self.places(self.file, row.name, row.taught)]
            if row.beware or row.taught:
                add_row(grid, [[], below], classes=["beware"])
        return [grid]

    def cells(self, row: Convention) -> list[list[nodes.Node]]:
        methods = ", ".join(row.methods)
        first = [
            nodes.Text(row.name),
            nodes.inline("", methods, classes=["small"]),
        ]
        both = self.inline(row.keras)
        if row.flax != row.keras:
            both = [nodes.Text("Keras: "), *both, nodes.Text("; Flax: ")]
            both += self.inline(row.flax)
        return [first, self.inline(row.pytorch), both, self.inline(row.exam or "–")]


def table(
    head: list[list[nodes.Node]], classes: list[str], *, stub: bool = False
) -> nodes.table:
    """Return a table without rows; the first column heads its rows where `stub`."""
    group = nodes.tgroup(cols=len(head))
    for number in range(len(head)):
        group += nodes.colspec(
            colwidth=1, **({"stub": 1} if stub and not number else {})
        )
    group += nodes.thead()
    group += nodes.tbody()
    grid = nodes.table("", group, classes=classes)
    add_row(grid, head, part=nodes.thead)
    return grid


def add_row(
    grid: nodes.table,
    cells: Iterable[list[nodes.Node]],
    *,
    part: type[nodes.Element] = nodes.tbody,
    classes: Iterable[str] = (),
) -> None:
    """Add a row; its last cell spans the columns that are left."""
    group = grid[0]
    entries = [nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells]
    if left := group["cols"] - len(entries):
        entries[-1]["morecols"] = left
    next(group.findall(part)).append(nodes.row("", *entries, classes=[*classes]))


# ------------------------------------------------------------------ the build


def read(app: Sphinx) -> None:
    """Read both files before any page."""
    app.env.words_terms = read_terms(FOLDER)
    app.env.words_conventions = read_conventions(FOLDER)


class Place(NamedTuple):
    """Where a term is taught. `anchor` is "" for a whole page."""

    page: str
    anchor: str
    title: str


def taught_at(env: BuildEnvironment, target: str) -> Place | None:
    """Find a label, a page, or a page and its heading, once all pages are read."""
    labels = env.get_domain("std").labels
    page, _, heading = target.partition("#")
    headings = env.metadata.get(page, {}).get("myst_slugs", {})
    if target in labels:
        return Place(*labels[target])
    if page in env.found_docs and not heading:
        return Place(page, "", env.titles[page].astext())
    if heading in headings:
        _, anchor, title = headings[heading]
        return Place(page, anchor, f"{env.titles[page].astext()}: {title}")
    return None


def place(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node
) -> nodes.Node | None:
    """Resolve where a term is taught."""
    if node["reftype"] != "taught":
        return None
    target = node["reftarget"]
    found = taught_at(env, target)
    if not found:
        page = target.partition("#")[0]
        headings = env.metadata.get(page, {}).get("myst_slugs", {})
        labels = env.get_domain("std").labels
        known = [f"{page}#{name}" for name in headings] or {*env.found_docs, *labels}
        cure = nearest(target, known)
        LOG.warning(
            "%s, field 'taught': no page, heading or label %r: %s",
            node["entry"], target, cure, location=node, type="words",
        )  # fmt: skip
        return content
    uri = app.builder.get_relative_uri(node["refdoc"], found.page)
    link = nodes.reference("", found.title, internal=True)
    link["refuri"] = f"{uri}#{found.anchor}" if found.anchor else uri
    return link


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("word", Word())
    app.add_directive("terms", Terms)
    app.add_directive("conventions", Conventions)
    app.add_directive("glossary-list", GlossaryList)
    app.add_directive("japanese-index", JapaneseIndex)
    app.connect("builder-inited", read)
    app.connect("missing-reference", place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
