"""Private names of other libraries: one file has them, and each may be gone.

Without one, kernels are off and every layer is the plain formula; nothing else changes.
"""

import ast
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import TOLERANCE, error
from test_fast import run

import normbook
from normbook.fast import internals

SOURCE = Path(normbook.__file__).parent
GUARD = SOURCE / "fast" / "internals.py"
HERE = torch.device("cpu")
LAYERS = {
    "BatchNorm": (torch.nn.BatchNorm2d, 4),
    "InstanceNorm": (torch.nn.InstanceNorm2d, 4),
    "GroupNorm": (torch.nn.GroupNorm, 2, 4),
    "LayerNorm": (torch.nn.LayerNorm, 6),
    "RMSNorm": (torch.nn.RMSNorm, 6),
}


class Gone:
    """An attribute that a class has no longer, nor any instance."""

    def __get__(self, instance, owner):
        raise AttributeError("gone")

    def __set__(self, instance, value):
        raise AttributeError("gone")


class Unloadable(ModuleType):
    """A library that finds no shared library of its own."""

    def __getattr__(self, name):
        raise OSError("no shared library")


def remove(monkeypatch, name):
    """Take a dotted name out of its library."""
    home, _, last = name.rpartition(".")
    (parent,) = internals.need(home)
    if isinstance(parent, ModuleType):
        monkeypatch.delattr(parent, last)
    elif isinstance(parent, type):
        monkeypatch.setattr(parent, last, Gone())
    else:
        monkeypatch.setattr(type(parent), last, Gone(), raising=False)


@pytest.fixture
def without():
    """Return a function: `normbook.nn` imported anew, from libraries without a name.

    They have it again afterwards: a release that dropped it does not need it itself.
    """
    own = {name: sys.modules[name] for name in sys.modules if is_ours(name)}

    def load(name, *modules):
        forget()
        with pytest.MonkeyPatch.context() as patch:
            remove(patch, name)
            loaded = [import_module(f"normbook.{module}") for module in modules]
            loaded[0].why_plain(HERE, torch.float32)  # as the first call of a layer
        return loaded

    yield load
    forget()
    sys.modules.update(own)
    for name, module in own.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(own[parent], last, module)


def forget():
    for name in list(filter(is_ours, sys.modules)):
        del sys.modules[name]


def is_ours(name):
    return name.partition(".")[0] == "normbook"


def gradients(y, x):
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(y, x, dy)[0]


@pytest.mark.parametrize("name", internals.TORCH)
def test_without_a_private_name_kernels_are_off_and_all_else_works(name, without):
    pytest.importorskip("numba")
    fast, nn = without(name, "fast", "nn")
    assert fast._backend(HERE, torch.float32) is None
    wanted = f"torch {torch.__version__} has no {name}"
    assert fast.why_plain(HERE, torch.float32) == wanted
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    for kind, (native, *given) in LAYERS.items():
        layer = getattr(nn, kind)(*given)
        got = layer(x)
        with fast.off():
            want = layer(x)
        assert torch.equal(got, want)
        assert torch.equal(gradients(got, x), gradients(want, x))
        assert error(got, native(*given)(x)) <= TOLERANCE["float32"]


def test_with_every_name_kernels_are_on():
    pytest.importorskip("numba")
    fast = import_module("normbook.fast")
    assert internals.MISSING is None
    assert fast.why_plain(HERE, torch.float32) is None
    assert "float64" in fast.why_plain(HERE, torch.float64)
    assert "meta" in fast.why_plain(torch.device("meta"), torch.float32)
    if not torch.cuda.is_available():
        assert "no GPU" in fast.why_plain(torch.device("cuda"), torch.float32)


@pytest.mark.processes
def test_the_command_says_why():
    """In a process of its own, where the name is gone from the start to the end."""
    name = internals.TORCH[0]
    said = run(
        f"import torch; del {name}; from normbook.fast import __main__; "
        "import normbook.nn, normbook.bench; __main__.main()"
    )
    assert "cpu: the plain path answers, because torch " in said
    assert f"has no {name}" in said


def test_a_compiler_without_its_own_library_is_missing_too(without, monkeypatch):
    """llvmlite raises OSError where its shared library cannot be loaded."""
    monkeypatch.setitem(sys.modules, "numba", Unloadable("numba"))
    (fast,) = without("torch.hub.load", "fast")
    assert fast.why_plain(HERE, torch.float32) == "no shared library"
    assert fast._backend(HERE, torch.float32) is None


def test_several_names_are_named_together():
    with pytest.raises(ImportError, match=r"^torch \S+ has no torch.a, torch.nn.b$"):
        internals.need("torch.a", "torch.nn.Module", "torch.nn.b")


def test_apply_without_a_shorter_way_is_the_usual_one(monkeypatch):
    """`Function.apply` asks about torch.func; a torch may have nothing beneath it."""

    nn = import_module("normbook.nn")

    class Beneath:
        @classmethod
        def apply(cls):
            return cls.__name__, "beneath"

    class Function(Beneath):
        @classmethod
        def apply(cls):
            return cls.__name__, "usual"

    class Alone:
        apply = classmethod(lambda cls: (cls.__name__, "usual"))

    for base, way in ((Function, "beneath"), (Alone, "usual")):
        monkeypatch.setattr(torch.autograd, "Function", base)
        fused = type("Fused", (base,), {})
        assert nn.direct_apply(fused)() == ("Fused", way)


def test_both_ways_of_apply_give_the_same(monkeypatch):
    nn = import_module("normbook.nn")
    x = torch.randn(5, 8, requires_grad=True)
    layer = nn.LayerNorm(8)
    y = layer(x)
    monkeypatch.setattr(nn, "_apply", nn.Fused.apply)
    assert torch.equal(layer(x), y)
    assert torch.equal(gradients(layer(x), x), gradients(y, x))


def test_without_dispatch_modes_only_a_count_of_traffic_fails(without):
    _, traffic = without(internals.DISPATCH_MODE, "fast", "measure.traffic")
    with pytest.MonkeyPatch.context() as patch:
        remove(patch, internals.DISPATCH_MODE)
        with pytest.raises(ImportError, match="has no torch.utils._python_dispatch"):
            traffic.moved(partial(torch.ones, 3))


def test_without_a_switch_for_buffers_only_a_compiled_rival_fails(monkeypatch):
    from normbook import bench

    monkeypatch.delattr(torch._functorch, "config", raising=False)
    monkeypatch.setitem(sys.modules, "torch._functorch.config", None)
    with pytest.raises(ImportError, match="has no torch._functorch.config"):
        bench._compiled(bench.cases("cpu")[0])


# ------------------------------------------------------------- no other file has any

# Of every NamedTuple; and the function of sys that its documentation names.
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_current_frames"}
OF_NUMBA = ("numba.core", "numba.np", "numba.cpython")


def is_private(name):
    """Whether a dotted name of another library is one that it may drop."""
    inner = name.startswith(OF_NUMBA) or any(
        part.startswith("_") and not part.endswith("__") for part in name.split(".")
    )
    return inner and not is_ours(name)


def own_names(trees):
    """Every name that our files define: functions, classes, variables, attributes."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == (
                f"self.{node.attr}"
            ):
                names |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return names


def private_names(tree, own):
    """The private names of other libraries that a file imports, reads or spells."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own | PUBLIC else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            head = node.value.partition(".")[0]
            if head in ("torch", "numba", "triton") and " " not in node.value:
                names = [node.value]
        yield from filter(is_private, names)


def test_no_other_file_has_a_private_name():
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    own = own_names(tree for path, tree in trees.items() if path != GUARD)
    strays = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path, tree in trees.items()
        if path != GUARD
        for name in private_names(tree, own)
    }
    assert strays == set()


def test_the_guard_reads_no_name_that_it_does_not_list():
    tree = ast.parse(GUARD.read_text())
    listed = (*internals.TORCH, internals.DISPATCH_MODE, internals.FUNCTORCH)
    parts = {part for name in listed for part in name.split(".")}
    for name in private_names(tree, own_names([tree])):
        assert {*name.split(".")} <= parts, name


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._C import _get_tracing_state",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "from numba.core.registry import cpu_target",
        "torch._functorch.config.donated_buffer = False",
        "x._is_zerotensor()",
        "self._backward_hooks",
        "import_module('torch._inductor')",
    ],
)
def test_a_private_name_is_seen(line):
    assert list(private_names(ast.parse(line), {"_sets"}))


@pytest.mark.parametrize(
    "line",
    ["fast._sets(x)", "row._asdict()", "x.__class__", "from numba import njit"],
)
def test_a_public_name_is_not(line):
    assert not list(private_names(ast.parse(line), {"_sets"}))
