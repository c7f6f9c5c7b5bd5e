"""Change core.py in one place at a time and count the tests that notice.

    python tests/mutate_core.py

Every operator, comparison, number and keyword, every order of arguments and results,
every conditional, every call that could be left out, every S without its mask or its
workers. One line a change; it fails if one goes unnoticed that is not in EQUIVALENT.
"""

import ast
import copy
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy  # noqa: F401  imported once, before the forks
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).parents[1]
CORE = ROOT / "src" / "normbook" / "core.py"
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
# A change that so many tests notice is counted no further.
MOST = 25
# Changes that change nothing, each with the reason.
EQUIVALENT = {
    "only: x + 0 → x - 0": "both copy x",
    "count: max(1, prod([x.shape[axis] for axis in axes])) → "
    "max(prod([x.shape[axis] for axis in axes]), 1)": "the same two numbers",
    # Of its two, only x.shape[axis] != -1 goes unnoticed.
    "sum_to: 1 → -1": "summing an axis of one value changes nothing",
    "count: x != x → x == x": "a nan spoils its set, whatever m is",
    "total: S → Set.of(S)._replace(where=None)": "its first S is read for the axes",
    # Of each function's S, only that of `only` goes unnoticed.
    **{
        f"{function}: S → Set.of(S)._replace(workers=None)": "`only` asks no worker"
        for function in ("only", "total", "center", "rescale", "rescale_vjp")
    },
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every way to change this node itself."""
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
            if isinstance(op, ast.Sub | ast.Div | ast.Pow):
                yield _with(node, left=node.right, right=node.left)
            yield node.left
            yield node.right
        case ast.BoolOp(op=op):
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.Compare(ops=[op]):
            yield _with(node, ops=[OPERATORS[type(op)]()])
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
            yield ast.Constant(-node.value or -1)
        case ast.IfExp():
            yield _with(node, body=node.orelse, orelse=node.body)
            yield node.body
            yield node.orelse
        case ast.Tuple(elts=[_, _, *_]):
            yield _with(node, elts=node.elts[::-1])
        case ast.Call(args=[first, *rest]):
            yield first  # the call left out
            if rest:
                yield _with(node, args=[rest[0], first, *rest[1:]])
            for keyword in node.keywords:
                others = [k for k in node.keywords if k is not keyword]
                yield _with(node, keywords=others)
        case ast.Name(id="S"):
            for part in ("where", "workers"):
                yield ast.parse(f"Set.of(S)._replace({part}=None)", mode="eval").body
        case ast.Name(id="dy"):
            yield ast.Name("y", ast.Load())
        case ast.Name(id="y"):
            yield ast.Name("dy", ast.Load())


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def variants(statement: ast.AST) -> Iterator[str]:
    """Change the statement in one place at a time; say before → after each time.

    It is as it was again once the next variant is asked for.
    """
    for parent in ast.walk(statement):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "ctx"):
                continue
            children = value if isinstance(value, list) else [value]
            for place, child in enumerate(children):
                loaded = getattr(child, "ctx", None)
                if not isinstance(child, ast.expr) or isinstance(loaded, ast.Store):
                    continue
                for changed in changes(child):
                    title = f"{ast.unparse(child)} → {ast.unparse(changed)}"
                    _put(parent, field, value, place, changed)
                    yield title
                    _put(parent, field, value, place, child)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the whole changed source) for every change."""
    tree = ast.parse(source)
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in function.body:
            for title in variants(statement):
                text = ast.unparse(ast.fix_missing_locations(tree))
                yield f"{function.name}: {title}", text


def _put(parent: ast.AST, field: str, value: object, place: int, node: object) -> None:
    if isinstance(value, list):
        value[place] = node
    else:
        setattr(parent, field, node)


class Failed:
    """A pytest plugin that counts failed tests."""

    def __init__(self) -> None:
        self.count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.failed


def noticed(source: str) -> int:
    """How many tests fail on this source of core.py, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "normbook"
        shutil.copytree(CORE.parent, copied, ignore=shutil.ignore_patterns("__pyc*"))
        (copied / "core.py").write_text(source)
        child = os.fork()
        if child == 0:
            try:
                os._exit(_failures(folder))
            finally:
                os._exit(255)
        _, status = os.waitpid(child, 0)
        count = os.waitstatus_to_exitcode(status)
        assert 0 <= count <= MOST, "the tests did not run on the changed source"
        return count


def _failures(folder: str) -> int:
    sys.path[:] = [folder, *(path for path in sys.path if path != str(ROOT / "src"))]
    sys.dont_write_bytecode = True
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    failed = Failed()
    # A change of the formula shows in float64 alone; float32 would count it once more.
    options = f"""-q --tb=no -W error --maxfail={MOST} -k "not float32"
        -p no:cacheprovider -c {os.devnull} --rootdir {ROOT}"""
    outcome = pytest.main(
        [*shlex.split(options), str(ROOT / "tests" / "test_core.py")], plugins=[failed]
    )
    if outcome == pytest.ExitCode.INTERNAL_ERROR:
        return 255
    if not sys.modules["normbook"].__path__[0].startswith(folder):
        return 255
    return max(failed.count, int(outcome != pytest.ExitCode.OK))


def main() -> None:
    """Print a line for every change, then how many were noticed."""
    source = CORE.read_text()
    if noticed(ast.unparse(ast.parse(source))):
        raise SystemExit("The tests fail before anything is changed.")
    counts, survived = [], []
    for title, text in mutants(source):
        counts.append(noticed(text))
        print(f"{counts[-1]:4}  {title}", flush=True)
        if counts[-1] == 0:
            survived.append(title)
    caught = sorted(count for count in counts if count)
    print(
        f"{len(counts)} changes: {len(caught)} noticed, by {caught[0]} tests at least "
        f"and {caught[len(caught) // 2]} or more in the middle; {len(survived)} not."
    )
    for title in survived:
        print(f"not noticed: {title}: {EQUIVALENT.get(title, 'no reason known')}")
    if set(survived) - set(EQUIVALENT):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
