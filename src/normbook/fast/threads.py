"""Kernels of a CPU on several threads, none of which waits for Python.

A kernel takes a range of parts and one of groups. `share` cuts either into pieces and
has torch's own workers take one after another. No cut changes the order of a sum.
"""

# mypy: allow-untyped-defs

import ctypes
import os
import struct
from functools import cache
from threading import Thread
from typing import Any

from llvmlite import ir
from numba import cfunc, extending, types

from normbook.fast import PROCESS
from normbook.fast.internals import machine_code

intrinsic: Any = extending.intrinsic
INT = ir.IntType(64)
KINDS = {int: "q", float: "d", bool: "?"}
TYPES = {"q": types.intp, "d": types.float64, "?": types.boolean}


def share(
    kernel: Any, threads: int, pieces: int, parts: int, groups: int, *to: Any
) -> None:
    """Call a kernel on pieces of its parts, or of its groups where those are too few.

    to: what it takes after its ranges, integers, floats and booleans.
    """
    kinds = "".join([KINDS[type(value)] for value in to])
    work = 0, pieces, parts, groups, _address(kernel, kinds), *to
    layout = "qqqqq" + kinds.replace("?", "q")
    memory = ctypes.create_string_buffer(struct.pack(layout, *work))
    _together(_worker(kinds), ctypes.addressof(memory), threads)


@cache
def _address(kernel: Any, kinds: str) -> int:
    """Where the machine code of a kernel for these arguments begins."""
    takes = tuple(TYPES[kind] for kind in "qqqq" + kinds)
    kernel.compile(takes)
    return machine_code(kernel.overloads[takes])


@cache
def _worker(kinds: str) -> Any:
    """What a thread does: take one piece of a kernel's work after another.

    A C function, since threads that took turns in Python would wait for each other. Its
    argument is the address of a list, 8 bytes each: the next piece; how many pieces,
    parts and groups there are; the kernel's address; and what the kernel takes after
    its ranges, values of these kinds.
    """
    takes = tuple(TYPES[kind] for kind in "qqqq" + kinds)

    def held(context: Any, builder: Any, data: Any, i: int, kind: Any) -> Any:
        model = context.data_model_manager[kind]
        at = builder.add(data, INT(8 * i))
        at = builder.inttoptr(at, model.get_data_type().as_pointer())
        return model.from_data(builder, builder.load(at))

    @intrinsic
    def take(_: Any, data: Any) -> Any:
        """The next piece, which no other thread will get, and the three numbers."""
        four = types.UniTuple(types.intp, 4)

        def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
            at = builder.inttoptr(args[0], INT.as_pointer())
            piece = builder.atomic_rmw("add", at, INT(1), "monotonic")
            data = args[0]
            rest = [held(context, builder, data, i, types.intp) for i in (1, 2, 3)]
            return context.make_tuple(builder, four, [piece, *rest])

        return four(data), build

    @intrinsic
    def call(_: Any, data: Any, p0: Any, p1: Any, g0: Any, g1: Any) -> Any:
        """Call the kernel on these ranges."""

        def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
            data, *given = args
            rest = enumerate(takes[4:], 5)
            given += (held(context, builder, data, *at) for at in rest)
            convention = context.call_conv
            kernel = builder.inttoptr(
                held(context, builder, data, 4, types.intp),
                convention.get_function_type(types.none, takes).as_pointer(),
            )
            convention.call_function(builder, kernel, types.none, takes, given)
            return context.get_dummy_value()

        return types.void(data, p0, p1, g0, g1), build

    @cfunc(types.void(types.intp))
    def work(data: Any) -> None:
        piece, pieces, parts, groups = take(data)
        while piece < pieces:
            most = parts if parts >= pieces else groups
            first, end = most * piece // pieces, most * (piece + 1) // pieces
            if parts >= pieces:
                call(data, first, end, 0, groups)
            else:
                call(data, 0, parts, first, end)
            piece, pieces, parts, groups = take(data)

    return work


def _together(worker: Any, data: int, threads: int) -> None:
    """Call the worker in this thread and in others at the same time."""
    # A fork has none of the workers that it would wait for.
    if os.getpid() == PROCESS and (start := _openmp()) is not None:
        start(worker.address, data, threads, 0)
        return
    helpers = [Thread(target=worker.ctypes, args=(data,)) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    worker.ctypes(data)
    for helper in helpers:
        helper.join()


@cache
def _openmp() -> Any:
    """What starts torch's own workers: threads beside them would fight for their cores.

    They wait for their next work awake, each on its core. None where torch came with
    another OpenMP than GNU's.
    """
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (TypeError, AttributeError):  # Windows; another OpenMP
        return None
    start.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    return start
