"""Batch norm over processes: does it equal the joined batch, and what does it cost?

    torchrun --nproc-per-node=2 -m normbook.labs.across_machines

compares, on this machine's CPUs, or on its GPUs where there is one for each process,
and rank 0 prints. The same over hosts, started on each of them:

    torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-id=norm \
        --rdzv-endpoint=HOST:29500 -m normbook.labs.across_machines

HOST is the name of one of them. `python -m normbook.labs.across_machines --record`
starts processes here itself and writes the record.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from normbook import fast, nn
from normbook.moments import Moments
from normbook.training.records import run_and_record
from normbook.workers import NUMBERS, ROOM, STEPS, Workers

EPS = 1e-5
IMAGES, CHANNELS, SIDE = 16, 5, 4
SIZES = {  # images of each process, by the number of processes
    1: {"equal": [16]},
    2: {"equal": [8, 8], "unequal": [5, 11]},
    4: {"equal": [4, 4, 4, 4], "unequal": [1, 3, 5, 7]},
}


def start(
    work: Callable[..., Any], processes: int, *arguments: Any, timeout: float = 60.0
) -> list[Any]:
    """What `work(*arguments)` returns in each of so many processes, by rank.

    They meet at a file, and are kept for the next call. A process has one thread.
    """
    from joblib import Parallel, delayed

    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/meeting"
        return Parallel(n_jobs=processes, batch_size=1)(
            delayed(_member)(work, rank, processes, place, timeout, arguments)
            for rank in range(processes)
        )


def _member(
    work: Callable[..., Any],
    rank: int,
    processes: int,
    place: str,
    timeout: float,
    arguments: Sequence[Any],
) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=place,
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=timeout),
    )
    try:
        return work(*arguments)
    finally:
        dist.destroy_process_group()


def joined_batch() -> tuple[Tensor, Tensor]:
    """All images, and a random gradient with respect to their outputs; float64."""
    generator = torch.Generator().manual_seed(0)
    shape = 2, IMAGES, CHANNELS, SIDE, SIDE
    x, dy = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = 3 + 2 * x + torch.arange(IMAGES).view(-1, 1, 1, 1) / 4  # parts differ in mean
    return x, dy


def step(layer: Any, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output, gradients and running statistics of one step in training mode."""
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
        layer.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return {
        "y": y.detach(),
        "dx": x.grad,
        "dγ": layer.weight.grad,
        "dβ": layer.bias.grad,
        "running mean": layer.running_mean,
        "running variance": layer.running_var,
    }


def differences(
    sizes: Sequence[int], planted: str | None = None, device: str = "cpu"
) -> dict[str, float] | None:
    """Our layer over len(sizes) processes against torch's on the joined batch.

    Called by every process of the default group; the first len(sizes) of them compare,
    each its own part, and all return the largest differences of any. dγ and dβ are
    added up over processes, as a data-parallel net does. None for the others.
    """
    group = dist.new_group(list(range(len(sizes))))
    rank = dist.get_rank()
    if rank >= len(sizes):
        return None
    x, dy = (whole.to(device) for whole in joined_batch())
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    want = step(torch.nn.BatchNorm2d(CHANNELS, EPS, **options), x, dy)
    want |= {"y": want["y"][mine], "dx": want["dx"][mine]}
    layer = nn.SyncBatchNorm(CHANNELS, EPS, process_group=group, **options)
    with PLANTED[planted](x[mine]) if planted else nullcontext():
        got = step(layer, x[mine], dy[mine])
    for name in ("dγ", "dβ"):
        dist.all_reduce(got[name], group=group)
    off = torch.stack([(got[name] - want[name]).abs().max() for name in want])
    dist.all_reduce(off, dist.ReduceOp.MAX, group=group)
    return dict(zip(want, off.tolist(), strict=True))


def _averaged_variances(x: Tensor) -> AbstractContextManager[Any]:
    def merge(workers: Workers, here: Moments) -> Moments:
        together = right(workers, here)
        var = workers(here.var()) / dist.get_world_size(workers.group)
        return together._replace(m2=var * together.count)

    right = Workers.merge
    return mock.patch.object(Workers, "merge", merge)


def _averaged_rstds(x: Tensor) -> AbstractContextManager[Any]:
    def merge(workers: Workers, here: Moments) -> Moments:
        together = right(workers, here)
        rstd = workers((here.var() + EPS) ** -0.5)
        rstd = rstd / dist.get_world_size(workers.group)
        return together._replace(m2=(rstd**-2 - EPS) * together.count)

    right = Workers.merge
    return mock.patch.object(Workers, "merge", merge)


def _no_reduce_backward(x: Tensor) -> AbstractContextManager[Any]:
    return mock.patch.object(Workers, "__call__", lambda workers, here: here)


def _local_count(x: Tensor) -> AbstractContextManager[Any]:
    def track(running: nn.Running, mean: Tensor, var: Tensor) -> None:
        m, all_ = (images * SIDE * SIDE for images in (len(x), IMAGES))
        right(running, mean, var * (m / (m - 1)) / (all_ / (all_ - 1)))

    right = nn.track
    return mock.patch.object(nn, "track", track)


# Each is a mistake that `differences` must see.
PLANTED: dict[str, Callable[[Tensor], AbstractContextManager[Any]]] = {
    "averaged variances": _averaged_variances,
    "averaged rstds": _averaged_rstds,
    "backward without the reduce": _no_reduce_backward,
    "running variance from the local count": _local_count,
}


def compare(device: str = "cpu") -> list[dict[str, Any]]:
    """`differences` for all sizes that the default group has processes for.

    The planted mistakes are made on the unequal parts of the most processes.
    """
    found = []
    most = max(number for number in SIZES if number <= dist.get_world_size())
    for number in SIZES:
        if number <= most:
            for parts, sizes in SIZES[number].items():
                row = {"processes": number, "parts": parts, "planted": None}
                found.append(row | {"differences": differences(sizes, None, device)})
    for name in PLANTED if most > 1 else ():
        row = {"processes": most, "parts": "unequal", "planted": name}
        row["differences"] = differences(SIZES[most]["unequal"], name, device)
        found.append(row)
    return found


def costs(
    channels: int, processes: int, images: int = 8, side: int = 14, number: int = 9
) -> dict[str, float] | None:
    """Bytes that a process sends and seconds of a step, there and back, in float32.

    Every process has as many images. `layer` is our batch norm of these alone, by the
    plain formula that the synchronized one uses, `kernel` the same by a kernel of
    `normbook.fast`. `exchanges` are the two of a step alone, `bare` the same numbers
    without their frames. None in a process beyond `processes`.
    """
    group = dist.new_group(list(range(processes)))
    if dist.get_rank() >= processes:
        dist.barrier()
        return None
    x, dy = torch.randn(2, images, channels, side, side)
    x.requires_grad_()
    workers = Workers(group, x.shape, x.dtype)
    arrays = list(torch.randn(2, 1, channels, 1, 1))
    bare = torch.stack(arrays)
    everyone = [torch.empty_like(bare) for _ in range(processes)]
    alone = nn.BatchNorm(channels)
    together = nn.SyncBatchNorm(channels, process_group=group)

    def plain() -> None:
        with fast.off():
            alone(x).backward(dy)

    def exchanges() -> None:
        for name in STEPS:
            workers.gather(name, arrays)

    def without_frames() -> None:
        for _ in STEPS:
            dist.all_gather(everyone, bare, group=group)

    runs: dict[str, Callable[[], Any]] = {
        "layer": plain,
        "kernel": lambda: alone(x).backward(dy),
        "synchronized": lambda: together(x).backward(dy),
        "exchanges": exchanges,
        "bare": without_frames,
    }
    seconds = {name: _seconds(run, group, number) for name, run in runs.items()}
    dist.barrier()
    sent = bare.nbytes
    return {
        "channels": channels,
        "processes": processes,
        "bytes of numbers": len(STEPS) * sent,
        "bytes of frames": len(STEPS) * (8 * NUMBERS + max(ROOM, sent)),
        "bytes of x": x.nbytes,
        "seconds": seconds,
    }


def _seconds(run: Callable[[], Any], group: Any, number: int, calls: int = 3) -> float:
    """The shortest of so many rounds; all processes make the same calls together."""
    taken = []
    for _ in range(number + 1):
        dist.barrier(group)
        began = time.perf_counter()
        for _ in range(calls):
            run()
        taken.append((time.perf_counter() - began) / calls)
    return min(taken[1:])


def _all_costs() -> list[dict[str, Any]]:
    return [
        costs(channels, processes)
        for processes in (1, 2, 4)
        for channels in (64, 256, 1024)
    ]


def main() -> None:
    """Under torchrun compare and print; with --record write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    if parser.parse_args().record:
        runs = {
            "differences": lambda: start(compare, 4)[0],
            "costs": lambda: start(_all_costs, 4)[0],
        }
        command = "python -m normbook.labs.across_machines --record"
        print(run_and_record("across_machines", runs, command))
        return
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(local)
    found = compare("cuda" if on_gpu else "cpu")
    if dist.get_rank() == 0:
        print("\n".join(map(line, found)))
    dist.destroy_process_group()


def line(row: dict[str, Any]) -> str:
    """A row of `compare` to read: what differs most."""
    name, off = max(row["differences"].items(), key=lambda item: item[1])
    number = row["processes"]
    setting = f"{number} process{'es' * (number > 1)}, {row['parts']} parts"
    setting += f", {row['planted']}" if row["planted"] else ""
    return f"{setting:<62} {'equal to 1e-12' if off < 1e-12 else f'{name} {off:.2g}'}"


if __name__ == "__main__":
    main()
