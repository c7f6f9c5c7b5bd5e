"""The one idea of this book: standardize = rescale ∘ center.

`center` subtracts the mean over a set S, `rescale` divides by the root mean square over
S. Every normalization layer is a choice of S. Beneath each function stands its
vector-Jacobian product (VJP): from dy, the gradient of the loss with respect to the
output, it makes the gradient with respect to the input.

Only operators, `sum` and `shape` are used, which NumPy arrays, torch tensors and JAX
arrays share, so this one source runs on all, on CPU and GPU. S is a `Set`, or the tuple
of its axes where they are all there is to say; `only`, `count` and `total` read it, and
nothing else does. Statistics keep the reduced axes at length 1.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple, Protocol


class Array(Protocol):
    """What this book asks of an array: a NumPy array, a torch tensor, and others."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def sum(self, *args: Any, **kwargs: Any) -> Any: ...
    def reshape(self, *args: Any, **kwargs: Any) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...


Axes = tuple[int, ...]


class Set(NamedTuple):
    """S: which values of x share a mean.

    axes: those that one set spans; there is a set for each index of the others.
    where: a boolean mask of the shape of x; what it leaves out has no influence and
        comes out as 0. None: all of x counts.
    workers: adds an array up over all workers, where a set is spread over several; each
        calls the same functions on its part of x. None: a set lies here.
    """

    axes: Axes
    where: Any = None
    workers: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, S: "Set | Axes") -> "Set":
        """S itself, or the set of all values along these axes."""
        return S if isinstance(S, Set) else Set(S)


def only(x: Array, S: Set | Axes) -> Any:
    """x where the mask of S holds, 0 elsewhere, even where x is infinite or nan.

    Assignment rather than a product, since 0·nan is nan.
    """
    where = Set.of(S).where
    if where is None:
        return x
    if hasattr(x, "at"):  # an array of JAX, which nothing is assigned to
        return x.at[~where].set(0)
    inside = x + 0
    inside[~where] = 0
    return inside


def count(x: Array, S: Set | Axes) -> Any:
    """m, the number of values in each set (1 for an empty batch, which has none)."""
    axes, where, workers = Set.of(S)
    if where is None and workers is None:
        return max(1, prod([x.shape[axis] for axis in axes]))
    if where is None:
        where = (x == x) | (x != x)
    m = where.sum(axes, keepdims=True, dtype=x.dtype)
    return m if workers is None else workers(m)


def total(x: Array, S: Set | Axes) -> Any:
    """Σx over each set."""
    axes, _, workers = Set.of(S)
    here = only(x, S).sum(axes, keepdims=True)
    return here if workers is None else workers(here)


def mean(x: Array, S: Set | Axes) -> Any:
    """μ, the mean over each set."""
    return total(x, S) / count(x, S)


def center(x: Array, S: Set | Axes, mu: Any = None) -> Any:
    """Subtract the mean over each set: y = x − mean(x), or x − μ where μ is given."""
    return only(x - (mean(x, S) if mu is None else mu), S)


def center_vjp(dy: Array, S: Set | Axes) -> Any:
    """dx = dy − mean(dy): an orthogonal projection is its own transpose."""
    return center(dy, S)


def rescale(x: Array, S: Set | Axes, eps: float, square: Any = None) -> tuple[Any, Any]:
    """Divide by the root mean square over each set: y = x·rstd. Alone, it is RMSNorm.

    Returns y and rstd = 1/√(mean(x²) + ε), or 1/√(square + ε) where that is given.
    """
    x = only(x, S)
    rstd = 1 / ((mean(x * x, S) if square is None else square) + eps) ** 0.5
    return x * rstd, rstd


def rescale_vjp(dy: Array, y: Array, rstd: Array, S: Set | Axes) -> Any:
    """dx = (dy − y·mean(dy·y))·rstd, exact for every ε."""
    dy = only(dy, S)
    return (dy - y * mean(dy * y, S)) * rstd


def rstd_vjp(d_rstd: Array, y: Array, rstd: Array, S: Set | Axes) -> Any:
    """dx = −d_rstd·rstd²·y/m, where a loss depends on rstd itself.

    So it does in second derivatives, because rstd stands in the VJP. The same for
    `rescale` and for `standardize`, whose y has mean 0 already.
    """
    return y * rstd * rstd * d_rstd / (-count(y, S))


def standardize(x: Array, S: Set | Axes, eps: float) -> tuple[Any, Any]:
    """Give each set mean 0 and variance 1 (v/(v + ε), to be exact).

    Returns x_hat and rstd = 1/√(v + ε), v the biased variance. The variance is taken
    after centering, never as E[x²] − E[x]², which cancels catastrophically.
    """
    return rescale(center(x, S), S, eps)


def standardize_vjp(dy: Array, x_hat: Array, rstd: Array, S: Set | Axes) -> Any:
    """dx = (dy − mean(dy) − x_hat·mean(dy·x_hat))·rstd, by the chain rule."""
    return center_vjp(rescale_vjp(dy, x_hat, rstd, S), S)


def affine(x_hat: Array, gamma: Array | None, beta: Array | None) -> Any:
    """y = γ·x_hat + β, either of which may be absent; both have as many axes as x."""
    y: Any = x_hat
    if gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    return y


def affine_vjp(
    dy: Array, x_hat: Array, gamma: Array | None, beta: Array | None
) -> tuple[Any, Any, Any]:
    """d_x_hat = γ·dy; dγ and dβ sum dy·x_hat and dy over the axes they are shared on.

    Those axes are not S: in layer and group norm γ varies inside a set.
    """
    d_x_hat = dy if gamma is None else dy * gamma
    d_gamma = None if gamma is None else sum_to(dy * x_hat, gamma.shape)
    d_beta = None if beta is None else sum_to(dy, beta.shape)
    return d_x_hat, d_gamma, d_beta


def sum_to(x: Array, shape: tuple[int, ...]) -> Any:
    """Sum x over the axes along which an array of this shape was broadcast."""
    axes = tuple(
        axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1
    )
    return x.sum(axes, keepdims=True) if axes else x
