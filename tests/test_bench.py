"""The benchmark measures what it says: its rivals, its bounds, its errors, its record.

Nothing here compares times: they are the machine's, not the code's.
"""

import json
import sys
import types

import pytest
import torch
from torch import nn

from normbook import bench, fast
from normbook.measure import timing

ROWS, MAPS = (8, 64), (2, 64, 3, 3)
HERE = ("torch", "plain", "ours")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Turns of one call each."""
    monkeypatch.setattr(timing, "rounds", one_call_a_turn)


def one_call_a_turn(runs, device="cpu", *, number=9, least=0.0):
    return [[timing.seconds(run, 1) for _ in range(number)] for run in runs]


def a_row(**times):
    """A row as `measure` returns it, with these medians."""
    passes = {
        which: {who: [t / 2, t, 2 * t] for who, t in times.items()}
        for which in (bench.FORWARD, bench.BACKWARD, bench.BOTH)
    }
    case = bench.Case("LN", ROWS)._asdict()
    whom = [who for who in times if who != "copy"]
    return case | passes | {"threads": 1, "missing": {}} | {
        name: dict.fromkeys(whom, 1.0) for name in ("error", "peak")
    }  # fmt: skip


def test_rows_for_layer_norms_and_maps_for_the_others():
    found = bench.cases("cpu", shapes=[ROWS, MAPS])
    assert [(case.method, case.shape) for case in found] == [
        ("LN", ROWS),
        ("RMSNorm", ROWS),
        ("BN", MAPS),
        ("IN", MAPS),
        ("GN", MAPS),
    ]


def test_every_default_shape_suits_every_method():
    for device in ("cpu", "cuda"):
        found = bench.cases(device)
        assert {case.method for case in found} == set(bench.METHODS)
        assert {case.dtype for case in found} == set(bench.DTYPES[device])
        groups = [case.shape[1] % bench.GROUPS for case in found if case.method == "GN"]
        assert not any(groups)


@pytest.mark.slow
@pytest.mark.parametrize("case", bench.cases("cpu", shapes=[ROWS, MAPS]))
def test_every_rival_of_this_machine_is_right_and_timed(case):
    row = bench.measure(case, HERE, number=2)
    assert set(row["error"]) == set(row["peak"]) == set(HERE)
    assert max(row["error"].values()) < 1e-6
    assert min(row["error"].values()) > 0
    for which in (bench.FORWARD, bench.BACKWARD, bench.BOTH):
        assert list(row[which]) == ["copy", *HERE]
        assert all(low <= mid <= high for low, mid, high in row[which].values())


@pytest.mark.processes
def test_what_torch_compile_makes_is_right_or_missing_with_a_reason():
    row = bench.measure(bench.Case("RMSNorm", (4, 8)), ["torch", "compiled"], number=1)
    if "compiled" in row["missing"]:
        assert row["missing"]["compiled"]
    else:
        assert row["error"]["compiled"] < 1e-6


def test_a_wrong_rival_is_seen(monkeypatch):
    """One that is off by a thousandth."""

    def wrong(case):
        layer, parameters = bench.RIVALS["torch"](case)
        return bench.Rival(lambda x: layer(x) * 1.001, parameters)

    monkeypatch.setitem(bench.RIVALS, "wrong", wrong)
    row = bench.measure(bench.Case("LN", ROWS), ["torch", "wrong"], number=1)
    assert row["error"]["wrong"] > 5e-4 > row["error"]["torch"]


def test_plain_takes_the_plain_path_and_ours_may_take_a_kernel(monkeypatch):
    asked = []
    kernel_for = fast.kernel_for

    def spy(*args):
        asked.append(bool(fast._off))
        return kernel_for(*args)

    monkeypatch.setattr(fast, "kernel_for", spy)
    x = torch.randn(ROWS)
    for who in ("plain", "ours"):
        bench.RIVALS[who](bench.Case("LN", ROWS)).call(x)
    assert asked == [True, False]


def test_memory_counts_what_is_held_at_once():
    """y and dx are held in the end; a rival that keeps three more tensors shows it."""
    x = torch.randn(64, 1024)

    def hoard(x):
        return torch.stack([torch.sin(x), torch.cos(x), torch.tan(x)]).sum(0)

    lean = bench._peak(bench.RIVALS["torch"](bench.Case("LN", (64, 1024))), x, x)
    fat = bench._peak(bench.Rival(hoard, []), x, x)
    assert 2 <= lean / x.nbytes < 2.5
    assert fat / x.nbytes > 5


def test_a_package_that_is_not_here_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    row = bench.measure(bench.Case("LN", ROWS), ["torch", "Liger"], number=1)
    assert list(row["error"]) == ["torch"]
    assert "ModuleNotFoundError" in row["missing"]["Liger"]
    assert "Liger is missing: ModuleNotFoundError" in bench.tables([row])


def test_a_fault_of_our_own_is_raised(monkeypatch):
    def broken(case):
        raise RuntimeError("ours")

    monkeypatch.setitem(bench.RIVALS, "ours", broken)
    with pytest.raises(RuntimeError, match="ours"):
        bench.measure(bench.Case("LN", ROWS), HERE, number=1)


def test_liger_and_quack_are_called_by_their_public_names(monkeypatch):
    class RMSNorm(nn.RMSNorm):
        def __init__(self, size, eps, in_place):
            assert not in_place
            super().__init__(size, eps=eps)

    class GroupNorm(nn.GroupNorm):
        def __init__(self, channels, groups, eps, bias):
            super().__init__(groups, channels, eps=eps, affine=bias)

    liger = types.ModuleType("liger_kernel.transformers")
    liger.LigerLayerNorm = nn.LayerNorm
    liger.LigerRMSNorm = RMSNorm
    maps = types.ModuleType("liger_kernel.transformers.group_norm")
    maps.LigerGroupNorm = GroupNorm
    quack = types.ModuleType("quack")
    quack.rmsnorm = lambda x, weight, eps: nn.functional.rms_norm(
        x, weight.shape, weight, eps
    )
    for module in (liger, maps, quack):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    whom = {"LN": ["Liger"], "RMSNorm": ["Liger", "QuACK"], "GN": ["Liger"], "BN": []}
    for method, able in whom.items():
        shape = ROWS if bench.METHODS[method].axis == -1 else MAPS
        case = bench.Case(method, shape)
        row = bench.measure(case, ["torch", "Liger", "QuACK"], number=1)
        assert list(row["error"]) == ["torch", *able]
        assert max(row["error"].values()) < 1e-6


def test_a_ratio_and_a_share():
    row = a_row(copy=2.0, torch=4.0, ours=3.0)
    assert bench.ratio(row, bench.FORWARD, "ours") == 0.75
    assert bench.share(row, bench.FORWARD, "ours") == pytest.approx(2 / 3)
    assert bench.share(row, bench.BOTH, "ours") == pytest.approx(5 / 3)
    for device, least in (("cpu", 1.0), ("cuda", 1.5)):  # a GPU reads its x once more
        batch = row | {"method": "BN", "device": device}
        found = bench.share(batch, bench.FORWARD, "ours")
        assert found == pytest.approx(least * 2 / 3)


def test_the_tables_have_a_line_for_each_row_and_a_dash_for_who_is_missing():
    rows = [a_row(copy=1.0, torch=2.0, ours=1.0), a_row(copy=1.0, torch=2.0)]
    first, *_ = bench.tables(rows).split("\n\n")
    _, head, one, other = first.splitlines()
    assert head.split()[-2:] == ["torch", "ours"]
    assert one.endswith("1.00 (50%)  0.50 (100%)")
    assert other.endswith("1.00 (50%)  –")


def test_the_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("normbook.training.records.RECORDS", tmp_path)
    before = torch.get_num_threads()
    asked = "--methods LN --shapes 8x64 --rivals torch ours --threads 1 2 --record"
    bench.main([*asked.split(), "--quick"])
    assert torch.get_num_threads() == before
    assert "kept as" in capsys.readouterr().out
    kept = json.loads((tmp_path / "bench-cpu.json").read_text())
    assert kept["command"] == f"python -m normbook.bench {asked} --quick"
    assert kept["results"]["gpu"] is None
    rows = kept["results"]["rows"]
    assert [(row["shape"], row["threads"]) for row in rows] == [
        ([8, 64], 1),
        ([8, 64], 2),
    ]
    assert bench.ratio(rows[0], bench.FORWARD, "ours") > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused():
    with pytest.raises(SystemExit, match="needs a GPU"):
        bench.main(["--device", "cuda"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", bench.DTYPES["cuda"])
def test_on_a_gpu_every_method_is_right(dtype):
    for case in bench.cases("cuda", shapes=[(512, 4096), (8, 64, 28, 28)]):
        row = bench.measure(case._replace(dtype=dtype), HERE, number=2)
        assert row["error"]["ours"] <= {"float32": 1e-6, "bfloat16": 4e-3}[dtype]
