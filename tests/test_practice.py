"""The practice questions: their file, its faults, every answer that can be computed."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("sphinx")

import practice_data
import words
from myst_parser.mdit_to_docutils.base import default_slugify
from practice_data import BLANK, POSITIONS, Choice, Question

from normbook import core, functional

ROOT = Path(__file__).parents[1]
QUESTIONS = practice_data.load()
each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)

# ---------------------------------------------------------------- answers


def gradient(function: Callable[..., Any], x: Any, dy: Any) -> torch.Tensor:
    """Torch's gradient at x, in float64, where that of the output is dy."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(
        function(at), at, torch.as_tensor(dy, dtype=torch.float64)
    )[0]


def names(question: Question) -> dict[str, Any]:
    """What the expressions of a question may use."""
    torch.manual_seed(0)
    known: dict[str, Any] = {
        "np": np, "torch": torch, "nn": nn, "F": F, "core": core,
        "functional": functional, "gradient": gradient,
        "rng": np.random.default_rng(0),
    }  # fmt: skip
    exec(question.given, known)
    return known


def numbers(value: Any) -> list[float]:
    """The numbers of a value, of an array, or of a nest of them."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in numbers(part)]
    return np.ravel(value).tolist()


def equal(left: Any, right: Any) -> bool:
    """Whether two values agree; texts and truths only with their own kind."""
    for kind in (str, (bool, np.bool_)):
        if isinstance(left, kind) or isinstance(right, kind):
            return isinstance(left, kind) and isinstance(right, kind) and left == right
    a, b = numbers(left), numbers(right)
    return len(a) == len(b) and np.allclose(a, b, 1e-6, 1e-9, equal_nan=True)


def outcome(question: Question, choice: Choice) -> Any:
    """The result of the code with a choice's filling, or the name of its error."""
    known = names(question)
    try:
        exec(question.filled(choice), known)
        return eval(question.result, known)
    except Exception as error:
        return type(error).__name__


def wrong_answers(question: Question) -> list[str]:
    """Choices whose value, or filled code, is not what the question says of it."""
    if not question.computed:
        return []
    with np.errstate(all="ignore"):  # mistakes divide by zero
        right = eval(question.computed, names(question))
        faults = []
        for position, choice in zip(POSITIONS, question.choices, strict=True):
            value = choice.value
            if question.kind == "blanks":
                value = outcome(question, choice)
            if value is not None and equal(value, right) != choice.right:
                faults.append(f"{position}: {value}, while right is {right}")
            if choice.mistake:
                mistake = eval(choice.mistake, names(question))
                if not equal(value, mistake):
                    faults.append(f"{position}: {value}, the mistake gives {mistake}")
    return faults


@each_question
def test_the_right_choice_is_right_and_each_mistake_gives_its_own(
    question: Question,
) -> None:
    assert wrong_answers(question) == []


@pytest.mark.slow
@each_question
def test_an_exchanged_answer_is_caught(question: Question) -> None:
    """Each wrong choice in turn is called the right one, and the right one wrong."""
    if not question.computed:
        return
    right = question.right
    for position, choice in enumerate(question.choices):
        if choice.right or (choice.value is None and question.kind == "choice"):
            continue
        choices = list(question.choices)
        choices[position] = choice._replace(right=True)
        choices[right] = choices[right]._replace(right=False)
        assert wrong_answers(question._replace(choices=tuple(choices)))


@pytest.mark.slow
@each_question
def test_a_changed_value_and_a_changed_mistake_are_caught(question: Question) -> None:
    for position, choice in enumerate(question.choices):
        changed = []
        if isinstance(choice.value, bool):
            changed.append(choice._replace(value=not choice.value))
        elif choice.value is not None:
            moved = (np.nan_to_num(choice.value) * 1.1 + 0.1).tolist()
            changed.append(choice._replace(value=moved))
        if choice.mistake:
            changed.append(choice._replace(mistake="'another'"))
        for other in changed:
            choices = list(question.choices)
            choices[position] = other
            assert wrong_answers(question._replace(choices=tuple(choices)))


def shown(text: str) -> list[str]:
    """The numbers of a text as it writes them, with a plain minus."""
    return re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("−", "-"))


def rounded(text: str, value: float) -> bool:
    """Whether a text is a number rounded to the digits that it shows."""
    decimals = len(text.partition(".")[2])
    exact = "e" in text or abs(float(text) - value) <= 0.500001 * 10.0**-decimals
    return exact and ("e" not in text or np.isclose(float(text), value))


def test_a_choice_shows_its_value() -> None:
    for choice in (choice for question in QUESTIONS for choice in question.choices):
        values = [] if choice.value is None else numbers(choice.value)
        if values and not isinstance(choice.value, bool) and choice.en != "nan":
            assert choice.en == choice.ja
            assert len(shown(choice.en)) == len(values), choice
            assert all(map(rounded, shown(choice.en), values)), choice


def test_no_two_choices_have_one_value() -> None:
    for question in QUESTIONS:
        values = [c.value for c in question.choices if not isinstance(c.value, bool)]
        for one, other in combinations([v for v in values if v is not None], 2):
            assert not equal(one, other), question.id


def test_rounding_is_told_from_cutting() -> None:
    assert rounded("1.57", 1.5666667)
    assert not rounded("1.56", 1.5666667)
    assert rounded("1e-3", 0.001)
    assert not rounded("1e-3", 0.002)
    assert shown("`momentum=0.02, eps=1e-3`, −1.50") == ["0.02", "1e-3", "-1.50"]


# ---------------------------------------------------------------- the questions


def test_there_are_enough_of_every_chapter_and_kind() -> None:
    chapters = Counter(question.chapter for question in QUESTIONS)
    least = {1: 8, 2: 14, 3: 7, 4: 5, 5: 6}
    assert all(chapters[chapter] >= number for chapter, number in least.items())
    assert chapters[6] + chapters[7] >= 4
    assert sum(question.kind == "blanks" for question in QUESTIONS) >= 10
    assert {question.level for question in QUESTIONS} == {1, 2, 3}
    assert [q.chapter for q in QUESTIONS] == sorted(q.chapter for q in QUESTIONS)


def test_no_position_and_no_length_gives_the_answer_away() -> None:
    positions = Counter(question.right for question in QUESTIONS)
    assert all(0.2 <= positions[i] / len(QUESTIONS) <= 0.3 for i in range(4))
    right = "".join(POSITIONS[question.right] for question in QUESTIONS)
    assert not re.search(r"(.)\1\1", right), right
    in_words = [q for q in QUESTIONS if q.choices[0].en != q.choices[0].ja]
    for text in ("en", "ja"):
        longest = [
            max(q.choices, key=lambda choice: len(getattr(choice, text))).right
            for q in in_words
        ]
        assert sum(longest) <= len(longest) / 2


def test_the_exams_own_variables_stand_in_code_with_blanks() -> None:
    code = "\n".join(question.code for question in QUESTIONS if question.code)
    assert {"xc", "xn", "std", "dxn", "dxc", "dstd", "dvar", "dmu", "dout"} <= set(
        re.findall(r"\w+", code)
    )
    assert all(BLANK.search(q.code) for q in QUESTIONS if q.code)


def test_what_is_contested_is_said() -> None:
    """Where internal covariate shift is asked about or given as a reason."""
    for question in QUESTIONS:
        right = question.choices[question.right]
        text = question.ja + right.ja + right.why_ja
        if "内部共変量シフト" in text:
            assert "内部共変量シフト" in question.contested_ja
    assert sum(bool(question.contested_en) for question in QUESTIONS) >= 5


def test_where_it_is_taught_exists() -> None:
    texts = {}
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        texts[name] = "\n".join("".join(cell["source"]) for cell in cells)
    for question in QUESTIONS:
        page, _, heading = question.taught.partition("#")
        if page not in texts:
            label = f"({page})=\n"
            assert any(label in text for text in texts.values()), question.id
        elif heading:
            headings = re.findall(r"^#+ +(.+)$", texts[page], re.MULTILINE)
            assert heading in map(default_slugify, headings), question.id


def test_the_texts_are_of_their_language() -> None:
    for question in QUESTIONS:
        pairs = [(question.en, question.ja)]
        pairs += [(question.contested_en, question.contested_ja)]
        pairs += [(c.why_en, c.why_ja) for c in question.choices]
        pairs += [(c.en, c.ja) for c in question.choices if c.en != c.ja]
        for english, japanese in pairs:
            assert not re.search("[ぁ-ヺ一-鿿]", BLANK.sub("", english)), english
            assert not re.search("です|ます|[（），．！？：　]", japanese), japanese
        assert question.ja.endswith(("か。", "する。")), question.ja
        assert question.en.endswith(("?", ".")), question.en


# ---------------------------------------------------------------- faults of the file

SMALL = '''
[[question]]
id = "a-sum"
chapter = 1
level = 1
kind = "choice"
en = "What is 1 + 1?"
ja = "1 + 1 はいくらか。"
computed = "1 + 1"
taught = "notebooks/01_one_idea"

[[question.choice]]
both = "2"
right = true
value = 2
why_en = "So it is."
why_ja = "そのとおり。"

[[question.choice]]
both = "1"
value = 1
mistake = "1 * 1"
why_en = "Multiplied."
why_ja = "掛けている。"

[[question.choice]]
both = "0"
value = 0
mistake = "1 - 1"
why_en = "Subtracted."
why_ja = "引いている。"

[[question.choice]]
en = "eleven"
ja = "十一"
why_en = "Written side by side."
why_ja = "並べて書いている。"

[[question]]
id = "a-mean"
chapter = 2
level = 3
kind = "blanks"
en = "Fill ( ア ) and ( イ )."
ja = "( ア )( イ ) に当てはまるものはどれか。"
code = """
def mean(x):
    return ( ア ) / ( イ )
"""
given = "x = [1, 3]"
result = "mean(x)"
computed = "2"
taught = "notebooks/02_batch_norm#build-it"
contested_en = "Nobody contests this."
contested_ja = "異論はない。"

[[question.choice]]
fill = ["sum(x)", "len(x)"]
right = true
why_en = "So it is."
why_ja = "そのとおり。"

[[question.choice]]
fill = ["len(x)", "sum(x)"]
mistake = "2 / 4"
why_en = "Turned."
why_ja = "逆である。"

[[question.choice]]
fill = ["max(x)", "len(x)"]
why_en = "The largest."
why_ja = "最大値である。"

[[question.choice]]
fill = ["sum(x)", "x"]
mistake = "'TypeError'"
why_en = "By a list."
why_ja = "リストで割っている。"
'''


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file of two questions, with the book's schema beside it."""
    schema = practice_data.FILE.with_suffix(".schema.json")
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / schema.name).write_bytes(schema.read_bytes())
    path = folder / "practice.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_a_small_file_is_read(path: Path) -> None:
    one, two = practice_data.load(path)
    assert (one.anchor, one.right, one.choices[1].value) == ("practice-a-sum", 0, 1)
    assert one.choices[0].en == one.choices[0].ja == "2"
    assert one.choices[3].ja == "十一"
    assert two.choices[1].en == two.choices[1].ja == "(ア) `len(x)`, (イ) `sum(x)`"
    assert two.filled(two.choices[1]) == (
        "def mean(x):\n    return (len(x)) / (sum(x))\n"
    )
    assert wrong_answers(one) == wrong_answers(two) == []
    assert [outcome(two, choice) for choice in two.choices] == [
        2,
        0.5,
        1.5,
        "TypeError",
    ]


FAULTS = [
    # what stands, what stands instead, what the error must say
    ('id = "a-sum"', 'id = "A sum"', "question 'A sum', field 'id': 'A sum': write sm"),
    ('id = "a-sum"\n', "", "question number 1, field 'id': missing: write small"),
    ('id = "a-mean"', 'id = "a-sum"', "question 'a-sum', field 'id': given 2 times"),
    ("chapter = 1", "chapter = 8", "question 'a-sum', field 'chapter': 8: write the n"),
    ("chapter = 1\n", "", "question 'a-sum', field 'chapter': missing: write the num"),
    ("level = 3", "level = 4", "question 'a-mean', field 'level': 4: write 1 to recal"),
    ('"choice"', '"chioce"', "question 'a-sum', field 'kind': 'chioce': write \"choi"),
    ("はいくらか。", "", "question 'a-sum', field 'ja': '1 + 1 ': write the question "),
    ("computed", "compute", "question 'a-sum': unknown field 'compute': did you mean "),
    ('computed = "1 + 1"', "", "'a-sum', choice A, field 'value': write value and com"),
    ('computed = "1 + 1"', 'computed = "1 +"', "'computed': '1 +' is no Python expre"),
    ('"notebooks/01', '"note books/01', "question 'a-sum', field 'taught': 'note book"),
    ("right = true\nvalue = 2", "value = 2", "field 'right': true in 0 choices: write"),
    ('both = "1"', 'both = "1"\nright = true', "field 'right': true in 2 choices: wri"),
    ('both = "1"', 'both = "1"\nright = false', "choice B, field 'right': False: writ"),
    ('both = "1"', 'both = "2"', "question 'a-sum', field 'choice': '2' stands 2 time"),
    ('both = "1"', "", "question 'a-sum', choice B, field 'both': none or several"),
    ('both = "1"', 'both = "1"\nen = "1"\nja = "一"', "choice B, field 'both': none o"),
    ('both = "1"', 'both = ""', "question 'a-sum', choice B, field 'both': '': write"),
    ('both = "1"', 'fill = ["1"]', "choice B, field 'fill': only in a blanks question"),
    ('ja = "十一"', "", "question 'a-sum', choice D, field 'ja': missing: write en an"),
    ('mistake = "1 * 1"\n', "", "choice B, field 'value': write value and mistake"),
    ('mistake = "1 * 1"', 'mistake = "1 *"', "choice B, field 'mistake': '1 *' is no"),
    ("value = 1\n", "", "question 'a-sum', choice B, field 'value': write value and m"),
    ("value = 2", "value = 2\nmistake = '2'", "choice A, field 'mistake': the right"),
    ('why_en = "Multiplied."\n', "", "choice B, field 'why_en': missing: write one or"),
    ('"Multiplied."', '"Multiplied"', "'a-sum', choice B, field 'why_en': 'Multiplied"),
    ('"掛けている。"', '"掛けている"', "'a-sum', choice B, field 'why_ja': '掛けてい"),
    ('why_ja = "掛', 'why_jp = "掛', "choice B: unknown field 'why_jp': did you mean "),
    ('code = """', 'cod = """', "'a-mean', field 'code': missing: write Python of at"),
    ("( ア ) /", "sum(x) /", "'a-mean', field 'code': blanks イ: in a blanks question"),
    ('kind = "choice"', 'kind = "choice"\ncode = "( ア )"', "'code': blanks ア: in a "),
    ("return (", f"return {'1 + ' * 20}(", "field 'code': keep to 24 lines of 72 col"),
    ('given = "x = [1, 3]"\n', "", "'a-mean', field 'given': missing: write the Pyth"),
    ('result = "mean(x)"\n', "", "'a-mean', field 'result': missing: in a blanks que"),
    ('level = 1', 'level = 1\nresult = "2"', "question 'a-sum', field 'result': only "),
    ('result = "mean(x)"', 'result = "mean(x"', "field 'result': 'mean(x' is no Pyth"),
    ('contested_ja = "異論はない。"', "", "'a-mean', field 'contested_ja': missing: w"),
    ('["max(x)", "len(x)"]', '["max(x)"]', "choice C, field 'fill': fill 2 blanks, ア"),
    ('["max(x)", "len(x)"]', '["max(x", "1"]', "choice C, field 'fill': 'max(x' is no"),
    ('["max(x)", "len(x)"]', '[]', "question 'a-mean', choice C, field 'fill': 0 of"),
    ('fill = ["max(x)"', 'value = 3\nfill = ["max(x)"', "choice C, field 'value': lea"),
    ('[[question.choice]]\nfill = ["max(x)"', 'fill = ["max(x)"', "Cannot overwrite"),
    (SMALL[SMALL.rindex("[[question.choice]]") :], "", "field 'choice': 3 of them: wr"),
    (SMALL, "", "words/practice.toml: field 'question': missing: write at least one"),
    (SMALL, "question = []", "field 'question': 0 of them: write at least one [[que"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "said"), FAULTS)
def test_a_fault_is_named(path: Path, good: str, bad: str, said: str) -> None:
    assert good in SMALL
    path.write_text(SMALL.replace(good, bad, 1), encoding="utf-8")
    with pytest.raises(words.WordsError) as error:
        practice_data.load(path)
    assert str(error.value).startswith("words/practice.toml: ")
    assert said in str(error.value)


def test_a_fault_of_toml_names_the_question_above_it(path: Path) -> None:
    path.write_text(SMALL.replace('result = "mean(x)"', "result ="), encoding="utf-8")
    with pytest.raises(words.WordsError, match='toml: entry "a-mean": Invalid value'):
        practice_data.load(path)


def test_all_faults_are_told_at_once(path: Path) -> None:
    path.write_text(SMALL.replace("level", "lvl"), encoding="utf-8")
    with pytest.raises(words.WordsError) as error:
        practice_data.load(path)
    assert str(error.value).count("words/practice.toml: question") == 4
