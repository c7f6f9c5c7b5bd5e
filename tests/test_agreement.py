import json

import numpy as np
import pytest
import torch

from normbook import core, functional
from normbook.measure import agreement, traffic


def test_every_place_and_dtype_agrees():
    rows = agreement.agreement()
    assert agreement.agrees(rows)
    places = {(row["library"], row["device"]) for row in rows}
    assert places == set(agreement.devices()) >= {("numpy", "cpu"), ("torch", "cpu")}
    assert {row["method"] for row in rows} == set(agreement.methods())
    assert all(max(row["y"], row["dx"]) > 0 for row in rows)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_fault_on_one_library_is_seen(monkeypatch, dtype):
    """torch's mean off by 1 % of a rounding unit times a few: no longer agrees."""
    off = 1 + 4 * agreement.TOLERANCE[dtype]
    mean = core.mean

    def faulty(x, S):
        return mean(x, S) * (off if isinstance(x, torch.Tensor) else 1)

    monkeypatch.setattr(core, "mean", faulty)
    rows = [r for r in agreement.agreement(["batch_norm"]) if r["dtype"] == dtype]
    assert not agreement.agrees(rows)


def test_sums_in_16_bits_would_be_seen(monkeypatch):
    monkeypatch.setattr(functional, "_wide", lambda x: x)
    assert not agreement.agrees(agreement.agreement(["layer_norm"]))


def test_traffic_of_ours_is_more_than_a_kernel_needs():
    rows = agreement.traffic(["batch_norm", "layer_norm"])
    assert [row["least"] for row in rows] == [1, 2.5, 1, 2.5]
    for row in rows:
        assert row["native"] == pytest.approx(row["least"], rel=0.05)
        assert row["ours"] > 4 * row["least"]


def test_running_statistics_cost_no_pass_of_their_own():
    """The moments that batch norm tracks are those that it standardizes with."""
    batch, layer = agreement.traffic(["batch_norm", "layer_norm"])[::2]
    assert batch["ours"] == pytest.approx(6.5, rel=0.01)
    assert batch["ours"] == pytest.approx(layer["ours"], rel=0.01)


def test_traffic_counts_what_is_read_and_written():
    x = torch.ones(100)
    assert traffic.moved(lambda: x + 1) == 800
    assert traffic.moved(lambda: x.view(10, 10)) == 0
    assert traffic.moved(lambda: x[:10].expand(10, 10) + x.view(10, 10)) == 840
    assert traffic.moved(lambda: x[:0].expand(10, 0) + 1) == 0
    assert traffic.moved(lambda: torch.add(x, x, out=torch.empty(100))) >= 1200


@pytest.mark.slow
def test_speed_has_a_row_for_each_pass_and_size():
    rows = agreement.speed("cpu", ["rms_norm"], rounds=1)
    assert [row["pass"] for row in rows] == ["forward", "forward + backward"] * 2
    assert all(row["ours"] > 0 < row["native"] for row in rows)


@pytest.mark.slow
def test_the_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("normbook.training.records.RECORDS", tmp_path)
    monkeypatch.setattr(agreement, "speed", lambda device: [{"ours": 1.0}])
    agreement.main(["--record"])
    (kept,) = tmp_path.glob("agreement-*.json")
    assert kept.name in capsys.readouterr().out
    results = json.loads(kept.read_text())["results"]
    assert len(results["agreement"]) == len(agreement.agreement())


def test_a_disagreement_ends_with_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("normbook.training.records.RECORDS", tmp_path)
    monkeypatch.setattr(agreement, "speed", lambda device: [{"ours": 1.0}])
    monkeypatch.setattr(agreement, "agrees", lambda rows: False)
    with pytest.raises(SystemExit, match="rounding"):
        agreement.main(["--record"])
    assert list(tmp_path.iterdir()) == []


def test_table_lines_up():
    rows = [
        {"name": "a", "error": 1.25e-7, "shape": [2, 3]},
        {"x": "bb", "e": 0.5, "s": 1},
    ]
    assert agreement.table(rows).splitlines() == [
        "name  error  shape",
        "a     1e-07  2×3",
        "bb    0.5    1",
    ]


def test_the_reference_takes_the_rounded_input():
    """Else the rounding of the input would count as an error of the method."""
    value = np.array([1 + 2**-13])
    assert agreement._numpy(agreement._put(value, "numpy", "cpu", "float16")) == 1
