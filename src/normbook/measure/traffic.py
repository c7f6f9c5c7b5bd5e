"""What a run moves: the bytes that its operations read and write, and what it saves."""

from collections.abc import Callable
from functools import partial
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from normbook.fast.internals import DISPATCH_MODE, need
from normbook.measure import timing


class _NoMode:
    """Stands in for `TorchDispatchMode`; only who wants one is told."""

    def __init__(self) -> None:
        need(DISPATCH_MODE)


try:
    _Mode: Any = need(DISPATCH_MODE)[0]
except ImportError:
    _Mode = _NoMode


class _Count(_Mode):
    """Adds up the bytes of every tensor that an operation reads or writes.

    What a tensor only repeats, along axes of stride 0, is read once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = op(*args, **(kwargs or {}))
        if not op.is_view:
            for value in (*args, *(result if isinstance(result, tuple) else (result,))):
                if isinstance(value, torch.Tensor):
                    axes = zip(value.shape, value.stride(), strict=True)
                    own = prod(size for size, stride in axes if stride or not size)
                    self.bytes += own * value.element_size()
        return result


def moved(run: Callable[[], Any]) -> int:
    """Bytes that torch's operations read and write while `run` runs."""
    with _Count() as count:
        run()
    return count.bytes


class _Steps(_Mode):
    """Notes every torch operation: what it moves, and what it takes again and again."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.steps = number, []  # type: ignore[var-annotated]

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        run = partial(op, *args, **(kwargs or {}))
        if not op.is_view:
            taken = [timing.seconds(run, 1) for _ in range(self.number)]
            name = op.overloadpacket.__name__
            self.steps.append((name, moved(run), median(taken)))
        return run()


def steps(run: Callable[[], Any], x: Tensor, number: int = 7) -> list[dict[str, Any]]:
    """Every operation of `run`: its name, what it moves and takes, in copies of x."""
    target = torch.empty_like(x)
    ((*copies,),) = timing.rounds([partial(target.copy_, x)], number=number)
    with _Steps(number) as noted:
        run()
    return [
        {"step": name, "moves": bytes_ / (2 * x.nbytes), "takes": s / median(copies)}
        for name, bytes_, s in noted.steps
    ]


def saved(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that `run` saves for a backward, each counted once."""
    sizes: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        result = run()  # alive to the end, so that no address is given out twice
    del result
    return sum(sizes.values())
