"""Questions for exam practice, as `book/words/practice.toml` holds them.

`load` reads the file and holds it against its schema and the rules that a schema cannot
say. A fault names file, question, choice and field, and how to mend it.
"""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import words

FILE = words.FOLDER / "practice.toml"
POSITIONS = "ABCD"
KANA = "アイウエオ"
BLANK = re.compile(r"\( ([ア-オ]) \)")
MAX_LINES = 24
MAX_COLUMNS = 72


class Choice(NamedTuple):
    """One of four. `value` is None and `mistake` "" where nothing is computed."""

    en: str
    ja: str
    why_en: str
    why_ja: str
    right: bool = False
    fill: tuple[str, ...] = ()
    value: Any = None
    mistake: str = ""


class Question(NamedTuple):
    """A question and its four choices in the order of the page, A to D.

    What is left out in the file is "". `given` runs before the code of a blanks
    question and `result` is what the filled code is judged by; neither is shown.
    """

    id: str
    chapter: int
    level: int
    kind: str
    en: str
    ja: str
    taught: str
    choices: tuple[Choice, ...]
    code: str = ""
    given: str = ""
    result: str = ""
    computed: str = ""
    contested_en: str = ""
    contested_ja: str = ""

    @property
    def anchor(self) -> str:
        """The anchor on the page: practice-bn-axes-of-images."""
        return f"practice-{self.id}"

    @property
    def right(self) -> int:
        """The position of the right choice, 0 to 3."""
        return next(i for i, choice in enumerate(self.choices) if choice.right)

    def filled(self, choice: Choice) -> str:
        """The code with a choice's expressions in its blanks, bracketed."""
        return BLANK.sub(lambda m: f"({choice.fill[KANA.index(m[1])]})", self.code)


def load(path: Path = FILE) -> list[Question]:
    """Return every question in the order of the file.

    Raises WordsError, one fault a line, each with question, choice, field and cure.
    """
    data = words.read_toml(path, entry=r"id *= *(.*)")
    schema = json.loads(path.with_suffix(".schema.json").read_text(encoding="utf-8"))
    words.stop(path, _schema_faults(data, schema))
    questions = [_question(table) for table in data["question"]]
    ids = Counter(question.id for question in questions)
    faults = [
        f"question {name!r}, field 'id': given {number} times: give each its own"
        for name, number in ids.items()
        if number > 1
    ]
    words.stop(path, faults + [f for question in questions for f in _faults(question)])
    return questions


def _question(table: dict[str, Any]) -> Question:
    choices = tuple(_choice(choice) for choice in table.pop("choice"))
    return Question(choices=choices, **table)


def _choice(table: dict[str, Any]) -> Choice:
    both = table.pop("both", "")
    fill = tuple(table.get("fill", ()))
    if fill:
        both = ", ".join(f"({k}) `{code}`" for k, code in zip(KANA, fill, strict=False))
    if both:
        table |= {"en": both, "ja": both}
    return Choice(**table | {"fill": fill})


# ------------------------------------------------------------------ faults


def _where(data: dict[str, Any], path: list[Any], field: str) -> str:
    """Return "question 'bn-axes', choice B, field 'why_en'", as far as a path goes."""
    if len(path) < 2:
        return f"field {field!r}" if field else "file"
    table = data["question"][path[1]]
    name = table.get("id", "") if isinstance(table, dict) else ""
    where = f"question {name!r}" if name else f"question number {path[1] + 1}"
    if len(path) > 3 and path[2] == "choice":
        where += f", choice {POSITIONS[path[3]] if path[3] < 4 else path[3] + 1}"
    return where + (f", field {field!r}" if field else "")


def _schema_faults(data: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return place, fault and cure, wherever a file breaks its schema."""
    fields = schema["properties"]["question"]["items"]["properties"]
    choice_fields = fields["choice"]["items"]["properties"]
    faults = []
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(data), key=lambda e: list(e.path)):
        path = list(error.absolute_path)
        rules = schema["properties"] | fields
        if len(path) > 3 and path[2] == "choice":
            rules = choice_fields
        named = [part for part in path if isinstance(part, str) and part in rules]
        field = named[-1] if len(path) not in (2, 4) and named else ""
        what = repr(error.instance)
        if error.validator in ("required", "dependentRequired"):
            quoted = re.findall(r"'(\w+)'", error.message)
            field, what = quoted[0], "missing"
        elif error.validator == "additionalProperties":
            names = sorted(set(error.instance) - set(error.schema["properties"]))
            cure = words.nearest(names[0], error.schema["properties"])
            unknown = f"unknown field {', '.join(map(repr, names))}"
            faults.append(f"{_where(data, path, '')}: {unknown}: {cure}")
            continue
        elif error.validator == "oneOf":
            field, what = "both", "none or several of en and ja, both, fill"
        elif error.validator in ("minItems", "maxItems"):
            what = f"{len(error.instance)} of them"
        cure = rules.get(field, {}).get("description", "write a table of fields")
        faults.append(f"{_where(data, path, field)}: {what}: {cure}")
    return faults


def _faults(question: Question) -> list[str]:
    """Return what a schema cannot say."""
    faults: list[str] = []

    def fault(field: str, what: str, choice: int | None = None) -> None:
        at = "" if choice is None else f", choice {POSITIONS[choice]}"
        faults.append(f"question {question.id!r}{at}, field {field!r}: {what}")

    right = sum(choice.right for choice in question.choices)
    if right != 1:
        fault("right", f"true in {right} choices: write right = true in one of them")
    for text, number in Counter(choice.en for choice in question.choices).items():
        if number > 1:
            fault("choice", f"{text!r} stands {number} times: make the choices differ")
    lines = question.code.splitlines()
    if len(lines) > MAX_LINES or any(len(line) > MAX_COLUMNS for line in lines):
        fault("code", f"keep to {MAX_LINES} lines of {MAX_COLUMNS} columns")
    blanks = list(dict.fromkeys(BLANK.findall(question.code)))
    if blanks != list(KANA[: len(blanks)]) or bool(blanks) != (
        question.kind == "blanks"
    ):
        fault(
            "code",
            f"blanks {', '.join(blanks) or 'none'}: in a blanks question write "
            "( ア ), ( イ ), … in this order, in any other none",
        )
    if question.result and question.kind != "blanks":
        fault("result", "only in a blanks question: leave it out")
    for number, choice in enumerate(question.choices):
        if question.kind == "blanks":
            if len(choice.fill) != len(blanks):
                fault("fill", f"fill {len(blanks)} blanks, ア first", number)
            if choice.value is not None:
                fault("value", "leave it out: the filled code is run", number)
        elif choice.fill:
            fault("fill", "only in a blanks question: write both", number)
        elif choice.right and (choice.value is None) != (not question.computed):
            fault("value", "write value and computed, or neither", number)
        elif not choice.right and (choice.value is None) != (not choice.mistake):
            fault("value", "write value and mistake, or neither", number)
        if choice.right and choice.mistake:
            fault("mistake", "the right choice has none: leave it out", number)
        for field, codes in (("fill", choice.fill), ("mistake", [choice.mistake])):
            for code in filter(None, codes):
                if not _is_expression(code):
                    fault(field, f"{code!r} is no Python expression: fix it", number)
    for field in ("computed", "result"):
        code = getattr(question, field)
        if code and not _is_expression(code):
            fault(field, f"{code!r} is no Python expression: fix it")
    return faults


def _is_expression(code: str) -> bool:
    try:
        ast.parse(code, mode="eval")
    except SyntaxError:
        return False
    return True
