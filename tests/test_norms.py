"""The one factory of norms: every kind, side by side, is the book's method a copy."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normbook import data, functional
from normbook import nn as nb
from normbook.functional import InputError
from normbook.methods import METHODS, Method
from normbook.training import norm, norms, stacked

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "BN": functional.batch_norm,
    "LN": lambda x: functional.layer_norm(x, axes=tuple(range(1, x.ndim))),
    "IN": functional.instance_norm,
    "GN": lambda x: functional.group_norm(x, norms.GROUPS),
    "RMSNorm": lambda x: functional.rms_norm(x, axes=(1,)),
    "none": lambda x: x,
}


def some(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("kind", "rest"),
    [(kind, (4, 4)) for kind in FORMULAS]
    + [(kind, ()) for kind in FORMULAS if kind != "IN"],
)
def test_each_copy_gets_the_books_norm(kind, native, rest):
    layer = norm(kind, 2, 8, each=6, native=native).train()
    x = 3 + 2 * some(6, 16, *rest)
    for copy, y in enumerate(layer(x).split(8, dim=1)):
        want = FORMULAS[kind](x[:, 8 * copy : 8 * copy + 8])
        assert torch.allclose(y, want, atol=1e-5)


def test_layers_are_the_books_or_torchs_own():
    for kind, ours, native in (
        ("LN", nb.GroupNorm, nn.GroupNorm),
        ("IN", nb.InstanceNorm, nn.InstanceNorm2d),
        ("GN", nb.GroupNorm, nn.GroupNorm),
    ):
        assert type(norm(kind, 2, 8)) is ours
        assert type(norm(kind, 2, 8, native=True)) is native
        assert norm(kind, 2, 8).weight.shape == (16,)
    assert type(norm("BN", 2, 8)) is nb.BatchNorm


def test_an_unknown_kind_is_refused_with_the_known_ones():
    known = "none, noisy BN, DyT, Derf, BN, LN, IN, GN, RMSNorm"
    with pytest.raises(InputError, match=f"one of {known}; got 'XN'"):
        norm("XN", 1, 8)


@pytest.mark.parametrize("rest", [(), (3, 2)])
def test_dynamic_tanh_is_its_formula(rest):
    x = some(5, 12, *rest)
    layer = norm("DyT", 3, 4)
    layer.alpha.data = torch.tensor([[0.5], [1.0], [2.0]])
    want = [
        torch.tanh(alpha * part)
        for alpha, part in zip((0.5, 1.0, 2.0), x.chunk(3, 1), strict=True)
    ]
    assert torch.allclose(layer(x), torch.cat(want, 1), atol=1e-6)


@pytest.mark.parametrize("rest", [(), (3, 2)])
def test_derf_is_its_formula(rest):
    x = some(5, 12, *rest)
    layer = norm("Derf", 3, 4)
    layer.alpha.data = torch.tensor([[0.5], [1.0], [2.0]])
    layer.shift.data = torch.tensor([[0.0], [-1.0], [0.5]])
    want = [
        torch.erf(alpha * part + shift)
        for alpha, shift, part in zip(
            (0.5, 1.0, 2.0), (0.0, -1.0, 0.5), x.chunk(3, 1), strict=True
        )
    ]
    assert torch.allclose(layer(x), torch.cat(want, 1), atol=1e-6)


def test_noise_follows_batch_norm():
    x = some(8, 12)
    plain, noisy = norm("BN", 3, 4), norm("noisy BN", 3, 4)
    assert not torch.allclose(noisy(x), plain(x), atol=1e-2)
    assert torch.allclose(noisy.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize(("groups", "sets"), [(1, 3), (4, 12), (8, 24), (64, 24)])
def test_groups_are_of_one_copy_and_at_most_its_channels(groups, sets):
    layer = norm("GN", 3, 8, groups=groups)
    assert layer.num_groups == sets
    x = some(2, 24, 5)
    alone = nb.GroupNorm(min(groups, 8), 8)
    expected = torch.cat([alone(part) for part in x.split(8, dim=1)], dim=1)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_a_batch_that_sub_batches_do_not_divide_is_refused():
    with pytest.raises(InputError, match="got 10 samples and sub-batches of 4"):
        norm("BN", 1, 3, each=4)(some(10, 3))


# --------------------------------------------------- methods without a layer here


class Scale(nn.Module):
    """γ·x/rms(x) over the last axis, with one γ."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def scale_norm(**changes) -> Method:
    """A sixth method: RMSNorm with one γ for all channels."""
    return METHODS["RMSNorm"]._replace(
        key="ScaleNorm", name="scale norm", layer=Scale, **changes
    )


@pytest.mark.parametrize(
    ("key", "rest"),
    [(key, (3, 2)) for key in ("LN", "RMSNorm", "IN", "GN")]
    + [(key, ()) for key in ("LN", "RMSNorm", "GN")],
)
def test_a_layer_a_copy_is_every_copys_own_layer(monkeypatch, key, rest):
    """The general rule on methods that this module has other layers for, too."""
    monkeypatch.setitem(METHODS, "new", METHODS[key])
    x = some(5, 3 * 8, *rest).requires_grad_()
    dy = torch.ones_like(x) * some(1, 3 * 8, *[1] * len(rest))
    layer = norm("new", 3, 8, groups=2)
    assert type(layer) is norms.SideBySide
    assert all(len(p) == 3 for p in layer.parameters())
    alone = [METHODS[key].build(8, 2) for _ in range(3)]
    with torch.no_grad():
        for name, stack in layer.values.items():
            stack.uniform_(0.5, 2)
            for copy, value in zip(alone, stack, strict=True):
                copy.get_parameter(name).copy_(value)
    parts = x.chunk(3, 1)
    if METHODS[key].axis == -1:
        want = [
            one(part.movedim(1, -1)).movedim(-1, 1)
            for one, part in zip(alone, parts, strict=True)
        ]
    else:
        want = [one(part) for one, part in zip(alone, parts, strict=True)]
    y = layer(x)
    assert torch.allclose(y, torch.cat(want, 1), atol=1e-5)
    inputs = [x, *layer.parameters()]
    dx, *_ = torch.autograd.grad(y, inputs, dy)
    (want_dx,) = torch.autograd.grad(torch.cat(want, 1), x, dy)
    assert torch.allclose(dx, want_dx, atol=1e-4)


@pytest.mark.slow
def test_a_sixth_method_trains_in_the_convolutional_net(monkeypatch):
    monkeypatch.setitem(METHODS, "ScaleNorm", scale_norm())
    part, rates = data.digits().train, [0.05, 0.1]

    def trained(seeds, rates):
        net = stacked.convolutional(seeds, "ScaleNorm", widths=(4, 8))
        batches = stacked.shuffled(part, seeds, 16)
        loss = stacked.train(net, batches, steps=8, rates=rates)
        gammas = [p for name, p in net.named_parameters() if name.endswith("weight")]
        return loss, [g for g in gammas if g.ndim == 1]

    together, gammas = trained((3, 1), rates)
    assert [g.shape for g in gammas] == [(2,), (2,)]
    for copy, (seed, rate) in enumerate(zip((3, 1), rates, strict=True)):
        alone, (first, second) = trained((seed,), [rate])
        assert torch.allclose(together[:, copy], alone[:, 0], atol=1e-4)
        assert torch.allclose(gammas[0][copy], first[0], atol=1e-4)
        assert torch.allclose(gammas[1][copy], second[0], atol=1e-4)
        assert abs(second[0] - 1.5) > 1e-3  # the first one is undone by the second


def test_a_sixth_method_is_among_the_known(monkeypatch):
    monkeypatch.setitem(METHODS, "ScaleNorm", scale_norm())
    with pytest.raises(InputError, match="RMSNorm, ScaleNorm; got"):
        norm("XN", 1, 8)
