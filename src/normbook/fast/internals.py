"""Private names of torch, in this one place: any release may drop them.

A kernel must step aside where torch does not just compute, and only private names tell
when. `TORCH` lists them. Where the installed release lacks one, `MISSING` says which:
kernels are off, and all else works.
"""

from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

TORCH = (
    "torch._C._are_functorch_transforms_active",
    "torch._C._get_tracing_state",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch.Tensor._is_zerotensor",
    "torch.autograd.forward_ad._current_level",
)
# What only measurements need: `measure.traffic` and `normbook.bench`.
DISPATCH_MODE = "torch.utils._python_dispatch.TorchDispatchMode"
FUNCTORCH = "torch._functorch.config"


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
    transformed, _tracing, _modes, _is_legacy_batched, _is_zero, _ = need(*TORCH)
except ImportError as error:
    MISSING = str(error)
    transformed = None


def readable(*values: Tensor | None) -> bool:
    """Whether an operation on these is just computed, from what lies in their memory.

    Not where torch.jit, a dispatch mode, torch.func or forward mode makes another of
    it; torch.compile says so itself. Not to be asked where names are `MISSING`.
    """
    level = forward_ad._current_level
    if _tracing() is not None or _modes() or transformed() or level >= 0:
        return False
    for value in values:
        if value is not None and (
            type(value) not in (Tensor, Parameter)
            or value.is_neg()
            or _is_zero(value)
            or _is_legacy_batched(value)
        ):
            return False
    return True
