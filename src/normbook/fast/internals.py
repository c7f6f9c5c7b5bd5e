"""Private names of torch, in this one place: any release may drop them.

A kernel must step aside where torch does not just compute, and only private names tell
when. `TORCH` lists them. Where the installed release lacks one, `MISSING` says which:
kernels are off, and all else works.
"""

from pkgutil import resolve_name
from typing import Any

import torch
from torch.autograd import forward_ad

TORCH = (
    "torch._C._are_functorch_transforms_active",
    "torch._C._get_tracing_state",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch.Tensor._is_zerotensor",
    "torch.autograd.forward_ad._current_level",
)
# What only measurements need.
DISPATCH_MODE = "torch.utils._python_dispatch.TorchDispatchMode"
DONATED_BUFFER = "torch._functorch.config.donated_buffer"


def need(*names: str) -> list[Any]:
    """What these dotted names of torch stand for; ImportError where it lacks some."""
    values, lacking = [], []
    for name in names:
        try:
            values.append(resolve_name(name))
        except (AttributeError, ImportError):
            lacking.append(name)
    if lacking:
        raise ImportError(f"torch {torch.__version__} has no {', '.join(lacking)}")
    return values


MISSING: str | None = None  # which of `TORCH` this release lacks, in words
try:
    transformed, _tracing, _modes, is_legacy_batched, is_zero, _ = need(*TORCH)
except ImportError as error:
    MISSING = str(error)
    transformed = _tracing = _modes = is_legacy_batched = is_zero = None


def untransformed() -> bool:
    """Whether an operation is just computed: nothing traces it, or makes another of it.

    That is torch.jit, a dispatch mode, torch.func and forward mode; torch.compile says
    so itself. Not to be asked where names are `MISSING`.
    """
    return not (
        _tracing() is not None
        or _modes()
        or transformed()
        or forward_ad._current_level >= 0
    )


def direct_apply(function: Any) -> Any:
    """`function.apply` without its questions about torch.func, 2.5 µs.

    The usual one in a torch where nothing lies beneath it.
    """
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


def keep_buffers() -> None:
    """Let torch.compile give away no buffer that a second backward needs.

    ImportError where this torch has no such switch.
    """
    need(DONATED_BUFFER)
    torch._functorch.config.donated_buffer = False


class _NoMode:
    """Stands in for `TorchDispatchMode`; only who wants one is told."""

    def __init__(self) -> None:
        need(DISPATCH_MODE)


try:
    (TorchDispatchMode,) = need(DISPATCH_MODE)
except ImportError:
    TorchDispatchMode = _NoMode
