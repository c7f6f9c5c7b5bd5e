"""Glossary and conventions: files, their faults, what pages show, torch's facts.

What `checks` of conventions.toml and traps.toml may use: torch, nn, inspect and the
functions of `FACTS` below.
"""

import inspect
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

import repairs
import words
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from normbook.methods import METHODS

pytestmark = pytest.mark.slow

TERMS = """
["running mean"]
japanese = "移動平均"
reading = "いどうへいきん"
synonyms = ["moving average"]
synonyms_ja = ["移動統計"]
sentence = "The mean of a `channel`."
sentence_ja = "チャネルの`平均`。"
taught = ["lesson#two-modes", "lesson", "a-label"]

["mini-batch"]
japanese = "ミニバッチ"
sentence = "The samples of one step."
sentence_ja = "1ステップのサンプル。"
"""
CONVENTIONS = """
[versions]
pytorch = "2.13"
keras = "3.15.1"
flax = "0.12.8"

["momentum"]
methods = ["BN"]
pytorch = "of the **new** value, 0.1"
keras = "of the old value, 0.99"
flax = "of the old value, 0.98"
exam = "of the old value, 0.9"
beware = "The opposite."
checks = ["nn.BatchNorm2d(3).momentum == 0.1"]
taught = ["lesson#two-modes"]

["groups"]
methods = ["GN"]
pytorch = "required"
keras = "32"
flax = "32"
checks = ["True"]
"""
LESSON = """# Lesson

{word}`Running mean`, then {word}`moving averages`, {word}`移動平均`, and
{word}`batches <mini-batch>`.

(a-label)=
## Two modes

```{terms}
mini-batch

running mean
```

```{conventions}
:methods: GN
```
"""
GLOSSARY = """# Glossary

```{glossary-list}
```

## In Japanese order

```{japanese-index}
```

## Conventions

```{conventions}
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of small files of words, with the book's schemas."""
    folder = tmp_path / "words"
    folder.mkdir()
    for schema in words.FOLDER.glob("*.schema.json"):
        (folder / schema.name).write_bytes(schema.read_bytes())
    (folder / "terms.toml").write_text(TERMS, encoding="utf-8")
    (folder / "conventions.toml").write_text(CONVENTIONS, encoding="utf-8")
    return folder


@pytest.fixture
def build(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, str]]:
    """Build a small book; returns its output folder and what Sphinx warned of."""

    def run(lesson: str = LESSON, **replace: str) -> tuple[Path, str]:
        source = folder.parent
        (source / "book").mkdir()
        index = "# Book\n\n```{toctree}\nlesson\nbook/glossary\n```\n"
        pages = {"index": index, "lesson": lesson, "book/glossary": GLOSSARY}
        for name, text in pages.items():
            (source / name).with_suffix(".md").write_text(text, encoding="utf-8")
        for name, text in replace.items():
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        monkeypatch.setattr(words, "FOLDER", folder)
        warnings = io.StringIO()
        settings = {
            "extensions": ["myst_nb", "words"],
            "myst_heading_anchors": 3,
            "nitpicky": True,
        }
        with docutils_namespace():
            Sphinx(
                source, None, source / "out", source / "trees", "html",
                confoverrides=settings, status=None, warning=warnings,
            ).build()  # fmt: skip
        return source / "out", warnings.getvalue()

    return run


# ---------------------------------------------------------------- files and faults


def test_the_books_files_hold() -> None:
    terms = words.read_terms(words.FOLDER)
    versions, rows = words.read_conventions(words.FOLDER)
    assert len({term.id for term in terms.values()}) == len(
        {term.name for term in terms.values()}
    )  # two anchors of one name would be one
    assert versions["pytorch"] in torch.__version__
    assert {method for row in rows.values() for method in row.methods} <= set(METHODS)


SOUGHT = """
移動平均 順伝播 逆伝播 標準偏差 勾配消失 飽和 活性化関数 全結合層 汎化 汎化性能 表現力
残差接続 スタイル変換 パディング 不変性 推論 過学習 バッチノーマライゼーション
層正規化 内部共変量シフト 白色化 不偏分散 標本分散 モーメンタム 連鎖律 数値微分 外れ値
勾配累積 データ並列 勾配ペナルティ 畳み込み層 注意機構 ウォームアップ
ファインチューニング ドロップアウト メモリ帯域 四肢択一 空欄補充
"""


def test_what_a_candidate_looks_up_has_an_entry_and_a_place() -> None:
    terms = words.read_terms(words.FOLDER)
    for word in SOUGHT.split():
        # A gradient penalty is a warning that stands in the glossary alone.
        assert terms[words.normal(word)].taught or word == "勾配ペナルティ", word


FAULTS = [
    # what stands, what stands instead, what the error must say
    ('japanese = "ミニバッチ"\n', "", "'mini-batch', field 'japanese': missing"),
    ('sentence = "The samples', 'sentense = "The', "field 'sentence': missing"),
    ('sentence = "The samples', 'sentense = "The', "'sentense': did you mean 'senten"),
    ("いどうへいきん", "idou heikin", "'running mean', field 'reading': 'idou heikin'"),
    ('reading = "いどうへいきん"\n', "", "'reading': missing: write how '移動平均'"),
    ("ミニバッチ", 'ミニバッチ"\nreading="みにばっち', "in kana already: leave the"),
    ("移動平均", "移動平均(いどう)", "'japanese': '移動平均(いどう)': write the usual"),
    ("移動平均", "<ruby>移動</ruby>", "without ruby or brackets"),
    ("移動平均", "running mean", "'japanese': 'running mean': write the usual"),
    ("The samples of one step.", "", "'sentence': '': write one line of English"),
    ("サンプル。", "サンプル.", "'mini-batch', field 'sentence_ja':"),
    (
        '["moving average"]',
        '["mini-batch"]',
        "'mini-batch' is a name of 'running mean'",
    ),
    ('["moving average"]', '["running  MEAN"]', "'running  MEAN' is a name of"),
    ('["moving average"]', '["ma", "ma"]', "'synonyms': ['ma', 'ma']: list"),
    ('["moving average"]', '"moving average"', "'synonyms': 'moving average': list"),
    ('["moving average"]', "[]", "'running mean', field 'synonyms': []: list"),
    ('["移動統計"]', '["ミニバッチ"]', "'ミニバッチ' is a name of 'running mean'"),
    ('["mini-batch"]', '["running mean"]', 'entry ["running mean"]: Cannot declare'),
    ('reading = "い', 'japanese = "い', 'entry ["running mean"]: Cannot overwrite'),
    ('["mini-batch"]', '["<b>"]', "'<b>': its name: begin with a letter"),
    (
        '["lesson#two-modes", ',
        '["a page", ',
        "'running mean', field 'taught': 'a page'",
    ),
    ('"a-label"]', '""]', "'running mean', field 'taught': ''"),
    ('["running mean"]', 'a = 1\n["running mean"]', "entry 'a': 1: write a table"),
    (TERMS, "", "entry '(any)': none: add one"),
]


@pytest.mark.parametrize(("good", "bad", "said"), FAULTS)
def test_a_fault_is_named(folder: Path, good: str, bad: str, said: str) -> None:
    words.read_terms(folder)
    assert good in TERMS
    path = folder / "terms.toml"
    path.write_text(TERMS.replace(good, bad), encoding="utf-8")
    with pytest.raises(words.WordsError) as error:
        words.read_terms(folder)
    assert "words/terms.toml: entry " in str(error.value)
    assert said in str(error.value)


CONVENTION_FAULTS = [
    ('["BN"]', '["BM"]', "'momentum', field 'methods': no method 'BM': did you mean"),
    ('["BN"]', "[]", "'momentum', field 'methods': []"),
    ('"required"', '""', "'groups', field 'pytorch': '': write one line"),
    ('checks = ["True"]', "", "'groups', field 'checks': missing: list Python"),
    ("beware =", "bewere =", "'bewere': did you mean 'beware'?"),
    ('"3.15.1"', "3.15", "entry 'versions', field 'keras': 3.15: write the version"),
    ('flax = "0.12.8"', "", "entry 'versions', field 'flax': missing"),
    ("[versions]", "[version]", "entry 'versions': missing"),
    ('["groups"]', '["groups, G"]', "'groups, G': its name: leave out markup and com"),
]


@pytest.mark.parametrize(("good", "bad", "said"), CONVENTION_FAULTS)
def test_a_fault_of_conventions(folder: Path, good: str, bad: str, said: str) -> None:
    words.read_conventions(folder)
    assert good in CONVENTIONS
    path = folder / "conventions.toml"
    path.write_text(CONVENTIONS.replace(good, bad), encoding="utf-8")
    with pytest.raises(words.WordsError) as error:
        words.read_conventions(folder)
    assert "words/conventions.toml: entry " in str(error.value)
    assert said in str(error.value)


def test_every_fault_is_told_at_once_and_utf8_is_asked_for(folder: Path) -> None:
    path = folder / "terms.toml"
    path.write_text(TERMS.replace("sentence", "says"), encoding="utf-8")
    with pytest.raises(words.WordsError) as error:
        words.read_terms(folder)
    assert str(error.value).count("words/terms.toml: entry") == 6
    path.write_bytes(TERMS.encode("shift_jis"))
    with pytest.raises(words.WordsError, match="Save the file as UTF-8"):
        words.read_terms(folder)


def test_a_fault_stops_the_build(build: Callable[..., tuple[Path, str]]) -> None:
    with pytest.raises(words.WordsError, match="'running mean', field 'reading'"):
        build(terms=TERMS.replace("いどう", "idou"))


def test_japanese_order() -> None:
    def term(name: str, reading: str = "") -> words.Term:
        return words.Term(name, name, "", "", reading)

    ordered = [
        term("移動", "いどう"), term("学習", "がくしゅう"), term("クラス"),
        term("バッチ"), term("パディング"), term("分散", "ぶんさん"), term("ヤコビ"),
    ]  # fmt: skip
    assert sorted(set(ordered), key=words.gojuon) == ordered
    assert [words.gojuon(t)[1] for t in ordered] == list("あかかはははや")


# ---------------------------------------------------------------- what pages show


def test_a_word_links_and_shows_its_japanese_once(
    build: Callable[..., tuple[Path, str]],
) -> None:
    out, warnings = build()
    assert warnings == ""
    page = (out / "lesson.html").read_text(encoding="utf-8")
    paragraph = re.search(r"<p>(<a class=\"word.*?)</p>", page, re.DOTALL)
    assert paragraph

    def link(name: str, text: str) -> str:
        place = f"book/glossary.html#term-{name}"
        return f'<a class="word reference internal" href="{place}">{text}</a>'

    assert paragraph[1].replace("\n", " ") == (
        f'{link("running-mean", "Running mean")} (<span lang="ja">移動平均</span>), '
        f"then {link('running-mean', 'moving averages')}, "
        f"{link('running-mean', '移動平均')}, and "
        f'{link("mini-batch", "batches")} (<span lang="ja">ミニバッチ</span>).'
    )


def test_tables_and_glossary(build: Callable[..., tuple[Path, str]]) -> None:
    out, warnings = build()
    assert warnings == ""
    lesson = (out / "lesson.html").read_text(encoding="utf-8")
    terms, conventions = re.findall(r"<table.*?</table>", lesson, re.DOTALL)
    assert terms.count("<tr") == 3
    assert terms.index("term-mini-batch") < terms.index("term-running-mean")
    assert '<span class="reading" lang="ja">（いどうへいきん）</span>' in terms
    assert "momentum" not in conventions
    assert "<td><p>32</p></td>" in conventions  # Keras and Flax alike: once
    assert "<td><p>–</p></td>" in conventions  # the exam has no groups
    page = (out / "book/glossary.html").read_text(encoding="utf-8")
    assert page.index('<dt id="term-mini-batch">') < page.index('id="term-running-mean')
    assert '<p lang="ja">チャネルの<code' in page
    assert 'Also moving average, <span lang="ja">移動統計</span>.' in page
    assert (
        'See <a class="reference internal" href="../lesson.html#two-modes">Lesson: Two '
        'modes</a>, <a class="reference internal" href="../lesson.html">Lesson</a>, <a '
        'class="reference internal" href="../lesson.html#a-label">Two modes</a>.'
    ) in page
    order = page[page.index("japanese-index") :]
    assert order.index("移動平均") < order.index("ミニバッチ")
    assert "Keras: of the old value, 0.99; Flax: of the old value, 0.98" in order
    assert "of the <strong>new</strong> value, 0.1" in order
    assert "PyTorch 2.13" in order
    # What is marked as Japanese is not marked again.
    assert not list(repairs.in_japanese(BeautifulSoup(page, "html.parser")))


@pytest.mark.parametrize(
    ("lesson", "said"),
    [
        (
            "{word}`runing mean`",
            "no term 'runing mean' in book/words/terms.toml: did y",
        ),
        ("{word}`runing mean`", "did you mean 'running mean'? Or add an entry."),
        ("{word}`a <zzz>`", "known: mini-batch, moving average, running mean, ミニ"),
        ("```{terms}\nrunning mode\n```", "did you mean 'running mean'?"),
        ("```{terms}\n```", "terms: name at least one term, one a line"),
        ("```{glossary-list}\n```", "glossary-list belongs on the page book/glossary"),
        ("```{conventions}\n:methods: LM\n```", "no 'LM': did you mean 'LN'?"),
        ("```{conventions}\n:rows: group\n```", "no 'group': did you mean 'groups'?"),
        (
            "```{conventions}\n:rows: groups\n:methods: BN\n```",
            "no row is of both these methods and rows",
        ),
    ],
)
def test_an_unknown_word_fails_the_build(
    build: Callable[..., tuple[Path, str]], lesson: str, said: str
) -> None:
    anchors = "\n\n(a-label)=\n## Two modes\n"
    _, warnings = build(lesson=f"# Lesson\n\n{lesson}{anchors}")
    assert "lesson.md:3: ERROR" in warnings  # -W makes it an error of the build
    assert said in warnings


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("lesson#two-mode", "did you mean 'lesson#two-modes'?"),
        ("lessen", "did you mean 'lesson'?"),
        ("no-label", "did you mean 'a-label'?"),
    ],
)
def test_a_place_that_does_not_exist_fails_the_build(
    build: Callable[..., tuple[Path, str]], target: str, said: str
) -> None:
    _, warnings = build(terms=TERMS.replace('"a-label"', f'"{target}"'))
    assert (
        "WARNING: words/terms.toml: entry 'running mean', field 'taught': no page, "
        f"heading or label {target!r}: {said}"
    ) in warnings
    assert warnings.count("WARNING") == 1


# ---------------------------------------------------------------- torch's facts


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def after(layer: nn.Module, values: Any) -> nn.Module:
    """The layer after one training batch."""
    layer(tensor(values))
    return layer


def close(left: Any, right: Any) -> bool:
    return torch.allclose(*torch.broadcast_tensors(tensor(left), tensor(right)), 1e-5)


def error(call: Callable[[Any], object], argument: Any) -> str:
    """The name of the error that a call raises, or ""."""
    try:
        call(argument)
    except Exception as raised:
        return type(raised).__name__
    return ""


def names(members: Callable[[], Any]) -> list[str]:
    """What a layer calls its parameters or buffers."""
    layer = members.__self__  # type: ignore[attr-defined]
    return [name for name, _ in getattr(layer, f"named_{members.__name__}")()]


def drift(layer: nn.Module, mean: float) -> float:
    """The largest error in float32 on rows of this mean and deviation 1."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) + mean
    exact = x.double() - x.double().mean(-1, keepdim=True)
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return (layer(x) - exact).abs().max().item()


def gradient(layer: nn.Module, values: Any, dy: Any) -> torch.Tensor:
    """The gradient at the layer's input."""
    x = tensor(values).requires_grad_()
    return torch.autograd.grad(layer(x), x, tensor(dy))[0]


def ramp(*shape: int) -> torch.Tensor:
    """The squares 0, 1, 4, ... in this shape."""
    return torch.arange(math.prod(shape)).float().square().reshape(shape)


FACTS = {
    "torch": torch, "nn": nn, "inspect": inspect, "tensor": tensor, "after": after,
    "close": close, "error": error, "names": names, "drift": drift,
    "gradient": gradient, "ramp": ramp,
}  # fmt: skip
ROWS = words.read_conventions(words.FOLDER)[1]


@pytest.mark.parametrize(
    ("name", "check"), [(name, c) for name, row in ROWS.items() for c in row.checks]
)
def test_torch_does_what_the_conventions_say(name: str, check: str) -> None:
    torch.manual_seed(0)
    assert bool(eval(check, FACTS)), f"{name}: {check}"


TRAPS = words.read_file(words.FOLDER / "traps.toml")


@pytest.mark.parametrize(
    ("name", "check"), [(name, c) for name, row in TRAPS.items() for c in row["checks"]]
)
def test_torch_does_what_the_traps_say(name: str, check: str) -> None:
    torch.manual_seed(0)
    assert bool(eval(check, FACTS)), f"{name}: {check}"


@pytest.mark.parametrize("name", ROWS)
def test_every_number_and_name_of_torchs_column_is_checked(name: str) -> None:
    row = ROWS[name]
    checks = " ".join(row.checks)
    number = r"(?<![\w.^])\d[\d.]*(?:e-\d+)?(?![\d/])"
    for value in re.findall(number, re.sub(r"\(N[^)]*\)", "", row.pytorch)):
        assert re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.])", checks), value
    for code in re.findall(r"`([^`]+)`", row.pytorch):
        assert code.strip("()") in checks or code in dir(nn.LayerNorm(1)), code
