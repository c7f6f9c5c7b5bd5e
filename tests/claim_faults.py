"""The faults that mutate_claims.py plants under a notebook, and how they are planted.

A fault is planted in a function itself, not in a name: whoever holds the function, in a
table, as a default argument or by whatever import, calls the fault. Where a function
has moved, its fault is told so in the table at the end.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from types import CodeType, FunctionType, MappingProxyType
from typing import Any, NamedTuple

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
                "tests/claim_faults.py where that function stands now."
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
    """What is planted: for each function, what makes its replacement.

    instead: where the kernels of `normbook.fast` would answer, the function of theirs
        that is called instead; the fault then runs with the kernels off.
    on_page: statements of the notebook that stand in place of its own, by number.
    """

    name: str
    makers: dict[str, Maker]
    instead: str = ""
    on_page: Mapping[int, ast.stmt] = MappingProxyType({})


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


def larger(eps: float) -> float:
    return eps + 0.01


def rest(momentum: Any) -> Any:
    return 1 - momentum


def turned(original: Function) -> Function:
    """`track` with the weight of the old in place of the new."""
    return lambda running, *new: original((*running[:2], rest(running[2])), *new)


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
    d_x_hat, *others = gradients
    size = prod(d_x_hat.shape)
    return d_x_hat, *(None if d is None else d * (prod(d.shape) / size) for d in others)


def of_the_batch(original: Function) -> Function:
    """`batch_norm_eval` with the batch's own statistics."""
    functional = importlib.import_module(FUNCTIONAL)

    def changed(
        x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, **named: Any
    ) -> Any:
        return functional.batch_norm(x, gamma, beta, **named)

    return changed


def in_training(original: Function) -> Function:
    """`forward` in training mode, whatever the layer's mode."""

    def changed(self: Any, *args: Any) -> Any:
        mode, self.training = self.training, True
        try:
            return original(self, *args)
        finally:
            self.training = mode

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


def whole_sample(axes: tuple[int, ...], rank: int) -> range:
    return range(1, rank)


def widened(axes: tuple[int, ...], rank: int) -> set[int]:
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
    dx, *others = gradients
    return dx + 0.1 * dx.abs().mean(), *others


CORE, FUNCTIONAL, NN = "normbook.core", "normbook.functional", "normbook.nn"
MOMENTS, FAST, KERNELS = "normbook.moments", "normbook.fast", "normbook.fast.cpu"
STACKED, SEQUENCES = "normbook.training.stacked", "normbook.training.sequences"
BATCH, LAYER, INSTANCE, GROUP = NORMS = [
    f"{FUNCTIONAL}:{kind}_sets" for kind in ("batch", "layer", "instance", "group")
]
FACTORY = "normbook.training.norms:norm"
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
]
READERS = [f"normbook.training.records:read_{what}" for what in ("record", "pictures")]
RESCALE, CENTER = f"{CORE}:rescale", f"{CORE}:center"
OTHER = {"BN": "GN", "GN": "BN", "none": "LN", "LN": "none", "noisy BN": "LN"}
OTHER |= {"IN": "BN", "RMSNorm": "none", "DyT": "none"}
NO_NORM, BATCH_NORM = dict.fromkeys(OTHER, "none"), dict.fromkeys(OTHER, "BN")
each = dict.fromkeys

KERNELS_OFF = "kernels are off"
# What is called where a kernel may answer: with the kernels off, the plain formula.
FORWARD, BACKWARD = f"{FAST}:kernel_for", f"{FAST}:Kernel.backward"

# Where each fault is planted. Those that break most stand first.
FAULTS = [
    Fault("nets have another norm", {FACTORY: of_kind(OTHER)}),
    Fault("all nets have batch norm", {FACTORY: of_kind(BATCH_NORM)}),
    Fault("nets have no norm", {FACTORY: of_kind(NO_NORM)}),
    Fault("no optimizer steps", each(STEPS, constant(None))),
    Fault("sub-batches are forgotten", {
        "normbook.training.norms:WorkerBatchNorm.fold": whole_batch,
    }),
    Fault(KERNELS_OFF, {FORWARD: constant(None)}),
    Fault("nothing is normalized", {
        RESCALE: unscaled, CENTER: first_argument,
    }, FORWARD),
    Fault("batch and group norm's S lacks an axis", {
        BATCH: over(fewer), GROUP: over(fewer),
    }, FORWARD),
    Fault("layer and instance norm's S lacks an axis", {
        LAYER: over(fewer), INSTANCE: over(fewer),
    }, FORWARD),
    Fault("S is a whole sample", each(NORMS, over(whole_sample)), FORWARD),
    Fault("S spans the batch, batch norm's the channels", {
        **each(NORMS, over(widened)),
    }, FORWARD),
    Fault("statistics are constants in the backward", {
        f"{CORE}:center_vjp": first_argument, f"{CORE}:rescale_vjp": constant_scale,
    }, BACKWARD),
    Fault("the VJP lacks mean(dy)", {f"{CORE}:center_vjp": first_argument}, BACKWARD),
    Fault("γ after the means", {
        f"{CORE}:affine_vjp": GAMMA.affine_vjp,
        f"{CORE}:standardize_vjp": GAMMA.vjp,
        f"{CORE}:rescale_vjp": GAMMA.vjp,
    }, BACKWARD),
    Fault("dγ and dβ are means", {f"{CORE}:affine_vjp": result(averaged)}, BACKWARD),
    Fault("γ and β are left out", {f"{CORE}:affine": first_argument}, FORWARD),
    Fault("the variance is unbiased", {RESCALE: scaled(bessel)}, FORWARD),
    Fault("ε is 0.01 larger", {RESCALE: argument("eps", larger)}, FORWARD),
    Fault("ε stands outside the root", {RESCALE: eps_outside}, FORWARD),
    Fault("means are of float32", {f"{CORE}:mean": in_single}, FORWARD),
    Fault("no two results are alike", {RESCALE: result(differs())}, FORWARD),
    Fault("masks are ignored", {f"{FUNCTIONAL}:_mask": constant(None)}),
    Fault("momentum is turned", {
        f"{NN}:track": turned,
        f"{MOMENTS}:running": argument("momentum", rest),
    }),
    Fault("the biased variance is stored", {
        **each(
            [f"{MOMENTS}:Moments.var"], argument("correction", lambda correction: 0)
        ),
    }, FORWARD),
    Fault("running statistics never move", {
        f"{NN}:track": constant(None),
    }),
    Fault("evaluation is as training", {
        **each([f"{NN}:BatchNorm.forward", f"{NN}:InstanceNorm.forward"], in_training),
        f"{FUNCTIONAL}:batch_norm_eval": of_the_batch,
    }),
    Fault("moments are merged without what lies between", {
        f"{MOMENTS}:Moments.merge": merged_within,
        f"{MOMENTS}:Moments.push": pushed_before,
    }),
    Fault("nothing is refused", each(REFUSALS, constant(None))),
    Fault("torch's layers put out x", each(NATIVE, first_argument)),
    Fault("bytes of torch and of ours exchanged, all counted twice", {
        "normbook.measure.agreement:traffic": result(native_is_ours),
        "normbook.measure.traffic:moved": result(lambda number: 2 * number),
    }),
    Fault("kernels: no two results are alike", {
        f"{KERNELS}:forward": result(differs()),
        f"{KERNELS}:backward": result(differs()),
    }),
    Fault("kernels: dx is off by a constant", {f"{KERNELS}:backward": result(shifted)}),
]  # fmt: skip


# -------------------------------------------------------------------- records

Change = Callable[[Any], Any]  # from a record, a changed one

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
        if repr(structure(item)).startswith("('list', ('list'"):
            name = f"{'/'.join((*path, key))} one place on"
            ways.setdefault(name, _at((*path, key), lambda rows: rows[1:] + rows[:1]))
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
