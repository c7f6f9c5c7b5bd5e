"""SyncBatchNorm over processes. They start once, make all checks, and one dies."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import error
from torch.nn.parallel import DistributedDataParallel

from normbook import functional, nn
from normbook.labs import across_machines
from normbook.workers import ROOM, Workers

PROCESSES, PATIENCE = 4, 2  # seconds of the group whose processes come late
SETTINGS = {
    "as it comes": {},
    "momentum None": {"momentum": None},
    "no running statistics": {"track_running_stats": False},
    "no parameters": {"affine": False},
}
# Axes after the channel's, and each process's part of the batch: also none and one.
SHAPES = {
    "(N, C)": ((), [1, 0, 3, 2]),
    "(N, C, L)": ((5,), [2, 2, 2, 2]),
    "(N, C, H, W)": ((2, 3), [0, 1, 5, 1]),
    "(N, C, D, H, W)": ((2, 1, 3), [1, 1, 1, 4]),
}


def mine(sizes):
    rank = dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def batch(sizes, rest, dtype=torch.float64, channels=3):
    generator = torch.Generator().manual_seed(0)
    shape = 2, sum(sizes), channels, *rest
    x, dy = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (3 + 2 * x).to(dtype), dy.to(dtype)


def same_as_joined(sizes, rest, dtype=torch.float64, where=None, **settings):
    """The largest error of two steps and an evaluation, in units of the largest."""
    x, dy = batch(sizes, rest, dtype)
    part = mine(sizes)
    sync = nn.SyncBatchNorm(3, dtype=dtype, **settings)
    joined = nn.BatchNorm(3, dtype=dtype, **settings)
    joined.load_state_dict(sync.state_dict())
    errors = []
    for shift in (0, 1):
        leaves = [(x[part] + shift).requires_grad_(), (x + shift).requires_grad_()]
        masks = (None, None) if where is None else (where[part], where)
        here, there = (
            layer(leaf, mask)
            for layer, leaf, mask in zip((sync, joined), leaves, masks, strict=True)
        )
        here.backward(dy[part])
        there.backward(dy)
        errors += [
            error(here, there[part]),
            error(leaves[0].grad, leaves[1].grad[part]),
        ]
    for parameter, want in zip(sync.parameters(), joined.parameters(), strict=True):
        dist.all_reduce(parameter.grad)
        errors.append(error(parameter.grad, want.grad))
    errors += map(error, sync.buffers(), joined.buffers())
    if where is None and x[part].numel():
        sync.eval(), joined.eval()
        if settings.get("track_running_stats", True):
            errors.append(error(sync(x[part]), joined(x)[part]))
        else:  # as in torch: on what lies here alone
            errors.append(error(sync(x[part]), joined(x[part])))
    return max(errors)


def masked():
    sizes, rest = [1, 2, 3, 1], (4,)
    where = torch.rand(7, 1, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    where[mine([0, 0, 0, 0]).start] = False  # the first process has nothing real
    return same_as_joined(sizes, rest, where=where)


def second_derivative():
    sizes, rest = [1, 2, 4, 1], (2,)
    x, dy = batch(sizes, rest)
    part = mine(sizes)

    def twice(layer, x, dy):
        x = x.clone().requires_grad_()
        dy = dy.clone().requires_grad_()
        (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
        (dx**3).sum().backward()
        return x.grad, dy.grad

    got = twice(nn.SyncBatchNorm(3).double(), x[part], dy[part])
    want = twice(nn.BatchNorm(3).double(), x, dy)
    return max(error(a, b[part]) for a, b in zip(got, want, strict=True))


def more_than_a_frame():
    channels = ROOM // 16 + 100
    x, dy = batch([1, 1, 1, 1], (2,), channels=channels)
    part = mine([1, 1, 1, 1])
    layers = nn.SyncBatchNorm(channels).double(), nn.BatchNorm(channels).double()
    leaves = x[part].clone().requires_grad_(), x.clone().requires_grad_()
    y, want = (layer(leaf) for layer, leaf in zip(layers, leaves, strict=True))
    y.backward(dy[part])
    want.backward(dy)
    return max(error(y, want[part]), error(leaves[0].grad, leaves[1].grad[part]))


def far_from_zero():
    """In float32 at mean 3,000: E[x²] − E[x]² would have no digit left."""
    x = 3000 + torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0))
    part = mine([1, 2, 3, 2])
    want = functional.batch_norm(x.double())
    return error(nn.SyncBatchNorm(3)(x[part]), want[part])


def data_parallel():
    """A converted net in DistributedDataParallel: the joined batch's gradients."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(3, 3, 1),
        torch.nn.BatchNorm2d(3),
    ).double()
    x, dy = batch([2, 2, 2, 2], (4, 4), channels=2)[0], torch.randn(8, 3, 2, 2).double()
    part = mine([2, 2, 2, 2])
    net(x).backward(dy)
    want = [parameter.grad.clone() for parameter in net.parameters()]
    want += [buffer.clone() for buffer in net.buffers()]
    for layer in net:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
    net.zero_grad()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    parallel = DistributedDataParallel(net)
    parallel(x[part]).backward(PROCESSES * dy[part])  # it averages
    got = [parameter.grad for parameter in net.parameters()] + list(net.buffers())
    return max(map(error, got, want))


def sum_of_core():
    """S with these workers, in the functions of `core` themselves."""
    from normbook import core

    x, dy = batch([1, 2, 1, 3], ())
    part = mine([1, 2, 1, 3])
    S = core.Set((0,), None, Workers(dist.group.WORLD, x.shape, x.dtype))
    got = core.standardize(x[part], S, 1e-5)
    want = core.standardize(x, (0,), 1e-5)
    dx = core.standardize_vjp(dy[part], *got, S)
    return max(
        error(got[0], want[0][part]),
        error(dx, core.standardize_vjp(dy, *want, (0,))[part]),
    )


def odd_one_out(normal, odd):
    """What the last process does otherwise, and what all of them are told."""
    last = dist.get_rank() == PROCESSES - 1
    return message(odd if last else normal)


def message(run):
    try:
        run()
    except (ValueError, RuntimeError) as raised:
        return f"{type(raised).__name__}: {raised}"
    return "no error"


def other_step():
    """The last process skips a backward, and has come to the next forward."""
    layer, x = nn.SyncBatchNorm(3), torch.randn(4, 3, requires_grad=True)
    y = layer(x)
    return odd_one_out(lambda: y.sum().backward(), lambda: layer(x))


def disagreements():
    x = torch.randn(4, 3, 2)
    layers = {n: nn.SyncBatchNorm(n, affine=False) for n in (3, 4)}
    float64 = nn.SyncBatchNorm(3).double()
    real = torch.ones(4, 3, 2, dtype=torch.bool)
    return {
        "4 channels": odd_one_out(
            lambda: layers[3](x), lambda: layers[4](torch.randn(4, 4, 2))
        ),
        "4 axes": odd_one_out(lambda: layers[3](x), lambda: layers[3](x[..., None])),
        "torch.float64": odd_one_out(lambda: layers[3](x), lambda: float64(x.double())),
        "a mask": odd_one_out(lambda: layers[3](x), lambda: layers[3](x, real)),
        "forward": other_step(),
    }


def one_value():
    x = torch.randn(1 if dist.get_rank() == 0 else 0, 3)
    return message(lambda: nn.SyncBatchNorm(3)(x))


def timed(run):
    began = time.monotonic()
    return message(run), time.monotonic() - began


def late(impatient):
    layer = nn.SyncBatchNorm(3, process_group=impatient)
    if dist.get_rank() == 0:
        time.sleep(PATIENCE + 0.5)
    return timed(lambda: layer(torch.randn(4, 3)))


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    impatient = dist.new_group(timeout=timedelta(seconds=PATIENCE))
    results = {
        "compared": across_machines.compare(),
        "costs": across_machines.costs(6, 2, images=2, side=3, number=1),
        "errors": {
            **{name: same_as_joined(*shape[::-1]) for name, shape in SHAPES.items()},
            **{
                name: same_as_joined([3, 1, 2, 2], (2,), **settings)
                for name, settings in SETTINGS.items()
            },
            "a mask": masked(),
            "second derivative": second_derivative(),
            "more than a frame": more_than_a_frame(),
            "DistributedDataParallel": data_parallel(),
            "core": sum_of_core(),
        },
        "in float32": same_as_joined([3, 1, 2, 2], (5,), torch.float32),
        "far from zero": far_from_zero(),
        "in bfloat16": same_as_joined([3, 1, 2, 2], (5,), torch.bfloat16),
        "disagreements": disagreements(),
        "one value": one_value(),
    }
    dist.barrier()
    results["late"] = late(impatient)
    dist.barrier()
    if rank == PROCESSES - 1:
        os._exit(1)
    results["dead"] = timed(lambda: nn.SyncBatchNorm(3)(torch.randn(4, 3)))
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each living process found, by rank."""
    folder = tmp_path_factory.mktemp("machines")
    context = mp.get_context("forkserver")  # which imports once for them all
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    started = [
        context.Process(target=work, args=(rank, str(folder)))
        for rank in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0, 0, 1]
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES - 1)]


@pytest.mark.processes
def test_every_process_has_what_the_joined_batch_gives(results):
    for found in results:
        assert {name: e for name, e in found["errors"].items() if not e < 1e-12} == {}
        assert found["in float32"] < 2e-5
        assert found["far from zero"] < 1e-3
        assert found["in bfloat16"] < 2**-7


@pytest.mark.processes
def test_the_comparison_sees_planted_mistakes(results):
    rows = results[0]["compared"]
    right = [row for row in rows if row["planted"] is None]
    assert [(row["processes"], row["parts"]) for row in right] == [
        (1, "equal"),
        (2, "equal"),
        (2, "unequal"),
        (4, "equal"),
        (4, "unequal"),
    ]
    assert all(max(row["differences"].values()) < 1e-12 for row in right)
    wrong = {row["planted"]: row["differences"] for row in rows if row["planted"]}
    assert set(wrong) == set(across_machines.PLANTED)
    sees = {
        "averaged variances": "y",
        "averaged rstds": "y",
        "backward without the reduce": "dx",
        "running variance from the local count": "running variance",
    }
    for name, where in sees.items():
        assert wrong[name][where] > 1e-2
    assert wrong["backward without the reduce"]["y"] < 1e-12
    assert "dx" in across_machines.line(rows[-2])
    assert "equal to 1e-12" in across_machines.line(rows[0])


@pytest.mark.processes
def test_processes_that_disagree_say_so_and_go_on(results):
    for found in results:
        for what, told in found["disagreements"].items():
            assert told.startswith("InputError"), told
            odd = told.split(f"rank {PROCESSES - 1}: ")[1].split(". Give")[0]
            assert what in odd
            assert what not in told.split("rank 0: ")[1].split(";")[0]
        assert "more than 1 value" in found["one value"]
        assert "over all processes; got 1." in found["one value"]


@pytest.mark.processes
def test_a_process_that_is_late_or_dies_is_an_error_within_the_time_out(results):
    for rank, found in enumerate(results):
        told, seconds = found["late"]
        assert told.startswith("RuntimeError: SyncBatchNorm needs all 4 processes")
        assert seconds < PATIENCE + 2
        told, seconds = found["dead"]
        assert told.startswith("RuntimeError: SyncBatchNorm needs all 4 processes")
        assert seconds < 60, rank


@pytest.mark.processes
def test_costs_count_bytes_and_seconds(results):
    first, second, third = (found["costs"] for found in results)
    assert third is None
    for found in (first, second):
        assert found["bytes of numbers"] == 2 * 2 * 6 * 4
        assert found["bytes of frames"] == 2 * (7 * 8 + ROOM)
        assert found["bytes of x"] == 4 * 2 * 6 * 9
        assert min(found["seconds"].values()) > 0


def test_without_a_group_it_is_batch_norm():
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    ours, torchs = nn.SyncBatchNorm(3).double(), torch.nn.SyncBatchNorm(3).double()
    assert error(ours(x), torchs(x)) < 1e-12
    for mine_, torchs_ in zip(ours.buffers(), torchs.buffers(), strict=True):
        assert error(mine_, torchs_) < 1e-12
    with pytest.raises(functional.InputError, match="more than 1 value"):
        ours(x[:1, :, 0])


def test_conversion_keeps_parameters_buffers_and_mode():
    net = torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 1),
        torch.nn.Sequential(torch.nn.BatchNorm1d(3, momentum=None), nn.BatchNorm(3)),
        torch.nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        torch.nn.InstanceNorm1d(3),
    ).eval()
    kept = dict(net.state_dict())
    group = object()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net, group)
    norms = [converted[1][0], converted[1][1], converted[2]]
    assert all(type(layer) is nn.SyncBatchNorm for layer in norms)
    assert all(layer.process_group is group for layer in norms)
    assert type(converted[3]) is torch.nn.InstanceNorm1d
    assert not any(layer.training for layer in norms)
    assert norms[0].momentum is None
    assert norms[2].weight is None
    assert norms[2].running_mean is None
    assert all(
        value is kept[name] or torch.equal(value, kept[name])
        for name, value in converted.state_dict().items()
    )
    alone = nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm2d(3))
    assert type(alone) is nn.SyncBatchNorm
    torch.nn.SyncBatchNorm(3).load_state_dict(alone.state_dict())
