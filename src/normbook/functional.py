"""The five normalizations: which axes, which parameter shape, which paper.

Each function only names its sets; `normalize` does the rest with the one primitive of
`core`. Each takes NumPy, torch or JAX arrays and has its gradients beneath it, as a
`…_vjp` of the same arguments after dy. 16-bit input is computed in 32 bits and comes
back as it came. The channel is axis 1 in batch, instance and group norm.

`where` is a boolean mask of real positions, of a shape that broadcasts to x's: what it
leaves out influences nothing, gets output 0 and gradient 0.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from normbook import core
from normbook.core import Array, Axes, Set
from normbook.moments import Moments, standardize

CHANNEL: Axes = (1,)


class InputError(ValueError, RuntimeError):
    """Input that has no right answer.

    Both kinds, because torch.nn raises now one, now the other.
    """


class Sets(NamedTuple):
    """Which values of x share a mean and a variance, and which axes γ and β index.

    view: the shape in which a set is a product of whole axes (group norm splits C).
    axes: S, the axes of the view that one set spans.
    param: the axes of x that γ and β index; they have its shape along these.
    least: the fewest values a set may have; 0 where no statistics are taken.
    """

    view: tuple[int, ...]
    axes: Axes
    param: Axes
    least: int = 1

    @property
    def size(self) -> int:
        """m = |S|, the number of values in one set."""
        return prod([self.view[axis] for axis in self.axes])

    @property
    def number(self) -> int:
        """How many sets there are, each with a mean and a variance of its own."""
        return prod([n for axis, n in enumerate(self.view) if axis not in self.axes])


class Normalized(NamedTuple):
    """y, and the moments of every set that it was made with."""

    y: Any
    moments: Moments


class Gradients(NamedTuple):
    """Gradients of the loss; None for a parameter that was not given."""

    x: Any
    gamma: Any
    beta: Any


def batch_sets(shape: tuple[int, ...]) -> Sets:
    """One set a channel, over the batch and all positions."""
    _need_rank("batch norm", shape, 2)
    axes = (0, *range(2, len(shape)))
    return Sets(tuple(shape), axes, CHANNEL, least=2)


def layer_sets(shape: tuple[int, ...], axes: Axes = (-1,)) -> Sets:
    """One set for every index of the axes that are left; γ and β index `axes`."""
    rank = len(shape)
    _need_rank("layer norm and RMS norm", shape, 1)
    named = {axis % rank for axis in axes if -rank <= axis < rank}
    if not axes or len(named) < len(axes):
        raise InputError(
            f"axes must name one or more different axes of x; got axes={tuple(axes)} "
            f"for x of shape {tuple(shape)}. Use numbers from {-rank} to {rank - 1}."
        )
    axes = tuple(sorted(named))
    return Sets(tuple(shape), axes, axes)


def instance_sets(shape: tuple[int, ...]) -> Sets:
    """One set for each sample and channel, over all positions."""
    _need_rank("instance norm", shape, 3)
    axes = tuple(range(2, len(shape)))
    return Sets(tuple(shape), axes, CHANNEL, least=2)


def group_sets(shape: tuple[int, ...], groups: int) -> Sets:
    """One set for each sample and group of C/G neighbouring channels."""
    _need_rank("group norm", shape, 2)
    n, channels, *positions = shape
    if groups < 1 or channels % groups:
        divisors = [g for g in range(1, channels + 1) if channels % g == 0]
        raise InputError(
            f"group norm needs channels divisible by groups; got {channels} channels "
            f"and {groups} groups. Use one of {divisors} groups."
        )
    view = (n, groups, channels // groups, *positions)
    axes = tuple(range(2, len(view)))
    return Sets(view, axes, CHANNEL, least=2)


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Any:
    """Standardize each channel over the batch: training mode.

    x: (N, C) or (N, C, ...). S = (N, ...); γ and β have shape (C,).
    Raises InputError for one value a channel. Ioffe & Szegedy (2015), algorithm 1.
    """
    return normalize(x, batch_sets(x.shape), gamma, beta, eps=eps, where=where).y


def batch_norm_vjp(
    dy: Array,
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Gradients:
    """Gradients of `batch_norm`; dγ and dβ sum over (N, ...), here S itself."""
    return normalize_vjp(dy, x, batch_sets(x.shape), gamma, beta, eps=eps, where=where)


def batch_norm_eval(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Any:
    """Evaluation mode: an affine map with statistics from elsewhere, each (C,).

    y = γ·(x − mean)/√(var + ε) + β. No sample influences another.
    """
    _need_rank("batch norm", x.shape, 2)
    no_sets = Sets(tuple(x.shape), (), CHANNEL, least=0)
    wide, S, gamma, beta = _prepare(x, no_sets, gamma, beta, where)
    mean = _parameter("mean", _wide(mean), x, CHANNEL)
    var = _parameter("var", _wide(var), x, CHANNEL)
    x_hat, _ = core.rescale(core.center(wide, S, mean), S, eps, var)
    return _as(core.only(core.affine(x_hat, gamma, beta), S), x)


def layer_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axes: Axes = (-1,),
    eps: float = 1e-5,
    where: Array | None = None,
) -> Any:
    """Standardize over the given axes: (-1,) is a token's, (1, 2, 3) an image's.

    γ and β have the shape of x along `axes`, or 1 along some of them: (C, 1, 1) is
    Wu & He's layer norm of an image. A set of one value gives β, as in torch. A token
    is a set of its own, so padded tokens need no mask.
    Ba, Kiros & Hinton (2016), equation 3.
    """
    return normalize(x, layer_sets(x.shape, axes), gamma, beta, eps=eps, where=where).y


def layer_norm_vjp(
    dy: Array,
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axes: Axes = (-1,),
    eps: float = 1e-5,
    where: Array | None = None,
) -> Gradients:
    """Gradients of `layer_norm`; dγ and dβ sum over all axes but `axes`."""
    sets = layer_sets(x.shape, axes)
    return normalize_vjp(dy, x, sets, gamma, beta, eps=eps, where=where)


def instance_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Any:
    """Standardize each channel of each sample over its positions.

    x: (N, C, ...) with at least two positions; γ and β have shape (C,).
    Ulyanov, Vedaldi & Lempitsky (2016), equation 3.
    """
    return normalize(x, instance_sets(x.shape), gamma, beta, eps=eps, where=where).y


def instance_norm_vjp(
    dy: Array,
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Gradients:
    """Gradients of `instance_norm`; dγ and dβ sum over (N, ...), not over S."""
    sets = instance_sets(x.shape)
    return normalize_vjp(dy, x, sets, gamma, beta, eps=eps, where=where)


def group_norm(
    x: Array,
    groups: int,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Any:
    """Standardize each group of C/G neighbouring channels of each sample.

    x: (N, C) or (N, C, ...); γ and β have shape (C,), never (G,).
    Raises InputError unless G divides C. Wu & He (2018), equation 7.
    """
    sets = group_sets(x.shape, groups)
    return normalize(x, sets, gamma, beta, eps=eps, where=where).y


def group_norm_vjp(
    dy: Array,
    x: Array,
    groups: int,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    where: Array | None = None,
) -> Gradients:
    """Gradients of `group_norm`; dγ and dβ sum over (N, ...), not over S."""
    sets = group_sets(x.shape, groups)
    return normalize_vjp(dy, x, sets, gamma, beta, eps=eps, where=where)


def rms_norm(
    x: Array, gamma: Array | None = None, *, axes: Axes = (-1,), eps: float = 1e-5
) -> Any:
    """Divide by the root mean square over the given axes: `rescale` alone.

    γ has the shape of x along `axes`; there is no mean and no β.
    Zhang & Sennrich (2019), equation 4.
    """
    sets = layer_sets(x.shape, axes)
    return normalize(x, sets, gamma, eps=eps, centered=False).y


def rms_norm_vjp(
    dy: Array,
    x: Array,
    gamma: Array | None = None,
    *,
    axes: Axes = (-1,),
    eps: float = 1e-5,
) -> Gradients:
    """Gradients of `rms_norm`; dγ sums over all axes but `axes`, dβ is None."""
    sets = layer_sets(x.shape, axes)
    return normalize_vjp(dy, x, sets, gamma, eps=eps, centered=False)


def normalize(
    x: Array,
    sets: Sets,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float,
    where: Array | None = None,
    centered: bool = True,
    standardize: Callable[..., tuple[Any, Any, Moments]] = standardize,
    affine: Callable[..., Any] = core.affine,
) -> Normalized:
    """View x by its sets, standardize each, view it back, apply γ and β.

    x: of any shape that `sets` was made from; γ and β: x's shape along `sets.param`, or
    1 along some of these axes; where: boolean, broadcasts to x. y has x's shape and
    dtype, the moments one value a set in at least 32 bits, in the shape of `sets.view`
    with the reduced axes at length 1. Not centered, it is RMS norm, and the moments are
    those about 0.
    Raises InputError for a dtype that is no real floating-point one, too few values in
    a set, a parameter or mask of another shape, dtype or device.

    standardize, affine: what replaces `moments.standardize` and `core.affine`, for an
    array library that wants their gradients.
    """
    wide, S, gamma, beta = _prepare(x, sets, gamma, beta, where)
    x_hat, _, moments = standardize(
        wide.reshape(sets.view), _viewed(S, sets), eps, centered
    )
    y = affine(x_hat.reshape(x.shape), gamma, beta)
    return Normalized(_as(core.only(y, S), x), moments)


def moments(x: Array, sets: Sets, where: Array | None = None) -> Moments:
    """Count, mean and squared deviations of every set, in at least 32 bits."""
    wide, S, _, _ = _prepare(x, sets, None, None, where)
    return Moments.of(wide.reshape(sets.view), _viewed(S, sets))


def normalize_vjp(
    dy: Array,
    x: Array,
    sets: Sets,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float,
    where: Array | None = None,
    centered: bool = True,
) -> Gradients:
    """The steps of `normalize` backwards; g = γ·dy is formed before any mean.

    dy: the gradient with respect to y, of x's shape; the rest as in `normalize`. The
    gradients have the shapes and dtypes of x, γ and β.
    Raises InputError where `normalize` does, and for a dy of another shape or device.
    """
    _same_place("dy", dy, x)
    if tuple(dy.shape) != tuple(x.shape):
        raise InputError(
            f"dy must have the shape of x; got {tuple(dy.shape)} for x of shape "
            f"{tuple(x.shape)}. Pass the gradient with respect to the output."
        )
    wide, S, gamma_, beta_ = _prepare(x, sets, gamma, beta, where)
    S_viewed = _viewed(S, sets)
    forward, vjp = (
        (core.standardize, core.standardize_vjp)
        if centered
        else (core.rescale, core.rescale_vjp)
    )
    x_hat, rstd = forward(wide.reshape(sets.view), S_viewed, eps)
    dy = core.only(_wide(dy), S)
    g, d_gamma, d_beta = core.affine_vjp(dy, x_hat.reshape(x.shape), gamma_, beta_)
    dx = vjp(g.reshape(sets.view), x_hat, rstd, S_viewed)
    return Gradients(
        _as(dx.reshape(x.shape), x),
        None if gamma is None else _as(d_gamma.reshape(gamma.shape), gamma),
        None if beta is None else _as(d_beta.reshape(beta.shape), beta),
    )


def need_real(x: Array) -> None:
    """Raise InputError for integers, booleans and complex numbers."""
    if "float" not in str(x.dtype):
        raise InputError(
            f"a mean needs real floating-point numbers; got x of dtype {x.dtype}. "
            "Convert it first, to float32 for instance."
        )


def _viewed(S: Set, sets: Sets) -> Set:
    """S of x, as S of x viewed by its sets."""
    where = None if S.where is None else S.where.reshape(sets.view)
    return Set(sets.axes, where, S.workers)  # torch 2.6 cannot compile `_replace`


def _prepare(
    x: Array, sets: Sets, gamma: Any, beta: Any, where: Any = None
) -> tuple[Any, Set, Any, Any]:
    """Input checked: x in at least 32 bits, its real positions, γ and β to meet it."""
    need_real(x)
    _need_values(sets)
    return (
        _wide(x),
        Set((), None if where is None else _mask(where, x, sets)),
        None if gamma is None else _parameter("gamma", gamma, x, sets.param),
        None if beta is None else _parameter("beta", beta, x, sets.param),
    )


def _parameter(name: str, value: Any, x: Any, param: Axes) -> Any:
    """γ, β or a statistic, checked and with as many axes as x."""
    _same_place(name, value, x)
    full = tuple(x.shape[axis] for axis in param)
    got = tuple(value.shape)
    if len(got) != len(full) or any(
        here not in (1, there) for here, there in zip(got, full, strict=True)
    ):
        raise InputError(
            f"{name} must have shape {full}, x's shape along axes {param}, or 1 in "
            f"place of a length; got {got} for x of shape {tuple(x.shape)}. Give it "
            "one value for each place there, or one that all places share."
        )
    shape = [1] * len(x.shape)
    for axis, n in zip(param, got, strict=True):
        shape[axis] = n
    return value.reshape(tuple(shape))


def _mask(where: Any, x: Any, sets: Sets) -> Any:
    """The mask, checked and of x's own shape."""
    _same_place("where", where, x)
    if "bool" not in str(where.dtype):
        raise InputError(
            f"where must be boolean, True at real positions; got dtype {where.dtype}. "
            "Compare it first: where != 0."
        )
    everywhere = (x == x) | (x != x)
    try:
        full = where & everywhere
    except (ValueError, RuntimeError):
        full = None
    if full is None or tuple(full.shape) != tuple(x.shape):
        raise InputError(
            f"where must broadcast to x's shape; got {tuple(where.shape)} for x of "
            f"shape {tuple(x.shape)}. Give it as many axes as x, of length 1 or x's."
        )
    if sets.least:
        _need_values(sets, full.reshape(sets.view).sum(sets.axes))
    return full


def _same_place(name: str, value: Any, x: Any) -> None:
    here, there = (getattr(a, "device", None) for a in (x, value))
    if here != there:
        raise InputError(
            f"x and {name} must be on one device; got x on {here} and {name} on "
            f"{there}. Move one of them."
        )


def _need_rank(name: str, shape: tuple[int, ...], rank: int) -> None:
    if len(shape) < rank:
        layout = ("(..., C)", "(N, C) or (N, C, ...)", "(N, C, ...)")[rank - 1]
        raise InputError(
            f"{name} needs at least {rank} axes, {layout}; got shape {tuple(shape)}. "
            "Add the missing axis, for instance with x[None]."
        )


def _need_values(sets: Sets, counts: Any = None) -> None:
    """A single value is its own mean: its output would be β whatever it is."""
    few = 0 < sets.size < sets.least if counts is None else (counts < sets.least).any()
    if few:
        fewest = sets.size if counts is None else int(counts.min())
        raise InputError(
            f"a mean and a variance need more than {sets.least - 1} value"
            f"{'s' * (sets.least == 1)} in each set; got {fewest} for sets over axes "
            f"{sets.axes} of {sets.view}. Use a larger batch or map, fewer groups, "
            "evaluation mode, or a mask that leaves more."
        )


def _wide(x: Any) -> Any:
    """x in at least 32 bits, so that sums of 16-bit values neither overflow nor round.

    NumPy and torch name the conversion differently; `_as` is the way back.
    """
    if x.dtype.itemsize >= 4:
        return x
    return x.astype("float32") if hasattr(x, "astype") else x.float()


def _as(y: Any, x: Any) -> Any:
    return y.astype(x.dtype) if hasattr(y, "astype") else y.to(x.dtype)
