"""A kernel as one operation of torch, for the graphs of torch.compile.

torch knows the shapes that it returns and what its gradient is, and looks no further.
Outside a graph nothing calls it: there it would take some 20 µs more than `Kernel`.
"""

from typing import Any

import torch
from torch import Tensor

from normbook.fast import Backend, Kernel, Task, Work, _backend, of_parameters
from normbook.fast.internals import transformed

# torch has it since 2.7.
exporting: Any = getattr(torch.compiler, "is_exporting", lambda: False)


@torch.compiler.assume_constant_result
def backend_of(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The module of kernels for such tensors: asked once, while a graph is made.

    None within torch.func, whose transforms the operation has no rule for, and for an
    exported program, which is to run where this package is not.
    """
    if transformed() or exporting():
        return None
    return _backend(device, dtype)


SETTINGS = "SymInt[] work, float eps, bool centered, bool affine) -> (Tensor, Tensor)"
FORWARD = f"(Tensor x, Tensor? gamma, Tensor? beta, {SETTINGS}"
BACKWARD = f"(Tensor dy, Tensor x, Tensor? gamma, Tensor moments, {SETTINGS}"


def _kernel(x: Tensor, sizes: list[Any], *rest: Any) -> Kernel:
    """The kernel of an operation's arguments; a schema knows no NamedTuple."""
    work = Work(*sizes[:4], *map(bool, sizes[4:]))
    backend: Any = _backend(x.device, x.dtype)
    return Kernel(backend, Task(work, *rest))


@torch.library.custom_op("normbook::forward", mutates_args=(), schema=FORWARD)
def operation(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    """`Backend.forward` as an operation of torch."""
    kernel = _kernel(x, *settings)
    return kernel.backend.forward(x, gamma, beta, kernel.task)


@operation.register_fake
def _(
    x: Tensor, gamma: Any, beta: Any, sizes: list[Any], *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(2, Work(*sizes).sets, dtype=torch.float32)


@torch.library.custom_op("normbook::backward", mutates_args=(), schema=BACKWARD)
def operation_back(
    dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """`Kernel.backward` as an operation of torch."""
    return _kernel(x, *settings).backward(dy, x, gamma, moments)


@operation_back.register_fake
def _(
    dy: Tensor, x: Tensor, gamma: Any, moments: Any, sizes: list[Any], *_: Any
) -> tuple[Tensor, Tensor]:
    channels = sizes[1] * sizes[2]
    return torch.empty_like(x), x.new_empty(2, channels, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gamma, beta, *ctx.settings = inputs
    ctx.save_for_backward(x, gamma, beta, output[1])


def _back(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
    x, gamma, beta, moments = ctx.saved_tensors
    dx, sums = operation_back(dy, x, gamma, moments, *ctx.settings)
    return dx, *of_parameters(sums, gamma, beta), *[None] * len(ctx.settings)


operation.register_autograd(_back, setup_context=_save)
