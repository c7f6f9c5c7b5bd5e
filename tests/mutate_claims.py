"""Plant faults under a notebook and list the claims that no fault breaks.

    python tests/mutate_claims.py notebooks/02_batch_norm.ipynb
    python tests/mutate_claims.py --record --jobs 2 notebooks/*.ipynb

A claim tests its sentence if the nearest false sentence fails it. This plants faults
one at a time, before the first cell runs, and then runs all cells: a claim is broken
by a fault when it prints ✓ without it and ✗ with it, or when what stands in its
brackets raises. Where anything else raises, all that needs its names is left out:
claims that never ran are not broken. Faults of the plain path run with the kernels of
`normbook.fast` off and come after the fault "kernels are off", so that no claim that
needs a kernel is said to be broken by another of them. A fault runs only where it can
reach a claim that nothing has broken yet, and slow statements that no such claim needs
are left out.

What a page defines in its own cells no fault of the package reaches. There one place of
a statement is changed at a time, as mutate_core.py does in core.py, for the claims that
nothing else breaks.

A claim on a record is broken by an exchange: what stands under one key of a record
moves to another key of the same kind, or the rows of a table move one place on. Only
what depends on the record is then run again.

`--record` writes what breaks each claim to claims_broken.json; claims_unbroken.json
holds the others, each with the reason. test_claims_broken.py holds both to the stored
notebooks. Fails if a claim is on neither side. Runs on unchanged notebooks and sources
are kept in _build/mutants, so a run that was stopped goes on where it stood. A fault of
another meaning needs another name. A notebook takes some five minutes with one
job on a busy machine of two cores (AMD EPYC).
"""

import argparse
import ast
import base64
import builtins
import copy
import dis
import hashlib
import importlib
import io
import json
import linecache
import os
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial, update_wrapper
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from claim_faults import (
    FAULTS,
    FORWARD,
    KERNELS_OFF,
    READERS,
    Change,
    Fault,
    Function,
    constant,
    exchanges,
    function,
    plant,
)
from mutate_core import variants

ROOT = Path(__file__).parents[1]
BROKEN = Path(__file__).with_name("claims_broken.json")
UNBROKEN = Path(__file__).with_name("claims_unbroken.json")
RUNS = ROOT / "_build" / "mutants"
LIMIT = 3000  # seconds for one notebook under one fault
SLOW = 0.05  # seconds of a statement that is left out where nothing needs it
TRAINS = 1.0  # seconds of one that an exchange of a record does not repeat
MOST = 3  # faults that are named for one claim
EXCHANGED = "record: "  # how the name of an exchange begins
ON_PAGE = "page: "  # how the name of a change in a cell begins
TRIES, FEW = 24, 6  # changes of one definition of a page, of another statement
IN_VAIN = 8  # changes of one statement in succession that break no further claim
DRAWING = {"plt", "plots", "draw", "ax", "axes", "figure"}  # no claim is about these
# Claims that fail where calls are counted: a counter is another step of a graph.
UNWATCHED = "torch.compile sees our layer norm as one graph"

DEFINITION = ast.FunctionDef | ast.ClassDef
DEFINE = ast.Import | ast.ImportFrom | ast.FunctionDef

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
    """What a statement reads before it writes it, and what it writes or changes."""
    needs, gives = set[str](), set[str]()
    code = compile(ast.Module([node], []), "", "exec")
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            gives.add(step.argval)
        elif step.opname == "LOAD_NAME":
            needs |= {step.argval} - gives
        elif isinstance(step.argval, CodeType):
            needs |= _global_names(step.argval) - gives
    for part in ast.walk(node):  # x[i] = …, x.y = … and x.append(…) change x
        match part:
            case (
                ast.Subscript(value=ast.Name(id=name), ctx=ast.Store())
                | ast.Attribute(value=ast.Name(id=name), ctx=ast.Store())
                | ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id=name),
                        attr="append" | "extend" | "add" | "update",
                    )
                )
            ):
                gives.add(name)
    return frozenset(needs), frozenset(gives)


def _global_names(code: CodeType) -> set[str]:
    """The global names that a function reads, and those inside it."""
    names = set[str]()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(step.argval)
        elif isinstance(step.argval, CodeType):
            names |= _global_names(step.argval)
    return names


def faults_on_page(every: Sequence[Statement]) -> Iterator[Fault]:
    """One change at a time in what a notebook's cells define, then in the rest."""
    numbered = list(enumerate(every))
    numbered.sort(key=lambda pair: not isinstance(pair[1].node, DEFINITION))
    for number, statement in numbered:
        imports = isinstance(statement.node, ast.Import | ast.ImportFrom)
        draws = (statement.needs | statement.gives) & DRAWING
        if imports or draws or not statement.gives or any(statement.claims()):
            continue
        node = copy.deepcopy(statement.node)
        where = getattr(node, "name", ", ".join(sorted(statement.gives)))
        found = {}
        for title in variants(node):
            name = f"{ON_PAGE}{where}: {title}"
            if name not in found and "\n" not in title:
                found[name] = Fault(name, {}, on_page={number: copy.deepcopy(node)})
        most = TRIES if isinstance(node, DEFINITION) else FEW
        yield from list(found.values())[:: len(found) // most + 1]


def unseen(number: int, space: dict[str, Any]) -> Function:
    return lambda: None


class Run:
    """A notebook run once: which claims held, and what stopped."""

    def __init__(
        self, notebook: Path, instead: Mapping[int, ast.stmt] | None = None
    ) -> None:
        self.statements = statements(notebook)
        for number, node in (instead or {}).items():
            node = ast.fix_missing_locations(node)
            self.statements[number] = self.statements[number]._replace(node=node)
        self.holds: dict[str, bool] = {}
        self.stopped: dict[int, str] = {}
        self.undone = [
            plant("normbook.claims:claim", self._noting),
            plant("normbook.plots:show", constant(None)),
        ]

    def undo(self) -> None:
        """Let claims print and figures show again."""
        for undo in self.undone:
            undo()

    def _noting(self, claim: Function) -> Function:
        def noted(statement: str, *holds: Any) -> None:
            printed = io.StringIO()
            with redirect_stdout(printed):
                claim(statement, *holds)
            lines = printed.getvalue().splitlines()  # brackets may print, too
            self.holds[statement] = any(line.startswith("✓ ") for line in lines)

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


def broken_by_exchanges(run: Run, usual_run: "Usual") -> dict[str, list[str]]:
    """Claims of a notebook that was run, and the exchanges that break them.

    What trains for long at the rates of a record is not trained again.
    """
    readers = {target.rpartition(":")[2] for target in READERS}
    tainted, needed = set(readers), set()
    affected = []
    for statement, before, row in zip(
        run.statements, usual_run.names_before, usual_run.rows, strict=True
    ):
        imports = isinstance(statement.node, ast.Import | ast.ImportFrom)
        once = imports or row["seconds"] > TRAINS
        if not once and statement.needs & tainted:
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

    def __init__(self, run: Run, called: set[str]) -> None:
        self.run, self.called = run, called
        self.names_before: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def __call__(self, number: int, space: dict[str, Any]) -> Function:
        """Note what stands before a statement; return what notes the rest after it."""
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


AS_IT_IS = Fault("nothing", {})


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
            sys.stderr.flush()
        finally:
            os._exit(status)

    def outcome(self) -> Outcome:
        """Plant the fault, run the notebook, look."""
        began, called = time.perf_counter(), set[str]()
        plants = dict(self.fault.makers)
        if self.fault.instead:
            plants[FORWARD] = constant(None)
        if self.fault is AS_IT_IS:
            for target in {t for fault in FAULTS for t in targets(fault)}:
                plants[target] = partial(_counted, called, target)
            _see_through_caches(called)
        for target, make in plants.items():
            plant(target, make)
        run = Run(self.notebook, self.fault.on_page)
        rows, exchanges = [], {}
        usual = Usual(run, called)
        run.all(self.left_out, usual if self.fault is AS_IT_IS else self._skipping)
        holds, stopped = dict(run.holds), {str(k): v for k, v in run.stopped.items()}
        if self.fault is AS_IT_IS:
            failed = [
                claim
                for claim, held in holds.items()
                if not held and not claim.startswith(UNWATCHED)
            ]
            if stopped or failed:
                raise RuntimeError(
                    f"{self.notebook.name} fails without a fault: mend that first. "
                    f"What its cells raise: {stopped}; claims that do not hold: "
                    f"{failed}"
                )
            rows, exchanges = usual.rows, broken_by_exchanges(run, usual)
        seconds = round(time.perf_counter() - began, 1)
        return Outcome(holds, stopped, seconds, rows, exchanges)

    def _skipping(self, number: int, space: dict[str, Any]) -> Function:
        def after() -> None:
            if state := self.left_out.get(number):
                set_random_state(state)

        return after


def targets(fault: Fault) -> set[str]:
    """The functions that a notebook must call for the fault to matter."""
    return {*fault.makers, fault.instead} - {""}


def _counted(called: set[str], target: str, original: Function) -> Function:
    def counted(*args: Any, **kwargs: Any) -> Any:
        called.add(target)
        return original(*args, **kwargs)

    return counted


def _see_through_caches(called: set[str]) -> None:
    """Let a cached result count as a call of all that was called for it once."""

    def seen_through(cached: Function) -> Function:
        known: dict[Any, set[str]] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            before = set(called)
            called.clear()
            value = cached(*args, **kwargs)
            inside = known.setdefault((args, *kwargs.items()), set())
            inside |= called
            called.update(before | inside)
            return value

        return update_wrapper(call, cached)

    see = cache(seen_through)  # one for each, whatever names it has
    modules = [m for name, m in sys.modules.items() if name.startswith("normbook")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, type(sources)):
                setattr(module, name, see(value))


@cache
def sources(notebook: Path) -> str:
    """A word that changes with the notebook's code, the package and the records.

    But not with the graders of exercises, which no claim asks.
    """
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("records/*.json")]):
        if file.parent.name != "exercises":
            digest.update(file.read_bytes())
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode())
    return digest.hexdigest()


class Names(NamedTuple):
    """The names of a statement that stand for data: made new by it, and met by it.

    Met are also the names that the page's functions read where the statement calls
    them. What a statement meets it may change, too.
    """

    new: frozenset[str]
    old: frozenset[str]

    @classmethod
    def of(
        cls, statement: Statement, fixed: set[str], reads: Mapping[str, set[str]]
    ) -> "Names":
        met = statement.needs.union(*(reads.get(name, ()) for name in statement.needs))
        touches = (met | statement.gives) - fixed
        perhaps = isinstance(statement.node, ast.If | ast.Try | ast.While)
        new = frozenset() if perhaps else statement.gives - statement.needs
        return cls(new - fixed, touches - new)

    @property
    def touches(self) -> frozenset[str]:
        return self.new | self.old


class Results:
    """What the runs of one notebook say so far."""

    def __init__(self, notebook: Path, one: str | None) -> None:
        self.notebook = notebook
        self.statements = statements(notebook)
        every = [*FAULTS, *faults_on_page(self.statements)]
        self.left = [fault for fault in every if one in (None, fault.name)]
        self.usual: Outcome | None = None
        self.begun = False
        self.in_vain = Counter[int]()  # by the number of the statement
        self.breaks: dict[str, list[str]] = {}
        self.stops: dict[str, dict[str, str]] = {}
        fixed = {"rng", *vars(builtins)}
        for statement in self.statements:
            if isinstance(statement.node, DEFINE):
                fixed |= statement.gives
        self.names = []
        reads: dict[str, set[str]] = {}  # what a function reads, and those it calls
        for statement in self.statements:
            if isinstance(statement.node, DEFINITION):
                inside = [reads.get(name, set()) for name in statement.needs]
                for name in statement.gives:
                    reads[name] = set(statement.needs).union(*inside)
            self.names.append(Names.of(statement, fixed, reads))

    def take(self, fault: Fault, outcome: Outcome) -> None:
        """Note what one run gave."""
        self.stops[fault.name] = outcome.stopped
        if self.usual is None:
            self.usual = outcome
            for claim in outcome.holds:
                self.breaks[claim] = outcome.exchanges.get(claim, [])[:MOST]
            return
        self.in_vain.update(fault.on_page.keys())
        for claim, held in outcome.holds.items():
            names = self.breaks.get(claim)  # a change may be one of the sentence
            if names is None or len(names) == MOST:
                continue
            if held or not self.usual.holds[claim]:
                continue
            if not fault.instead or KERNELS_OFF not in names:
                if not names:
                    self.in_vain -= Counter(dict.fromkeys(fault.on_page, IN_VAIN))
                names.append(fault.name)

    def next(self) -> Job | None:
        """The next run that may break a claim which nothing has broken yet."""
        if self.usual is None and not self.begun:
            self.begun = True
            return Job(self.notebook, AS_IT_IS, {})
        while self.usual and self.left:
            fault = self.left.pop(0)
            if any(self.in_vain[number] >= IN_VAIN for number in fault.on_page):
                continue
            if (left_out := self.not_needed(fault)) is not None:
                return Job(self.notebook, fault, left_out)
        return None

    def not_needed(self, fault: Fault) -> dict[int, str | None] | None:
        """Slow statements that no claim needs which this fault may newly break.

        With torch's random state after each. None where no claim may break. What a
        statement needs it may change, too, so the answer errs on the safe side.
        """
        rows = self.usual.statements if self.usual else []
        reached: set[str] = set()
        altered: set[str] = set()  # functions of the page that call the altered one
        wanted = []
        for number, (row, names) in enumerate(zip(rows, self.names, strict=True)):
            statement = self.statements[number]
            calls = number in fault.on_page or statement.needs & altered
            if calls and isinstance(statement.node, DEFINITION):
                altered |= statement.gives
            planted = calls or targets(fault) & set(row["called"])
            differs = planted or names.touches & reached
            reached = reached | names.touches if differs else reached - names.new
            open_ = any(not self.breaks[claim] for claim in row["claims"])
            wanted.append(bool(differs) and open_)
        if not any(wanted):
            return None
        needed: set[str] = set()
        left_out = {}
        for number, names in reversed(list(enumerate(self.names))):
            if wanted[number] or names.touches & needed:
                needed = needed - names.new | names.old
            elif rows[number]["seconds"] > SLOW:
                left_out[number] = rows[number].get("random")
        return left_out


def run_all(notebooks: Sequence[Path], one: str | None, jobs: int) -> list[Results]:
    """Run the notebooks under all faults, a few at a time, or again under one."""
    every = [Results(notebook, one) for notebook in notebooks]
    running: dict[int, tuple[Results, Job]] = {}
    while True:
        for results in every:
            while len(running) < jobs and (job := results.next()):
                if job.file.exists() and (job.fault is AS_IT_IS or not one):
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
            if job.fault is AS_IT_IS:
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
    known = {fault.name for fault in FAULTS}
    one = options.fault
    if one and one not in known and not one.startswith(ON_PAGE):
        parser.error(f"no fault is named {one!r}. There are\n  " + "\n  ".join(known))
    prepare()
    notebooks = [path.resolve() for path in options.notebooks]
    recorded = json.loads(BROKEN.read_text()) if BROKEN.exists() else {}
    reasons = json.loads(UNBROKEN.read_text()) if UNBROKEN.exists() else {}
    unknown = 0
    for results in run_all(notebooks, one, options.jobs):
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
    for module in ("labs", "training", "measure", "plots"):
        for file in (ROOT / "src" / "normbook").glob(f"{module}/[!_]*.py"):
            importlib.import_module(f"normbook.{module}.{file.stem}")
    for fault in FAULTS:
        for target in targets(fault):
            function(target)


if __name__ == "__main__":
    main()
