"""What chapter 7 measures is what it says; times themselves are the machine's."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from normbook import fast, functional
from normbook.labs import fast as runs
from normbook.measure import timing, traffic
from normbook.methods import METHODS

pytestmark = pytest.mark.slow

X = torch.linspace(-2, 3, 8 * 16).reshape(8, 16)


def test_rounds_take_turns_and_begin_with_another_each_time(monkeypatch):
    order = []
    monkeypatch.setattr(
        timing, "seconds", lambda run, calls, device: order.append(run()) or 1.0
    )
    runs = [lambda name=name: name for name in "abc"]
    found = timing.rounds(runs, number=2)
    assert found == [[1.0, 1.0]] * 3
    assert "".join(order[-6:]) == "abcbca"


def test_a_turn_is_as_many_calls_as_fill_the_least_time_after_one(monkeypatch):
    asked = []
    monkeypatch.setattr(
        timing, "seconds", lambda run, calls, device: asked.append(calls) or 1e-4
    )
    timing.rounds([lambda: asked.append("untimed")], number=1, least=1e-3)
    assert asked == [3, 3, "untimed", 11]


def test_one_thread_is_timed_by_its_work_and_more_by_the_clock():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert timing.seconds(lambda: time.sleep(0.05), 1) < 0.02
        torch.set_num_threads(2)
        assert timing.seconds(lambda: time.sleep(0.05), 1) >= 0.05
    finally:
        torch.set_num_threads(before)


def test_reuse_of_memory_changes_no_result():
    timing.reuse_memory()
    assert torch.ones(2**20).sum() == 2**20


def test_caches_are_named_by_level():
    assert set(runs.caches()) <= {"L1", "L2"}
    assert all(size >= 2**12 for size in runs.caches().values())


def test_arithmetic_needs_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert runs.arithmetic((1, 2)) is None


@pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="numba is missing")
def test_more_arithmetic_takes_more_time():
    few, many = runs.arithmetic((1, 300), values=2**16)
    assert many > 3 * few > 0


def test_steps_are_counted_in_copies():
    found = traffic.steps(lambda: (X + 1).sum(-1).view(2, 4), X, number=1)
    assert [row["step"] for row in found] == ["add", "sum"]
    assert [row["moves"] for row in found] == [1, (128 + 8) / 256]
    assert all(row["takes"] > 0 for row in found)


def test_what_a_run_keeps_is_counted_once_a_tensor():
    leaf = X.clone().requires_grad_()
    assert traffic.saved(lambda: leaf.exp()) == X.nbytes
    assert traffic.saved(lambda: leaf * leaf) == X.nbytes
    assert traffic.saved(lambda: leaf + 1) == 0


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_blocks_of_any_size_give_layer_norm(rows):
    y = runs.in_blocks(X, rows)()
    assert torch.allclose(y, functional.layer_norm(X), atol=1e-6)


def test_an_order_of_work_for_each_size():
    found = runs.orders(X, [1, 8], number=1)
    assert len(found) == 2
    assert min(found) > 0


def test_overlap_needs_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert runs.overlap(X, X[0], X[1]) is None


@pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="numba is missing")
@pytest.mark.parametrize("rows", [1, 8])
def test_both_orders_of_the_loops_are_timed_and_give_layer_norm(rows):
    taken, y = runs.overlap(X[:rows], X[0], X[1], number=1)
    assert list(taken) == ["loop after loop", "the next row meanwhile"]
    assert min(taken.values()) > 0
    assert torch.allclose(y, functional.layer_norm(X[:rows], X[0], X[1]), atol=1e-6)


def test_one_pass_loses_the_digits_that_two_passes_keep():
    found = runs.variance_errors([0, 1e3, 1e4], sets=5)
    assert max(found["two passes"] + found["one pass, less the first value"]) < 1e-6
    assert (
        found["one pass"][0] < 1e-6 < 1e-3 < found["one pass"][1] < found["one pass"][2]
    )


def test_the_source_of_a_kernel_is_read_without_importing_it():
    text = runs.source("gpu", "_forward")
    assert text.startswith("@triton.jit\ndef _forward(")
    assert text.count("\ndef ") == 1
    assert text in Path(fast.__file__).with_name("gpu.py").read_text()
    with pytest.raises(KeyError, match="nosuch"):
        runs.source("cpu", "nosuch")


@pytest.mark.processes
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no Triton")
def test_the_interpreter_finds_the_kernels_right():
    found = runs.interpreted()
    assert {name: list(errors) for name, errors in found.items()} == {
        method.name: ["y", "dx", "dγ", *["dβ"] * method.centered]
        for method in METHODS.values()
    }
    assert all(
        0 < error < 1e-5 for errors in found.values() for error in errors.values()
    )


def test_without_triton_nothing_was_interpreted(monkeypatch):
    monkeypatch.setitem(sys.modules, "normbook.fast.gpu", None)
    monkeypatch.delattr("normbook.fast.gpu", raising=False)  # an earlier test's import
    assert runs._errors() is None
    monkeypatch.setattr(
        runs.subprocess,
        "run",
        lambda *args, **kwargs: type("Done", (), {"stdout": json.dumps(None)}),
    )
    assert runs.interpreted() is None
