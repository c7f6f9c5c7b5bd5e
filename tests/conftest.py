"""What the tests share: every array library through one fixture, and one tolerance.

Importing it needs no more than pytest, NumPy and torch. JAX is tested where it is
installed: no line of `normbook` names it.
"""

import gc
import os
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# The largest error allowed, in units of the largest value compared (or 1).
TOLERANCE = {
    # A hundred values a set, each sum off by a few 2⁻⁵³, grown by 1/std ≤ 100.
    "float64": 1e-12,
    # The same at 2⁻²⁴.
    "float32": 2e-5,
    # Sums are in 32 bits, so what is left is rounding the result: half of 2⁻¹⁰.
    "float16": 2.0**-10,
    # The same for 8 bits of mantissa: half of 2⁻⁷.
    "bfloat16": 2.0**-7,
}


class Library(NamedTuple):
    """One array library on one device with one dtype."""

    name: str
    device: str
    dtype: str

    def array(self, values: Any) -> Any:
        """An array of this library and dtype; None stays None, a mask stays boolean."""
        if values is None:
            return None
        values = np.asarray(values)
        dtype = "bool" if values.dtype == bool else self.dtype
        if self.name == "numpy":
            return values.astype(dtype)
        if self.name == "jax":
            import jax.numpy as jnp

            return jnp.asarray(values, dtype)
        return torch.tensor(values, device=self.device, dtype=getattr(torch, dtype))

    def owns(self, value: Any) -> bool:
        """Whether a result stayed in this library, on this device, in this dtype."""
        if self.name == "numpy":
            return isinstance(value, np.ndarray) and value.dtype == self.dtype
        if self.name == "jax":
            return not isinstance(value, np.ndarray) and value.dtype == self.dtype
        return value.device.type == self.device and str(value.dtype).endswith(
            self.dtype
        )

    def close(self, got: Any, want: Any, times: float = 1.0) -> bool:
        """Whether `got` is `want` to this dtype's tolerance, `times` that if told."""
        return self.owns(got) and error(got, want) <= times * TOLERANCE[self.dtype]


def to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().double().cpu().numpy()
    return np.asarray(value, dtype="float64")


def error(got: Any, want: Any) -> float:
    """The largest difference, in units of the largest value wanted (or 1).

    Infinite where shapes differ or where only one of the two is nan.
    """
    got, want = to_numpy(got), to_numpy(want)
    if got.shape != want.shape or (np.isnan(got) != np.isnan(want)).any():
        return float("inf")
    scale = np.abs(want[np.isfinite(want)]).max(initial=1)
    differ = ~np.isnan(want) & (got != want)
    return float(np.abs(got[differ] - want[differ]).max(initial=0) / scale)


def numbers(value):
    """Every number in a record, wherever it is."""
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    elif not isinstance(value, str):
        yield value


def shape(value):
    """The shape of nested lists; it fails where they are ragged."""
    return tuple(torch.tensor(value).shape)


JAX = find_spec("jax") is not None
if JAX:
    os.environ |= {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
QUICK = {"numpy": "float64", "torch": "float32", "jax": "float32"}  # of `make quick`
LIBRARIES = [
    pytest.param(
        Library(name, "cpu", dtype),
        marks=[] if QUICK[name] == dtype else [pytest.mark.slow],
    )
    for name in ("numpy", "torch", *["jax"] * JAX)
    for dtype in ("float64", "float32")
]
if torch.cuda.is_available():
    LIBRARIES += [
        pytest.param(Library("torch", "cuda", dtype), marks=pytest.mark.gpu)
        for dtype in ("float64", "float32")
    ]


@pytest.fixture(
    params=LIBRARIES,
    ids=lambda library: f"{library.name}-{library.device}-{library.dtype}",
)
def library(request: pytest.FixtureRequest) -> Library:
    """Every array library that is here; a test that takes this runs on each."""
    return request.param


@pytest.fixture
def ax():
    """Empty Matplotlib axes in the book's style."""
    import matplotlib.pyplot as plt

    from normbook import plots

    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots()
        yield axes
        plt.close(figure)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pages first: the longest file, which would else keep the other cores waiting."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Look through all objects once: pytest does it five times more, and Python too."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
