"""One table of methods: a sixth is an entry, with its functions and its layer alone.

Scale norm, g·x/‖x‖ (Nguyen & Salazar 2019, section 3.2), is `rescale` with one γ for
all channels: γ = g/√C.
"""

from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import error
from torch import nn

from normbook import bench, data, functional, plots
from normbook import nn as nb
from normbook.measure import agreement, timing
from normbook.methods import METHODS, Method, method_of
from normbook.plots import comparison
from normbook.training import stacked


def scale_norm(x: Any, gamma: Any = None, *, eps: float = 1e-5) -> Any:
    sets = functional.layer_sets(x.shape)
    return functional.normalize(x, sets, gamma, eps=eps, centered=False).y


def scale_norm_vjp(dy: Any, x: Any, gamma: Any = None, *, eps: float = 1e-5) -> Any:
    sets = functional.layer_sets(x.shape)
    return functional.normalize_vjp(dy, x, sets, gamma, eps=eps, centered=False)


def scale_sets(shape: tuple[int, ...]) -> functional.Sets:
    return functional.layer_sets(shape)


class ScaleNorm(nn.Module):
    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sets = functional.layer_sets(x.shape)
        return nb.normalize(x, sets, self.weight, None, self.eps, centered=False)


class NativeScaleNorm(ScaleNorm):
    """The formula of the paper, which knows neither sets nor VJPs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x.square().mean(-1, keepdim=True)
        return self.weight * x / (square + self.eps).sqrt()


@pytest.fixture
def sixth(monkeypatch):
    method = Method(
        "ScaleNorm",
        "scale norm",
        "#56B4E9",
        scale_norm,
        scale_norm_vjp,
        scale_sets,
        ScaleNorm,
        NativeScaleNorm,
        "one sample and one position, over its channels",
        axis=-1,
        picture=(1,),
        centered=False,
    )
    monkeypatch.setitem(METHODS, "ScaleNorm", method)
    return method


def test_it_is_the_paper_s(rng):
    x = rng.normal(size=(4, 6))
    got = scale_norm(x, np.array([2 / 6**0.5]), eps=0.0)
    assert error(got, 2 * x / np.linalg.norm(x, axis=1, keepdims=True)) < 1e-15


def test_it_is_drawn(sixth):
    assert plots.color("ScaleNorm") == plots.color("Pre-ScaleNorm") == "#56B4E9"
    assert plots.name("ScaleNorm") == "scale norm"
    with plt.style.context(plots.STYLE):
        figure, ax = plt.subplots()
        plots.sets(ax, "ScaleNorm", (2, 3, 2))
    assert mpl.colors.to_hex(ax.collections[-1].get_facecolor()[0]) != "#000000"
    plt.close(figure)


def test_it_is_tabulated_on_the_pages(sixth):
    method_sets = pytest.importorskip("method_sets", reason="Sphinx is not installed")
    assert 'id="sets-scalenorm"' in method_sets.picture("BN")
    assert "--scalenorm:#56B4E9" in method_sets.style()
    assert "#sets-scalenorm:checked" in method_sets.style()
    row = method_sets.table().rpartition("<tr>")[2]
    assert "scale norm" in row
    assert "no β" in row
    assert "share one mean square" in method_sets.sentence("ScaleNorm")


def test_it_has_a_card_on_the_cheat_sheet_without_traps(sixth):
    cheatsheet = pytest.importorskip("cheatsheet", reason="Sphinx is not installed")
    card = cheatsheet.facts("ScaleNorm")
    assert "scale norm" in card
    assert "(N, T, C): <b>C</b>" in card
    assert "<code>weight</code> (1)" in card
    assert "γ (1), no β" in card
    assert "both alike" in card
    assert "NativeScaleNorm(</span><wbr><span>channels</span>, <span>eps=1e-05" in card
    assert "ScaleNorm" not in cheatsheet.read_traps()


def test_it_is_in_the_table_of_layouts(sixth):
    rows = comparison.layouts({"N": 2, "C": 4, "H": 3, "W": 3}, groups=2)
    (row,) = (row for row in rows if row[0] == "ScaleNorm")
    assert row[3].size == 4
    assert "scale norm" in comparison.axes_table({"N": 2, "C": 4}, groups=2)


def test_it_is_benched_and_compared(sixth, monkeypatch):
    def one_call_a_turn(runs, device="cpu", *, number=9, least=0.0):
        return [[timing.seconds(run, 1) for _ in range(number)] for run in runs]

    monkeypatch.setattr(timing, "rounds", one_call_a_turn)
    assert bench.Case("ScaleNorm", (8, 16)) in bench.cases("cpu", shapes=[(8, 16)])
    row = bench.measure(bench.Case("ScaleNorm", (8, 16)), ["torch", "ours"], 2)
    assert max(row["error"].values()) < 1e-6
    rows = [row for row in agreement.agreement() if row["method"] == "scale_norm"]
    assert rows
    assert agreement.agrees(rows)
    assert "scale_norm" in {row["method"] for row in agreement.traffic()}


@pytest.mark.slow
def test_it_trains_in_the_convolutional_net(sixth):
    seeds = (0, 1)
    net = stacked.convolutional(seeds, "ScaleNorm", widths=(8, 8))
    digits = data.digits()
    batches = stacked.shuffled(digits.train, seeds, 32)
    losses = stacked.train(net, batches, steps=40, rates=[0.05, 0.05])
    assert (losses[-5:].mean(0) < losses[:5].mean(0) - 0.3).all()
    learned = [p for name, p in net.named_parameters() if name.endswith("weight")]
    assert all(len(p) in (2, 16) for p in learned)


def test_without_the_entry_it_is_unknown():
    assert method_of("ScaleNorm") is None
    with pytest.raises(ValueError, match="ScaleNorm"):
        plots.color("ScaleNorm")
    with pytest.raises(ValueError, match="ScaleNorm"):
        stacked.convolutional((0,), "ScaleNorm")


@pytest.mark.parametrize("key", METHODS)
def test_every_entry_says_what_its_functions_do(key, rng):
    """`axis`, `centered`, `grouped`, `tracks`: against the functions and layers."""
    method = METHODS[key]
    shape = (4, 6, 5, 3) if method.axis == 1 else (4, 5, 6)
    x = rng.normal(3, 1, shape)
    y = method.function(x, **method.options(2))
    sets = method.sets_of(shape, 2)
    assert sets.param == ((1,) if method.axis == 1 else (2,))
    means = y.reshape(sets.view).mean(sets.axes)
    assert (abs(means).max() < 1e-12) == method.centered
    layer = method.build(6, 2).eval()
    assert any("running" in name for name, _ in layer.named_buffers()) == method.tracks
    native = method.build_native(6, 2)
    assert dict(layer.state_dict()).keys() == dict(native.state_dict()).keys()
    assert method_of(f"noisy {key}") is method
