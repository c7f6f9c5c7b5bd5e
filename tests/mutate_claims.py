"""Plant faults under a notebook and list the claims that no fault breaks.

    python tests/mutate_claims.py notebooks/02_batch_norm.ipynb
    python tests/mutate_claims.py --record --jobs 2 notebooks/*.ipynb

A claim tests its sentence if the nearest false sentence fails it. This plants faults
one at a time, before the first cell runs, and then runs all cells: a claim is broken
by a fault when it prints ✓ without it and ✗ with it, or when what stands in its
brackets raises. Where anything else of a cell raises, the rest of the cell is left out
and so is all that needs its names: claims that never ran are not broken. A fault is
planted in a function itself, so whoever holds the function, by whatever name, calls
the fault. Faults of the plain path run with the kernels of `normbook.fast` off. A fault
whose functions a notebook never calls is not run on it, and once all claims of a
notebook are broken no further fault is.

A claim on a record is broken by an exchange: what stands under one key of a record
moves to another key of the same kind, or a list of lists turns round. Only what
depends on the record is then run again.

`--record` writes what breaks each claim to claims_broken.json; claims_unbroken.json
holds the others, each with the reason. test_claims_broken.py holds both to the stored
notebooks. Fails if a claim is on neither side. Runs on unchanged notebooks and sources
are kept in _build/mutants. A full run of the seven notebooks takes about an hour on
two cores (AMD EPYC).
"""

import argparse
import ast
import base64
import builtins
import hashlib
import importlib
import inspect
import io
import json
import linecache
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from itertools import chain
from math import prod
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BROKEN = Path(__file__).with_name("claims_broken.json")
UNBROKEN = Path(__file__).with_name("claims_unbroken.json")
RUNS = ROOT / "_build" / "mutants"
LIMIT = 3000  # seconds for one notebook under one fault
SLOW = 0.2  # seconds of a statement that is left out where nothing needs it
MOST = 3  # faults that are named for one claim
EXCHANGED = "record: "  # how the name of an exchange begins

Function = Callable[..., Any]
Maker = Callable[[Function], Function]  # from a function, what replaces it


# ------------------------------------------------------------------ planting


def function(target: str) -> FunctionType:
    """The function that "module:name" or "module:Class.method" names."""
    module, _, name = target.partition(":")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            raise LookupError(
                f"no {target}: a fault is planted there. Say in FAULTS of "
                "tests/mutate_claims.py where that function stands now."
            )
    while not isinstance(value, FunctionType):
        value = getattr(value, "__func__", None) or value.__wrapped__
    return value


def plant(target: str, make: Maker) -> Callable[[], None]:
    """Let the function do what make(original) does; return how to undo it.

    Its code is exchanged, not its name: default arguments, tables and names imported
    elsewhere hold the same function.
    """
    held = function(target)
    before = held.__code__, held.__defaults__, held.__kwdefaults__
    original = FunctionType(
        held.__code__,
        held.__globals__,
        held.__name__,
        held.__defaults__,
        held.__closure__,
    )
    original.__kwdefaults__ = held.__kwdefaults__
    name = f"_planted_in_{held.__qualname__.replace('.', '_').strip('<>')}_{id(held)}"
    held.__globals__[name] = make(original)
    held.__code__ = _calling(name, held.__code__.co_freevars)
    held.__defaults__ = held.__kwdefaults__ = None
    held.__wrapped__ = original  # type: ignore[attr-defined]  # for its source

    def undo() -> None:
        held.__code__, held.__defaults__, held.__kwdefaults__ = before
        del held.__wrapped__, held.__globals__[name]  # type: ignore[attr-defined]

    return undo


def _calling(name: str, free: tuple[str, ...]) -> CodeType:
    """Code that calls the global `name`, with as many free variables as it replaces."""
    space: dict[str, Any] = {}
    exec(
        f"def outer({', '.join(free)}):\n"
        f" def inner(*args, **kwargs):\n"
        f"  if False: ({', '.join(free)})\n"
        f"  return {name}(*args, **kwargs)\n"
        f" return inner\n",
        space,
    )
    return space["outer"](*free).__code__


# -------------------------------------------------------------------- faults


class Fault(NamedTuple):
    """What is planted: a maker for each function; with `kernels` they stay on."""

    name: str
    makers: dict[str, Maker]
    kernels: bool = False


CORE, FUNCTIONAL, NN = "normbook.core", "normbook.functional", "normbook.nn"
MOMENTS, FAST, CPU = "normbook.moments", "normbook.fast", "normbook.fast.cpu"
STACKED = "normbook.experiments.stacked"
SETS = [f"{FUNCTIONAL}:{kind}_sets" for kind in ("batch", "layer", "instance", "group")]
FACTORIES = [
    f"{STACKED}:norm",
    "normbook.experiments.comparison:norm",
    "normbook.experiments.stylization:norm",
    "normbook.experiments.sequences:any_norm",
]
STEPS = [
    f"{STACKED}:SGD.step",
    "normbook.experiments.sequences:Adam.step",
    "torch.optim:SGD.step",
    "torch.optim:Adam.step",
]
NATIVE = [
    f"torch.nn.functional:{kind}_norm"
    for kind in ("batch", "layer", "instance", "group", "rms")
]


def constant(value: Any) -> Maker:
    """A function that always returns this."""
    return lambda original: lambda *args, **kwargs: value


def result(change: Function) -> Maker:
    """The same function, its result changed."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs))


def argument(name: str, change: Function) -> Maker:
    """The same function, one of its arguments changed."""

    def make(original: Function) -> Function:
        signature = inspect.signature(original)

        def changed(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments[name] = change(bound.arguments[name])
            return original(*bound.args, **bound.kwargs)

        return changed

    return make


def first_argument(original: Function) -> Function:
    """A function that returns its first argument."""
    return lambda first, *args, **kwargs: first


def unscaled(original: Function) -> Function:
    """`rescale` that divides by 1."""

    def changed(x: Any, *args: Any, **kwargs: Any) -> Any:
        _, rstd = original(x, *args, **kwargs)
        return x, 0 * rstd + 1

    return changed


def scaled(factor: Function) -> Maker:
    """`rescale` whose y and rstd are factor(y, rstd) times as large."""

    def change(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        f = factor(*pair)
        return pair[0] * f, pair[1] * f

    return result(change)


def bessel(y: Any, rstd: Any) -> float:
    m = prod(y.shape) / max(1, prod(rstd.shape))
    return (1 - 1 / max(m, 2)) ** 0.5


def eps_outside(original: Function) -> Function:
    """`rescale` by σ + ε in place of √(σ² + ε)."""
    without = argument("eps", lambda eps: 1e-300)(original)
    signature = inspect.signature(original)

    def changed(*args: Any, **kwargs: Any) -> Any:
        eps = signature.bind(*args, **kwargs).arguments["eps"]
        y, rstd = without(*args, **kwargs)
        return y / (1 + eps * rstd), rstd / (1 + eps * rstd)

    return changed


def in_single(original: Function) -> Function:
    """`mean` of numbers rounded to float32."""

    def changed(x: Any, *args: Any, **kwargs: Any) -> Any:
        rounded = x.astype("float32") if hasattr(x, "astype") else x.float()
        return original(rounded, *args, **kwargs) + 0 * x.sum()

    return changed


def differs() -> Function:
    """A change of all results by up to 3e-6, another at every call."""
    number = 0

    def change(results: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal number
        number = (number + 1) % 4
        factor = 1 + 1e-6 * number
        return tuple(value if value is None else value * factor for value in results)

    return change


def constant_scale(original: Function) -> Function:
    """`rescale_vjp` with rstd as a constant: dy·rstd."""
    signature = inspect.signature(original)

    def changed(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        return given["dy"] * given["rstd"]

    return changed


class GammaAfter:
    """γ multiplies dx, after the means, in place of dy before them."""

    def __init__(self) -> None:
        self.gamma: Any = None

    def affine_vjp(self, original: Function) -> Function:
        def changed(dy: Any, x_hat: Any, gamma: Any, beta: Any) -> Any:
            self.gamma = gamma
            return dy, *original(dy, x_hat, gamma, beta)[1:]

        return changed

    def vjp(self, original: Function) -> Function:
        def changed(dy: Any, *args: Any, **kwargs: Any) -> Any:
            # The rescale_vjp inside standardize_vjp takes none.
            gamma, self.gamma = self.gamma, None
            dx = original(dy, *args, **kwargs)
            if gamma is None:
                return dx
            if len(gamma.shape) == len(dx.shape):
                return gamma * dx
            n, groups, channels, *positions = dx.shape
            flat = dx.reshape(n, groups * channels, *positions)
            return (gamma * flat).reshape(dx.shape)

        return changed


GAMMA = GammaAfter()


def averaged(gradients: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """The gradients of γ and β as means in place of sums."""
    d_x_hat, *rest = gradients
    size = prod(d_x_hat.shape)
    return d_x_hat, *(None if d is None else d * (prod(d.shape) / size) for d in rest)


def of_the_batch(original: Function) -> Function:
    """`batch_norm_eval` with the batch's own statistics."""
    functional = importlib.import_module(FUNCTIONAL)

    def changed(
        x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, **named: Any
    ) -> Any:
        return functional.batch_norm(x, gamma, beta, **named)

    return changed


def merged_within(original: Function) -> Function:
    """Chan's merge without what lies between the means."""
    return lambda self, other: original(self, other)._replace(m2=self.m2 + other.m2)


def pushed_before(original: Function) -> Function:
    """Welford's step with the old mean twice."""
    return lambda self, x: original(self, x)._replace(m2=self.m2 + (x - self.mean) ** 2)


def over(choose: Function) -> Maker:
    """Sets over other axes: choose(axes, rank of the view)."""

    def change(sets: Any) -> Any:
        axes = tuple(sorted(choose(sets.axes, len(sets.view))))
        return sets._replace(axes=axes, least=min(sets.least, 1))

    return result(change)


def fewer(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return axes[1:] if len(axes) > 1 else ((axes[0] + 1) % rank,)


def with_batch(axes: tuple[int, ...], rank: int) -> set[int]:
    return {0, 1, *axes} if 0 in axes else {0, *axes}


def of_kind(kinds: dict[str, str]) -> Maker:
    """A factory of norms that makes another kind."""

    def make(original: Function) -> Function:
        return lambda kind, *args, **kwargs: original(
            kinds.get(kind, kind), *args, **kwargs
        )

    return make


def whole_batch(original: Function) -> Function:
    """`fold` that forgets the sub-batches."""

    def changed(self: Any, x: Any) -> Any:
        each, self.each = self.each, len(x)
        try:
            return original(self, x)
        finally:
            self.each = each

    return changed


def native_is_ours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"native": row["ours"], "ours": row["native"]} for row in rows]


def shifted(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    dx, *rest = gradients
    return dx + 0.1 * dx.abs().mean(), *rest


CORE, FUNCTIONAL, NN = "normbook.core", "normbook.functional", "normbook.nn"
MOMENTS, FAST, KERNELS = "normbook.moments", "normbook.fast", "normbook.fast.cpu"
STACKED, SEQUENCES = "normbook.experiments.stacked", "normbook.experiments.sequences"
COUNTED = "normbook.experiments.agreement"
BATCH, LAYER, INSTANCE, GROUP = NORMS = [
    f"{FUNCTIONAL}:{kind}_sets" for kind in ("batch", "layer", "instance", "group")
]
FACTORIES = [f"{STACKED}:norm", "normbook.experiments.comparison:norm"]
PAINTER = "normbook.experiments.stylization:norm"
STEPS = [
    f"{STACKED}:SGD.step",
    f"{SEQUENCES}:Adam.step",
    "torch.optim:SGD.step",
    "torch.optim:Adam.step",
]
NATIVE = [
    f"torch.nn.functional:{kind}_norm"
    for kind in ("batch", "layer", "instance", "group", "rms")
]
REFUSALS = [
    f"{FUNCTIONAL}:_need_rank",
    f"{FUNCTIONAL}:_need_values",
    f"{NN}:_need_channels",
    f"{NN}:_need_one_a_channel",
]
RESCALE, CENTER = f"{CORE}:rescale", f"{CORE}:center"
OTHER = {"BN": "GN", "GN": "BN", "none": "LN", "LN": "none", "noisy BN": "LN"}
OTHER |= {"IN": "RMSNorm", "RMSNorm": "IN"}
OTHER_PAINTER = {"BN": "IN", "IN": "BN", "none": "LN", "LN": "none"}
NO_NORM = dict.fromkeys(OTHER, "none")
All = dict.fromkeys

# Where each fault is planted. Those that break most stand first.
FAULTS = [
    Fault("no optimizer steps", All(STEPS, constant(None)), kernels=True),
    Fault("nets have no norm", {
        **All(FACTORIES, of_kind(NO_NORM)), PAINTER: of_kind(NO_NORM),
    }, kernels=True),
    Fault("nets have another norm", {
        **All(FACTORIES, of_kind(OTHER)), PAINTER: of_kind(OTHER_PAINTER),
    }, kernels=True),
    Fault("sub-batches are forgotten", {
        f"{STACKED}:WorkerBatchNorm.fold": whole_batch,
    }, kernels=True),
    Fault("nothing is normalized", {RESCALE: unscaled, CENTER: first_argument}),
    Fault("batch and group norm's S lacks an axis", All([BATCH, GROUP], over(fewer))),
    Fault("layer and instance norm's S lacks an axis", {
        LAYER: over(fewer), INSTANCE: over(fewer),
    }),
    Fault("S is a whole sample", All(NORMS, over(lambda _, rank: range(1, rank)))),
    Fault("S spans the batch; batch norm's the channels", All(NORMS, over(with_batch))),
    Fault("statistics are constants in the backward", {
        f"{CORE}:center_vjp": first_argument, f"{CORE}:rescale_vjp": constant_scale,
    }),
    Fault("the VJP lacks mean(dy)", {f"{CORE}:center_vjp": first_argument}),
    Fault("γ after the means", {
        f"{CORE}:affine_vjp": GAMMA.affine_vjp,
        f"{CORE}:standardize_vjp": GAMMA.vjp,
        f"{CORE}:rescale_vjp": GAMMA.vjp,
    }),
    Fault("dγ and dβ are means", {f"{CORE}:affine_vjp": result(averaged)}),
    Fault("γ and β are left out", {f"{CORE}:affine": first_argument}),
    Fault("the variance is unbiased", {RESCALE: scaled(bessel)}),
    Fault("ε is 0.01 larger", {RESCALE: argument("eps", lambda eps: eps + 0.01)}),
    Fault("ε stands outside the root", {RESCALE: eps_outside}),
    Fault("means are of float32", {f"{CORE}:mean": in_single}),
    Fault("no two results are alike", {RESCALE: result(differs())}),
    Fault("masks are ignored", {f"{FUNCTIONAL}:_mask": constant(None)}),
    Fault("momentum is turned", {
        f"{FAST}:Running.track": lambda original: lambda self, *new: original(
            self._replace(momentum=1 - self.momentum), *new
        ),
        f"{MOMENTS}:running": argument("momentum", lambda momentum: 1 - momentum),
    }),
    Fault("the biased variance is stored", {
        f"{MOMENTS}:Moments.var": argument("correction", lambda correction: 0),
    }),
    Fault("running statistics never move", {f"{FAST}:Running.track": constant(None)}),
    Fault("evaluation takes the batch's statistics", {
        f"{FUNCTIONAL}:batch_norm_eval": of_the_batch,
    }),
    Fault("moments are merged without what lies between", {
        f"{MOMENTS}:Moments.merge": merged_within,
        f"{MOMENTS}:Moments.push": pushed_before,
    }),
    Fault("nothing is refused", All(REFUSALS, constant(None))),
    Fault("torch's layers put out x", All(NATIVE, first_argument), kernels=True),
    Fault("bytes of torch and of ours exchanged, all counted twice", {
        f"{COUNTED}:traffic": result(native_is_ours),
        f"{COUNTED}:moved": result(lambda number: 2 * number),
    }, kernels=True),
    Fault("kernels are off", {f"{FAST}:normalize": constant(None)}, kernels=True),
    Fault("kernels: no two results are alike", {
        f"{KERNELS}:forward": result(differs()),
        f"{KERNELS}:backward": result(differs()),
    }, kernels=True),
    Fault("kernels: dx is off by a constant", {
        f"{KERNELS}:backward": result(shifted),
    }, kernels=True),
]  # fmt: skip


# -------------------------------------------------------------------- running


class Statement(NamedTuple):
    """One statement of a cell, and the names that it needs and gives."""

    cell: int
    node: ast.stmt
    file: str
    needs: frozenset[str]
    gives: frozenset[str]

    def claims(self) -> Iterator[ast.Call]:
        """The calls of `claim` in it."""
        for node in ast.walk(self.node):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim":
                yield node

    def run(self, space: dict[str, Any]) -> None:
        exec(compile(ast.Module([self.node], []), self.file, "exec"), space)


def statements(notebook: Path) -> list[Statement]:
    """All statements of a notebook's code cells, in order; magics are left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    every = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines(keepends=True)
        kept = [
            line.replace("%", "pass  # ", 1) if line.lstrip().startswith("%") else line
            for line in lines
        ]
        file = f"<{notebook.stem}, cell {number}>"
        linecache.cache[file] = sum(map(len, kept)), None, kept, file
        for node in ast.parse("".join(kept), file).body:
            every.append(Statement(number, node, file, *_names(node)))
    return every


def _names(node: ast.stmt) -> tuple[frozenset[str], frozenset[str]]:
    """What a statement needs and what it gives, a name too many rather than too few."""
    needs, gives, own = set(), set(), set()
    for part in ast.walk(node):
        match part:
            case ast.Name(id=name, ctx=ast.Load()):
                needs.add(name)
            case ast.Name(id=name):
                gives.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                gives.add(name)
            case ast.alias(name=name, asname=other):
                gives.add((other or name).partition(".")[0])
            case ast.comprehension(target=target):
                own |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            case ast.arg(arg=name):
                own.add(name)
            # x[i] = …, x.y = … and x.append(…) change x.
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                gives.add(name)
            case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store()):
                gives.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)):
                if method in ("append", "extend", "add", "update"):
                    gives.add(name)
    return frozenset(needs - own), frozenset(gives - own)


def unseen(number: int, space: dict[str, Any]) -> Function:
    return lambda: None


class Run:
    """A notebook run once: which claims held, and what stopped."""

    def __init__(self, notebook: Path) -> None:
        self.statements = statements(notebook)
        self.holds: dict[str, bool] = {}
        self.stopped: dict[int, str] = {}
        plant("normbook.claims:claim", self._noting)
        plant("normbook.plots:show", constant(None))

    def _noting(self, claim: Function) -> Function:
        def noted(statement: str, *holds: Any) -> None:
            printed = io.StringIO()
            with redirect_stdout(printed):
                claim(statement, *holds)
            self.holds[statement] = printed.getvalue().startswith("✓")

        return noted

    def all(self, left_out: Container[int] = (), seen: Function = unseen) -> None:
        """Run every statement but those left out and those that need their names.

        Before each, seen(its number, the names so far) is called, and what it returns
        after it.
        """
        space: dict[str, Any] = {"__name__": "__main__"}
        lost: set[str] = set()
        for number, statement in enumerate(self.statements):
            after = seen(number, space)
            if number in left_out or statement.needs & lost:
                lost |= statement.gives
            elif self.one(statement, space):
                lost -= statement.gives
            else:
                lost |= statement.gives
            after()
        importlib.import_module("matplotlib.pyplot").close("all")

    def one(self, statement: Statement, space: dict[str, Any]) -> bool:
        """Run a statement; False where something else than a claim raised."""
        try:
            statement.run(space)
        except Exception as error:
            broken = _raised_in(statement, error)
            if broken is None or isinstance(error, NameError):
                self.stopped[statement.cell] = f"{type(error).__name__}: {error}"[:200]
                return False
            self.holds[broken] = False
            return isinstance(statement.node, ast.Expr)  # or the rest of a loop is left
        return True


def _raised_in(statement: Statement, error: Exception) -> str | None:
    """What the claim says whose brackets raised, or None where no claim's did."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == statement.file:
            for call in statement.claims():
                if call.lineno <= trace.tb_lineno <= (call.end_lineno or 0):
                    says = ast.Expression(call.args[0])
                    frame = trace.tb_frame
                    code = compile(says, statement.file, "eval")
                    return eval(code, frame.f_globals, frame.f_locals)
        trace = trace.tb_next
    return None


# -------------------------------------------------------------------- records

# What is no side of a comparison, but says where the numbers beside it belong.
PLACES = {
    "steps", "rates", "rate", "scales", "sizes", "depths", "depth", "contrasts",
    "offsets", "momenta", "lengths", "positions", "percentiles", "chosen", "best",
    "kind", "place", "net", "each", "groups", "batch_size", "seen", "theory", "decay",
    "shape", "threads", "tests", "chance", "unigram", "loss",
}  # fmt: skip


def structure(value: Any) -> Any:
    """What two values that can stand for each other have in common."""
    if isinstance(value, dict):
        return tuple(sorted((key, structure(item)) for key, item in value.items()))
    if isinstance(value, list):
        return "list", structure(value[0]) if value else None
    return "number" if isinstance(value, int | float) else type(value).__name__


Change = Callable[[Any], Any]


def exchanges(record: Any) -> dict[str, Change]:
    """Ways to exchange two sides of a record, by name; each takes a whole record."""
    ways: dict[str, Change] = {}
    _add_exchanges(ways, record, ())
    return ways


def _add_exchanges(ways: dict[str, Change], node: Any, path: tuple[str, ...]) -> None:
    if isinstance(node, list):
        for item in node:
            _add_exchanges(ways, item, (*path, "*"))
    if not isinstance(node, dict):
        return
    alike: dict[str, list[str]] = {}
    for key, item in node.items():
        _add_exchanges(ways, item, (*path, key))
        if key not in PLACES:
            alike.setdefault(repr(structure(item)), []).append(key)
        if structure(item)[:2] in (("list", ("list", "number")),):
            name = f"{'/'.join((*path, key))} turned round"
            ways.setdefault(name, _at((*path, key), lambda rows: rows[::-1]))
    for keys in alike.values():
        for shift in range(1, len(keys)):
            pairs = zip(keys, keys[shift:] + keys[:shift], strict=True)
            name = f"{'/'.join(path)}: {', '.join(f'{a} for {b}' for b, a in pairs)}"
            ways.setdefault(name, _at(path, partial(_shifted, keys, shift)))


def _shifted(keys: list[str], shift: int, node: dict[str, Any]) -> dict[str, Any]:
    if not set(keys) <= set(node):
        return node
    sides = zip(keys, keys[shift:] + keys[:shift], strict=True)
    return node | {here: node[there] for here, there in sides}


def _at(path: Sequence[str], change: Change) -> Change:
    """The change, made at a place of a record; "*" stands for every item of a list."""

    def changed(node: Any) -> Any:
        if not path:
            return change(node)
        rest = _at(path[1:], change)
        if path[0] == "*":
            return [rest(item) for item in node]
        if path[0] not in node:
            return node
        return node | {path[0]: rest(node[path[0]])}

    return changed


DEFINE = ast.Import | ast.ImportFrom | ast.FunctionDef
READERS = ["normbook.experiments:read_record", "normbook.experiments:read_pictures"]


def broken_by_exchanges(
    run: Run, names_before: list[dict[str, Any]]
) -> dict[str, list[str]]:
    """Claims of a notebook that was run, and the exchanges that break them."""
    readers = {target.rpartition(":")[2] for target in READERS}
    tainted, needed = set(readers), set()
    affected = []
    for statement, before in zip(run.statements, names_before, strict=True):
        imports = isinstance(statement.node, ast.Import | ast.ImportFrom)
        if not imports and statement.needs & tainted:
            tainted |= statement.gives
            affected.append((statement, before))
    again = []
    for statement, before in reversed(affected):
        if any(statement.claims()) or statement.gives & needed:
            needed |= statement.needs
            again.append((statement, before))
    again.reverse()

    ways: dict[str, Change] = {}
    change: Change | None = None

    def exchanged(original: Function) -> Function:
        def reads(*args: Any) -> Any:
            value = original(*args)
            if change is not None:
                return change(value)
            if not isinstance(value, dict):  # pictures, in rows and columns
                for axis, name in enumerate(("rows", "columns")):
                    ways[f"pictures: {name} turned round"] = partial(_flipped, axis)
                return value
            for name, way in exchanges(value["results"]).items():
                ways[name] = partial(_in_results, value["command"], way)
            return value

        return reads

    undo = [plant(target, exchanged) for target in READERS]
    usual = _repeated(run, again)
    broken: dict[str, list[str]] = {}
    for name, change in ways.items():  # noqa: B007  read by `reads`
        for statement, holds in _repeated(run, again).items():
            if usual.get(statement) and not holds:
                broken.setdefault(statement, []).append(EXCHANGED + name)
    for back in undo:
        back()
    return broken


def _flipped(axis: int, pictures: Any) -> Any:
    return pictures if isinstance(pictures, dict) else pictures.flip(axis)


def _in_results(command: str, way: Change, record: Any) -> Any:
    if not isinstance(record, dict) or record["command"] != command:
        return record
    return record | {"results": way(record["results"])}


def _repeated(
    run: Run, again: list[tuple[Statement, dict[str, Any]]]
) -> dict[str, bool]:
    """Run some statements again, each on the names that stood before it."""
    run.holds, known, lost = {}, {}, set()
    for statement, before in again:
        space = before | known
        if statement.needs & lost or not run.one(statement, space):
            lost |= statement.gives
            continue
        known |= {name: space[name] for name in statement.gives if name in space}
    return run.holds


# ---------------------------------------------------------------- many runs


class Usual:
    """What each statement takes, calls and claims where nothing is planted."""

    def __init__(self, run: Run, called: set[str], keep: bool) -> None:
        self.run, self.called, self.keep = run, called, keep
        self.names_before: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def __call__(self, number: int, space: dict[str, Any]) -> Function:
        """Note what stands before a statement; return what notes the rest after it."""
        if self.keep:
            self.names_before.append(dict(space))
        self.called.clear()
        claimed, drawn, began = set(self.run.holds), random_state(), time.process_time()

        def after() -> None:
            row = {
                "seconds": round(time.process_time() - began, 2),
                "called": sorted(self.called),
                "claims": sorted(set(self.run.holds) - claimed),
            }
            if random_state() != drawn:
                row["random"] = random_state()
            self.rows.append(row)

        return after


def random_state() -> str:
    """The state of torch's random numbers."""
    state = importlib.import_module("torch").get_rng_state()
    return base64.b64encode(zlib.compress(state.numpy().tobytes())).decode()


def set_random_state(text: str) -> None:
    torch = importlib.import_module("torch")
    state = bytearray(zlib.decompress(base64.b64decode(text)))
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))


class Outcome(NamedTuple):
    """What a run gave: what held, where it stopped, its time; and of usual runs more.

    statements: one row each: seconds, functions of FAULTS called, claims made, torch's
    random state after it. exchanges: what breaks the claims on records.
    """

    holds: dict[str, bool]
    stopped: dict[str, str]
    seconds: float
    statements: list[dict[str, Any]]
    exchanges: dict[str, list[str]]


AS_IT_IS = Fault("nothing, as it is", {}, kernels=True)
PLAIN = Fault("nothing, on the plain path", {})


class Job(NamedTuple):
    """A notebook under a fault; the statements left out, and torch's random state."""

    notebook: Path
    fault: Fault
    left_out: dict[int, str | None]

    @property
    def file(self) -> Path:
        """Where the outcome is kept."""
        text = f"{self.fault.name} {sorted(self.fault.makers)} {sources(self.notebook)}"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return RUNS / self.notebook.stem / f"{name}.json"

    def start(self) -> int:
        """Run it in a process of its own; return the number of that process."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            signal.alarm(LIMIT)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            os.chdir(self.notebook.parent)
            outcome = self.outcome()._asdict()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(outcome, ensure_ascii=False, indent=1))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def outcome(self) -> Outcome:
        """Plant the fault, run the notebook, look."""
        began, called = time.perf_counter(), set[str]()
        plants = dict(self.fault.makers)
        if not self.fault.kernels:
            plants.setdefault(f"{FAST}:normalize", constant(None))
        if not self.fault.makers:
            alike = (f for f in FAULTS if f.kernels == self.fault.kernels)
            for target in chain.from_iterable(fault.makers for fault in alike):
                plants.setdefault(target, partial(_counted, called, target))
        for target, make in plants.items():
            plant(target, make)
        run = Run(self.notebook)
        rows, exchanges = [], {}
        if self.fault.makers:
            run.all(self.left_out, self._skipping)
        else:
            usual = Usual(run, called, keep=self.fault is AS_IT_IS)
            run.all(seen=usual)
            rows = usual.rows
        holds, stopped = dict(run.holds), {str(k): v for k, v in run.stopped.items()}
        if self.fault is AS_IT_IS:
            exchanges = broken_by_exchanges(run, usual.names_before)
        seconds = round(time.perf_counter() - began, 1)
        return Outcome(holds, stopped, seconds, rows, exchanges)

    def _skipping(self, number: int, space: dict[str, Any]) -> Function:
        def after() -> None:
            if state := self.left_out.get(number):
                set_random_state(state)

        return after


def _counted(called: set[str], target: str, original: Function) -> Function:
    def counted(*args: Any, **kwargs: Any) -> Any:
        called.add(target)
        return original(*args, **kwargs)

    return counted


@cache
def sources(notebook: Path) -> str:
    """A word that changes with the notebook's code, the package and the records."""
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("records/*.json")]):
        digest.update(file.read_bytes())
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode())
    return digest.hexdigest()


class Results:
    """What the runs of one notebook say so far."""

    def __init__(self, notebook: Path, faults: Sequence[Fault]) -> None:
        self.notebook = notebook
        self.statements = statements(notebook)
        self.left = [AS_IT_IS, PLAIN, *faults]
        self.usual: dict[bool, Outcome] = {}  # by fault.kernels
        self.breaks: dict[str, list[str]] = {}
        self.stops: dict[str, dict[str, str]] = {}
        fixed = {"rng", *vars(builtins)}
        for statement in self.statements:
            if isinstance(statement.node, DEFINE):
                fixed |= statement.gives
        self.touches = [(s.needs | s.gives) - fixed for s in self.statements]

    def take(self, fault: Fault, outcome: Outcome) -> None:
        """Note what one run gave."""
        self.stops[fault.name] = outcome.stopped
        if not fault.makers:
            self.usual[fault.kernels] = outcome
            for statement in outcome.holds if fault is AS_IT_IS else ():
                self.breaks[statement] = outcome.exchanges.get(statement, [])[:MOST]
            return
        for statement, held in outcome.holds.items():
            usual = self.usual[fault.kernels].holds.get(statement)
            if usual and not held and len(self.breaks[statement]) < MOST:
                self.breaks[statement].append(fault.name)

    def next(self) -> Job | None:
        """The next run that may break a claim which nothing has broken yet."""
        while self.left:
            fault = self.left[0]
            if not fault.makers:
                return Job(self.notebook, self.left.pop(0), {})
            if len(self.usual) < 2:
                return None
            self.left.pop(0)
            if (left_out := self.not_needed(fault)) is not None:
                return Job(self.notebook, fault, left_out)
        return None

    def not_needed(self, fault: Fault) -> dict[int, str | None] | None:
        """Slow statements that no claim needs which this fault may newly break.

        With torch's random state after each. None where no claim may break. What a
        statement needs it may change, too, so the answer errs on the safe side.
        """
        rows = self.usual[fault.kernels].statements
        reached: set[str] = set()
        wanted = []
        for row, touches in zip(rows, self.touches, strict=True):
            differs = touches & reached or fault.makers.keys() & set(row["called"])
            if differs:
                reached |= touches
            open_ = any(not self.breaks[claim] for claim in row["claims"])
            wanted.append(bool(differs) and open_)
        if not any(wanted):
            return None
        needed: set[str] = set()
        left_out = {}
        for number in reversed(range(len(rows))):
            if wanted[number] or self.touches[number] & needed:
                needed |= self.touches[number]
            elif rows[number]["seconds"] > SLOW:
                left_out[number] = rows[number].get("random")
        return left_out


def run_all(
    notebooks: Sequence[Path], faults: Sequence[Fault], jobs: int, fresh: bool
) -> list[Results]:
    """Run the notebooks under the faults, a few at a time; `fresh` repeats all."""
    every = [Results(notebook, faults) for notebook in notebooks]
    running: dict[int, tuple[Results, Job]] = {}
    while True:
        for results in every:
            while len(running) < jobs and (job := results.next()):
                if job.file.exists() and not (fresh and job.fault.makers):
                    results.take(job.fault, Outcome(**json.loads(job.file.read_text())))
                else:
                    running[job.start()] = results, job
        if not running:
            return every
        child, status = os.wait()
        results, job = running.pop(child)
        name = f"{results.notebook.stem}: {job.fault.name}"
        if status:
            print(f"{name}: no result, status {status}", file=sys.stderr)
            if not job.fault.makers:
                raise SystemExit(1)
            continue
        outcome = Outcome(**json.loads(job.file.read_text()))
        results.take(job.fault, outcome)
        left = sum(not broken for broken in results.breaks.values())
        print(
            f"{name}: {outcome.seconds} s, {len(job.left_out)} slow statements left "
            f"out, {left} claims unbroken",
            file=sys.stderr,
        )


def main() -> None:
    """Run what the command line asks for; print the claims that nothing breaks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--record", action="store_true", help=f"write {BROKEN.name}")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--fault", help="this fault only, by its name")
    parser.add_argument("--verbose", action="store_true", help="all claims, all stops")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.fault in (None, fault.name)]
    if not faults:
        names = "\n  ".join(fault.name for fault in FAULTS)
        parser.error(f"no fault is named {options.fault!r}. There are\n  {names}")
    prepare()
    notebooks = [path.resolve() for path in options.notebooks]
    recorded = json.loads(BROKEN.read_text()) if BROKEN.exists() else {}
    reasons = json.loads(UNBROKEN.read_text()) if UNBROKEN.exists() else {}
    unknown = 0
    for results in run_all(notebooks, faults, options.jobs, bool(options.fault)):
        name = results.notebook.stem
        recorded[name] = {s: broken for s, broken in results.breaks.items() if broken}
        unbroken = [s for s, broken in results.breaks.items() if not broken]
        print(f"{name}: nothing breaks {len(unbroken)} of {len(results.breaks)} claims")
        for statement in unbroken:
            reason = reasons.get(name, {}).get(statement)
            unknown += reason is None
            print(f"  {statement}\n    {reason or 'no reason known'}")
        if options.verbose:
            print(json.dumps(results.breaks, ensure_ascii=False, indent=1))
            print(json.dumps(results.stops, ensure_ascii=False, indent=1))
    if options.record:
        text = json.dumps(dict(sorted(recorded.items())), ensure_ascii=False, indent=1)
        BROKEN.write_text(text + "\n")
    if unknown:
        raise SystemExit(f"{unknown} claims are neither broken nor have a reason")


def prepare() -> None:
    """Import once what every run needs, and see that every fault has its place."""
    sys.path.insert(0, str(ROOT / "src"))
    os.environ["MPLBACKEND"] = "agg"
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("matplotlib.pyplot")
    for fault in FAULTS:
        for target in fault.makers:
            function(target)


if __name__ == "__main__":
    main()
