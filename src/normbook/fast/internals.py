"""Private names of torch and numba, in this one place: any release may drop them.

A kernel must step aside where torch does not just compute, and only private names tell
when. `TORCH` and `NUMBA` list what kernels need. Where the installed release lacks one,
`MISSING` or an ImportError says which: kernels are off, and all else works.
"""

from importlib import import_module
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
# What `cpu` asks of numba.
NUMBA = (
    "numba.core.cpu.CPUContext.get_dummy_value",
    "numba.core.cpu.CPUContext.get_value_type",
    "numba.core.dispatcher.Dispatcher.enable_caching",
)
# What only measurements need.
DISPATCH_MODE = "torch.utils._python_dispatch.TorchDispatchMode"
DONATED_BUFFER = "torch._functorch.config.donated_buffer"


def need(*names: str) -> list[Any]:
    """What these dotted names of one library stand for.

    ImportError where it is not installed, or names those that its release lacks.
    """
    library, values, lacking = import_module(names[0].split(".")[0]), [], []
    for name in names:
        try:
            values.append(resolve_name(name))
        except (AttributeError, ImportError):
            lacking.append(name)
    if lacking:
        release = f"{library.__name__} {library.__version__}"
        raise ImportError(f"{release} has no {', '.join(lacking)}")
    return values


MISSING: str | None = None  # which of `TORCH` this release lacks, in words
try:
    _transforms, _tracing, _modes, is_legacy_batched, is_zero, _ = need(*TORCH)
except ImportError as error:
    MISSING = str(error)
    _transforms = _tracing = _modes = is_legacy_batched = is_zero = None


def untransformed() -> bool:
    """Whether an operation is just computed: nothing traces it, or makes another of it.

    That is torch.jit, a dispatch mode, torch.func and forward mode; torch.compile says
    so itself. Not to be asked where names are `MISSING`.
    """
    return not (
        _tracing() is not None
        or _modes()
        or _transforms()
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
