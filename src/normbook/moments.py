"""Count, mean and variance as data arrive: one value, one batch, one machine at a time.

Working on the mean and on m2 = Σ(x − mean)² rather than on Σx and Σx² keeps every digit
that float32 has; E[x²] − E[x]² loses them all when the mean is large.
"""

from typing import Any, NamedTuple

from normbook import core
from normbook.core import Array, Axes


class Moments(NamedTuple):
    """count m, mean, and m2 = Σ(x − mean)², each a number or an array of statistics."""

    count: Any
    mean: Any
    m2: Any

    @classmethod
    def of(cls, x: Array, axes: Axes, where: Array | None = None) -> "Moments":
        """Moments over S, in two passes; the reduced axes stay, with length 1."""
        mean = core.mean(x, axes, where)
        m2 = (core.only(x - mean, where) ** 2).sum(axes, keepdims=True)
        return cls(core.count(x, axes, where), mean, m2)

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


def running(old: Any, new: Any, momentum: Any) -> Any:
    """The exponential moving average of evaluation mode: old + momentum·(new − old).

    momentum is the weight of the *new* value, as in torch; Keras and Flax call the
    weight of the old value so, which makes their 0.99 the 0.01 of this function.
    """
    return old + momentum * (new - old)
