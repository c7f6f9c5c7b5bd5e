"""The one idea of this book: standardize = rescale ∘ center.

`center` subtracts the mean over a set of axes S, `rescale` divides by the root mean
square over S. Every normalization layer is a choice of S. Beneath each function stands
its vector-Jacobian product (VJP): from dy, the gradient of the loss with respect to the
output, it makes the gradient with respect to the input.

Only operators, `sum` and `shape` are used, which NumPy arrays and torch tensors share,
so this one source runs on both, on CPU and GPU. Throughout, `axes` is S as a tuple,
statistics keep the reduced axes at length 1, and `where` is an optional boolean mask of
the shape of x: what it leaves out has no influence and comes out as 0.
"""

from math import prod
from typing import Any, Protocol


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


def only(x: Array, where: Array | None) -> Any:
    """x where the mask holds, 0 elsewhere, even where x is infinite or nan.

    Assignment rather than a product, since 0·nan is nan.
    """
    if where is None:
        return x
    kept = x + 0
    kept[~where] = 0  # type: ignore[operator]
    return kept


def count(x: Array, axes: Axes, where: Array | None = None) -> Any:
    """m, the number of values in each set (1 for an empty batch, which has none)."""
    if where is None:
        return max(1, prod([x.shape[axis] for axis in axes]))
    return where.sum(axes, keepdims=True, dtype=x.dtype)


def mean(x: Array, axes: Axes, where: Array | None = None) -> Any:
    """μ, the mean over each set."""
    return only(x, where).sum(axes, keepdims=True) / count(x, axes, where)


def center(x: Array, axes: Axes, where: Array | None = None) -> Any:
    """Subtract the mean over each set: y = x − mean(x)."""
    return only(x - mean(x, axes, where), where)


def center_vjp(dy: Array, axes: Axes, where: Array | None = None) -> Any:
    """dx = dy − mean(dy): an orthogonal projection is its own transpose."""
    return center(dy, axes, where)


def rescale(
    x: Array, axes: Axes, eps: float, where: Array | None = None
) -> tuple[Any, Any]:
    """Divide by the root mean square over each set: y = x·rstd. Alone, it is RMSNorm.

    Returns y and rstd = 1/√(mean(x²) + ε).
    """
    x = only(x, where)
    rstd = 1 / (mean(x * x, axes, where) + eps) ** 0.5
    return x * rstd, rstd


def rescale_vjp(
    dy: Array, y: Array, rstd: Array, axes: Axes, where: Array | None = None
) -> Any:
    """dx = (dy − y·mean(dy·y))·rstd, exact for every ε."""
    dy = only(dy, where)
    return (dy - y * mean(dy * y, axes, where)) * rstd


def rstd_vjp(
    d_rstd: Array, y: Array, rstd: Array, axes: Axes, where: Array | None = None
) -> Any:
    """dx = −d_rstd·rstd²·y/m, where a loss depends on rstd itself.

    So it does in second derivatives, because rstd stands in the VJP. The same for
    `rescale` and for `standardize`, whose y has mean 0 already.
    """
    return y * rstd * rstd * d_rstd / (-count(y, axes, where))


def standardize(
    x: Array, axes: Axes, eps: float, where: Array | None = None
) -> tuple[Any, Any]:
    """Give each set mean 0 and variance 1 (v/(v + ε), to be exact).

    Returns x_hat and rstd = 1/√(v + ε), v the biased variance. The variance is taken
    after centering, never as E[x²] − E[x]², which cancels catastrophically.
    """
    return rescale(center(x, axes, where), axes, eps, where)


def standardize_vjp(
    dy: Array, x_hat: Array, rstd: Array, axes: Axes, where: Array | None = None
) -> Any:
    """dx = (dy − mean(dy) − x_hat·mean(dy·x_hat))·rstd, by the chain rule."""
    return center_vjp(rescale_vjp(dy, x_hat, rstd, axes, where), axes, where)


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
