"""Count, mean and variance as data arrive: one value, one batch, one machine at a time.

Working on the mean and on m2 = Σ(x − mean)² rather than on Σx and Σx² keeps every digit
that float32 has; E[x²] − E[x]² loses them all when the mean is large.
"""

from typing import Any, NamedTuple

from normbook import core
from normbook.core import Array, Axes, Set


class Moments(NamedTuple):
    """count m, mean, and m2 = Σ(x − mean)², each a number or an array of statistics."""

    count: Any
    mean: Any
    m2: Any

    @classmethod
    def of(cls, x: Array, S: Set | Axes) -> "Moments":
        """Moments over each set, in two passes; reduced axes stay, with length 1."""
        mean = core.mean(x, S)
        return cls(core.count(x, S), mean, core.total(core.center(x, S, mean) ** 2, S))

    def push(self, x: Any) -> "Moments":
        """Take in one value more. Welford (1962)."""
        count = self.count + 1
        delta = x - self.mean
        mean = self.mean + delta / count
        return Moments(count, mean, self.m2 + delta * (x - mean))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of two parts together, of any sizes. Chan, Golub & LeVeque (1983)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta**2 * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def var(self, correction: int = 0) -> Any:
        """m2/(m − correction): 0 gives the biased variance, 1 the unbiased one."""
        return self.m2 / (self.count - correction)


NONE_YET = Moments(0, 0.0, 0.0)


def standardize(
    x: Array, S: Set | Axes, eps: float, centered: bool = True
) -> tuple[Any, Any, Moments]:
    """`core.standardize`, or `core.rescale` where not centered, and its moments.

    Returns x_hat, rstd = 1/√(v + ε) and the moments of each set, which were taken on
    the way; without centering they are those about 0, with m2 = Σx².
    """
    mean = core.mean(x, S) if centered else 0.0
    deviation = core.center(x, S, mean) if centered else x
    square = core.mean(deviation * deviation, S)
    m = core.count(x, S)
    return *core.rescale(deviation, S, eps, square), Moments(m, mean, m * square)


def running(old: Any, new: Any, momentum: Any) -> Any:
    """The exponential moving average of evaluation mode: old + momentum·(new − old).

    momentum is the weight of the *new* value, as in torch; Keras and Flax call the
    weight of the old value so, which makes their 0.99 the 0.01 of this function.
    """
    return old + momentum * (new - old)
