"""The slips that every exercise invites in which something is standardized.

An exercise gives its solution as a function of what standardizes, and gets back its
mistakes: the solution with one step gone wrong.
"""

from collections.abc import Callable
from typing import Any

from normbook import core

Standardize = Callable[..., tuple[Any, Any]]

NEAR_EPS = (
    "ε is wrong: yours fails only where σ² is as small; divide by √(σ² + ε), ε = 10⁻⁵"
)

MISSING = "ε is missing or far too small: divide by √(σ² + ε)"
OUTSIDE = "ε is outside the root: it belongs beside σ², in √(σ² + ε)"
UNBIASED = "you divided by the unbiased deviation: the mean divides by m, not m − 1"


def _by(rstd: Callable[[Any, float, Any], Any]) -> Standardize:
    """`core.standardize` with another idea of 1/σ, made of v, ε and m."""

    def standardize(x: Any, S: core.Set | core.Axes, eps: float) -> tuple[Any, Any]:
        centered = core.center(x, S)
        own = rstd(core.mean(centered**2, S), eps, core.count(x, S))
        return centered * own, own

    return standardize


_STANDARDIZE: dict[str, Standardize] = {
    "you did not center: subtract the mean first": core.rescale,
    "you did not divide by σ": _by(lambda v, eps, m: 1 + 0 * v),
    "you divided by the variance: the root is missing": _by(
        lambda v, eps, m: 1 / (v + eps)
    ),
    UNBIASED: _by(lambda v, eps, m: (v * m / (m - 1) + eps) ** -0.5),
    OUTSIDE: _by(lambda v, eps, m: 1 / (v**0.5 + eps)),
    MISSING: _by(lambda v, eps, m: v**-0.5),
}
_FIXED_EPS: dict[str, Standardize] = {
    "your ε is 10⁻³, as in Keras: it is 10⁻⁵ here": (
        lambda x, S, eps: core.standardize(x, S, 1e-3)
    ),
}


def slips(
    solution: Callable[[Standardize], Callable[..., Any]], fixed_eps: bool = True
) -> dict[str, Callable[..., Any]]:
    """Mistakes by what to say of them; with `fixed_eps`, ε is 10⁻⁵ and no argument."""
    wrong = _STANDARDIZE | (_FIXED_EPS if fixed_eps else {})
    return {message: solution(standardize) for message, standardize in wrong.items()}
