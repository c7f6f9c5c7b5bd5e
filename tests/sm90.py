"""Compile the kernels of `normbook.fast.gpu` for an H100, and read what they became.

Needs no GPU: the host code runs on meta tensors, which have shapes and no values, and
each launch that it would make is compiled for compute capability 9.0 in its place.
"""

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normbook.fast import Task, Work, gpu

KERNELS = (
    "_forward",
    "_backward",
    "_moments",
    "_apply",
    "_sums",
    "_apply_back",
)
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
TILES = ("ROWS", "AS", "SS", "PS", "CS", "RS")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Launch(NamedTuple):
    """A kernel with all that decides how it is compiled."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    num_warps: int


class Built(NamedTuple):
    """What ptxas made of a launch; widths: the bytes of each global load and store."""

    registers: int
    stack: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]
    copies: dict[int, int]


class Recorder:
    """Stands in for a kernel and keeps its launches."""

    def __init__(self, name: str, launches: dict[Launch, None]):
        self.name, self.launches = name, launches
        self.kernel = getattr(gpu, name)

    def __getitem__(self, grid):
        def launch(*args, num_warps=4, **named):
            values = dict(zip(self.kernel.arg_names, args, strict=False)) | named
            self.launches[described(self.kernel, self.name, values, num_warps)] = None

        return launch


def described(kernel, name, values, num_warps) -> Launch:
    """The launch as Triton specializes it: 1 and None are constants, 16s are known."""
    signature, constants, divisible = [], [], []
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            kind = TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(place)
        elif (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1)
        ):
            kind = "constexpr"
            constants.append((parameter.name, value))
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32"
            if value % 16 == 0:
                divisible.append(place)
        signature.append((parameter.name, kind))
    return Launch(name, tuple(signature), tuple(constants), tuple(divisible), num_warps)


def launches(
    work: Work, dtype: torch.dtype, affine=(True, True), centered=True
) -> dict[Launch, None]:
    """What a forward and a backward of this work would launch on an H100."""
    found: dict[Launch, None] = {}
    kernels = {name: getattr(gpu, name) for name in KERNELS}
    for name in KERNELS:
        setattr(gpu, name, Recorder(name, found))
    try:
        with torch.device("meta"):
            x = torch.empty(work.N * work.G * work.A * work.S, dtype=dtype)
            gamma, beta = (
                torch.empty(work.G * work.A) if has else None for has in affine
            )
        task = Task(work, 1e-5, centered, any(affine))
        _, moments = gpu.forward(x, gamma, beta, task)
        gpu.backward(torch.empty_like(x), x, gamma, moments, task)
    finally:
        for name, kernel in kernels.items():
            setattr(gpu, name, kernel)
    return found


@cache
def build(launch: Launch) -> Built:
    source = ASTSource(
        getattr(gpu, launch.kernel),
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(place,): [["tt.divisibility", 16]] for place in launch.divisible},
    )
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target, options={"num_warps": launch.num_warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    ptx = made.asm["ptx"]
    numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Built(
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        made.metadata.shared,
        widths(r"ld\.global\S*", ptx),
        widths(r"st\.global\S*", ptx),
        copies(ptx),
    )


def widths(instruction: str, ptx: str) -> dict[int, int]:
    """Bytes moved by one such instruction, and how many there are."""
    found: dict[int, int] = {}
    for name in re.findall(instruction, ptx):
        times = int(match[1]) if (match := re.search(r"\.v(\d)", name)) else 1
        bits = int(re.search(r"[bfsu](\d+)$", name)[1])
        found[times * bits // 8] = found.get(times * bits // 8, 0) + 1
    return found


def copies(ptx: str) -> dict[int, int]:
    """The same for copies past the registers, under way while the program computes."""
    found: dict[int, int] = {}
    for size in re.findall(
        r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x(\w+)", ptx
    ):
        found[int(size, 16)] = found.get(int(size, 16), 0) + 1
    return found
