"""Exam practice: `{practice}` shows the questions of book/words/practice.toml.

Each is an article: the question in both languages, four choices as a group of radio
buttons, and the reasons, folded. `_static/practice.js` adds what happens on an answer,
the filter, the score and the runs; without it the page reads as questions and answers.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import reading_time
from claims_page import choice_of
from docutils import nodes
from practice_data import BLANK, FILE, KANA, POSITIONS, Choice, Question, load
from sphinx.application import Sphinx
from words import WordsDirective

KINDS = {"choice": ("four choices", "四肢択一"), "blanks": ("blanks", "空欄補充")}
LEVELS = {1: ("recall", "確認"), 2: ("apply", "応用"), 3: ("combine", "総合")}
LANGUAGES = {"en": "English", "ja": "日本語", "both": "both"}
UNBROKEN = "(\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE})"  # what a blank looks like
# Before the questions are drawn, so that nothing moves when they are.
LANGUAGE = """<script>try {
  const language = localStorage.getItem("normbook-practice-language");
  if (language) document.currentScript.parentElement.dataset.language = language;
} catch { /* a browser that stores nothing shows both */ }</script>"""


class Tag(nodes.General, nodes.Element):
    """An HTML element for which docutils has no node."""


def tag(name: str, *content: nodes.Node, **attributes: Any) -> Tag:
    """Return an element; `classes` and `ids` are lists, all else stands as it is."""
    lists = {key: attributes.pop(key, []) for key in ("classes", "ids")}
    return Tag("", *content, tag=name, html=attributes, **lists)


def open_tag(self: Any, node: Tag) -> None:
    html = {key.replace("_", "-"): value for key, value in node["html"].items()}
    self.body.append(self.starttag(node, node["tag"], "", **html))


def close_tag(self: Any, node: Tag) -> None:
    self.body.append(f"</{node['tag']}>")


def text_in_both(en: str, ja: str) -> list[nodes.Node]:
    """Return a label of the page: Japanese where Japanese alone is shown."""
    return [
        tag("span", nodes.Text(en), classes=["label-en"]),
        tag("span", nodes.Text(ja), classes=["label-ja", "language-ja"]),
    ]


def html_in_both(en: str, ja: str) -> str:
    """Return the same as HTML, for the form."""
    japanese = f'<span class="label-ja" lang="ja">{ja}</span>'
    return f'<span class="label-en">{en}</span>{japanese}'


class Practice(WordsDirective):
    """Every question, a section a chapter, below the form that chooses some."""

    file = FILE.name

    def pieces(self) -> list[nodes.Node]:
        questions = load(FILE)
        form = nodes.raw("", self.form(questions), format="html")
        practice = tag("div", form, classes=["practice"], data_language="both")
        title = tag("h2", *text_in_both("Against the clock", "制限時間つき"))
        practice += tag("div", title, classes=["practice-run"], hidden="")
        ordered = sorted(questions, key=lambda question: question.chapter)
        for chapter, group in groupby(ordered, lambda question: question.chapter):
            practice += self.section(chapter, list(group))
        return [practice]

    def title(self, chapter: int) -> str:
        """Return the title of a chapter's lesson, in Markdown."""
        folder = Path(self.env.srcdir, "notebooks")
        lessons = sorted(folder.glob(f"{chapter:02}_*.ipynb"))
        if not lessons:
            raise self.error(f"practice: notebooks/ has no chapter {chapter}")
        self.env.note_dependency(str(lessons[0]))
        return reading_time.read(lessons[0])[0]

    def form(self, questions: list[Question]) -> str:
        """Return what chooses language and questions; CSS hides it without scripts."""
        chapters = sorted({question.chapter for question in questions})
        languages = "".join(
            f'<label><input type="radio" name="practice-language" value="{value}"'
            f"{' checked' * (value == 'both')}>"
            f"<span{' lang=ja' * (value == 'ja')}>{text}</span></label>"
            for value, text in LANGUAGES.items()
        )
        filters = {
            ("Chapter", "章"): {c: f"{c}. {self.title(c)}" for c in chapters},
            ("Kind", "形式"): {key: " ".join(both) for key, both in KINDS.items()},
            ("Level", "水準"): {key: " ".join(both) for key, both in LEVELS.items()},
        }
        buttons = {
            "run": ("10 at random, against the clock", "無作為に10問（制限時間つき）"),
            "again": ("Again: those I got wrong", "間違えた問題をもう一度"),
            "all": ("All questions", "全問に戻る"),
            "finish": ("Finish", "終了する"),
            "forget": ("Forget my answers", "解答の記録を消す"),
        }
        hidden = ("all", "finish")
        return "\n".join(
            [
                LANGUAGE,
                '<form class="practice-tools">',
                f"<fieldset><legend>{html_in_both('Language', '言語')}</legend>",
                f"{languages}</fieldset>",
                *(
                    choice_of(
                        f"practice-{en.lower()}",
                        html_in_both(en, ja),
                        "all すべて",
                        {str(key): text for key, text in options.items()},
                    )
                    for (en, ja), options in filters.items()
                ),
                '<p class="practice-bar">',
                f'<span class="tally" role="status">{len(questions)} questions</span>',
                '<span class="clock" role="timer" hidden></span>',
                *(
                    f'<button type="button" name="{name}"'
                    f"{' hidden' * (name in hidden)}>{html_in_both(*both)}</button>"
                    for name, both in buttons.items()
                ),
                "</p></form>",
            ]
        )

    def section(self, chapter: int, questions: list[Question]) -> nodes.section:
        name = f"practice-chapter-{chapter}"
        section = nodes.section(ids=[name], names=[name], classes=["practice-of"])
        self.state.document.note_explicit_target(section)
        title = self.title(chapter)
        section += nodes.title(title, "", *self.inline(title))
        for number, question in enumerate(questions, 1):
            section += self.question(f"{chapter}.{number}", question)
        return section

    def question(self, number: str, question: Question) -> Tag:
        head = f"{question.anchor}-head"
        kind, level = KINDS[question.kind], LEVELS[question.level]
        facts = [f"{a}, {b}" for a, b in zip(level, kind, strict=True)]
        article = tag(
            "article",
            tag(
                "h3",
                nodes.Text(f"{number} "),
                tag("small", *text_in_both(*facts)),
                tag("span", classes=["last-time"]),
                ids=[head],
            ),
            self.blocks(question.en, question.ja),
            ids=[question.anchor],
            classes=["question"],
            tabindex="-1",
            aria_labelledby=head,
            data_chapter=question.chapter,
            data_level=question.level,
            data_kind=question.kind,
            data_right=question.right,
        )
        if code := question.code.strip("\n"):
            article += nodes.literal_block(code, code, language="python")
        article += tag(
            "fieldset",
            tag("legend", *text_in_both(f"Choices of {number}", f"{number} の選択肢")),
            *(self.choice(question, index) for index in range(len(question.choices))),
        )
        article += tag("p", classes=["verdict"], role="status")
        article += self.answer(question)
        return article

    def blocks(self, en: str, ja: str) -> Tag:
        """Return paragraphs of both languages side by side."""
        en, ja = (BLANK.sub(UNBROKEN, text) for text in (en, ja))
        return tag(
            "div",
            tag("div", *self.parse_text_to_nodes(en), classes=["en"]),
            tag("div", *self.parse_text_to_nodes(ja), classes=["ja", "language-ja"]),
            classes=["pair"],
        )

    def lines(self, en: str, ja: str) -> Tag:
        """Return a line of both languages side by side, once if it is the same."""
        if en == ja:
            return tag("span", *self.inline(en), classes=["pair"])
        return tag(
            "span",
            tag("span", *self.inline(en), classes=["en"]),
            tag("span", *self.inline(ja), classes=["ja", "language-ja"]),
            classes=["pair"],
        )

    def text(self, choice: Choice) -> Tag:
        if not choice.fill:
            return self.lines(choice.en, choice.ja)
        filled = [
            tag("span", nodes.Text(f"( {kana} ) "), nodes.literal(code, code))
            for kana, code in zip(KANA, choice.fill, strict=False)
        ]
        return tag("span", *filled, classes=["filled"])

    def choice(self, question: Question, index: int) -> Tag:
        button = f'<input type="radio" name="{question.id}" value="{index}">'
        return tag(
            "label",
            nodes.raw("", button, format="html"),
            tag("span", nodes.Text(POSITIONS[index]), classes=["letter"]),
            self.text(question.choices[index]),
            tag("span", classes=["told"], aria_hidden="true"),
        )

    def answer(self, question: Question) -> Tag:
        """Return the fold: the right choice, the reasons, what is contested, where."""
        right = POSITIONS[question.right]
        answer = tag(
            "details",
            tag("summary", *text_in_both("Answer and reasons", "解答と理由")),
            tag("p", *text_in_both(f"{right} is right.", f"正解は {right}。")),
            classes=["answer"],
        )
        for letter, choice in zip(POSITIONS, question.choices, strict=True):
            answer += tag(
                "p",
                tag("span", nodes.Text(letter), classes=["letter"]),
                self.lines(choice.why_en, choice.why_ja),
                classes=["reason", *["is-right"] * choice.right],
            )
        if question.contested_en:
            contested = self.blocks(question.contested_en, question.contested_ja)
            contested["classes"].append("contested")
            answer += contested
        where = self.places(self.file, question.id, [question.taught])
        answer += nodes.paragraph("", "", *where)
        return answer


def add_script(
    app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None
) -> None:
    """Load the script on the page that has the questions, and on no other."""
    if doctree and any("practice" in node["classes"] for node in doctree.findall(Tag)):
        app.add_js_file("practice.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("words")
    app.add_node(Tag, html=(open_tag, close_tag))
    app.add_directive("practice", Practice)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
