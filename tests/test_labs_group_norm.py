"""The runs of chapter 5: their pieces against plain formulas, their records' shape."""

import math

import pytest
import torch
from conftest import numbers, shape
from torch import nn

from normbook import data, functional
from normbook.labs import group_norm
from normbook.training import records, stacked

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------ variants


@pytest.mark.parametrize("rest", [(), (3, 2)])
def test_batch_renorm_without_bounds_is_evaluation_mode(rest):
    torch.manual_seed(0)
    x = torch.randn(4, 5, *rest, dtype=torch.float64) * 3 + 1
    mean, var = torch.randn(5).double(), torch.rand(5).double() + 0.5
    y = group_norm.batch_renorm(x, mean, var, r_max=math.inf, d_max=math.inf)
    assert torch.allclose(y, functional.batch_norm_eval(x, mean, var), atol=1e-12)


def test_batch_renorm_with_closed_bounds_is_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    mean, var = torch.ones(5).double(), torch.full((5,), 4.0).double()
    y = group_norm.batch_renorm(x, mean, var, r_max=1, d_max=0)
    assert torch.allclose(y, functional.batch_norm(x), atol=1e-12)


def test_batch_renorm_holds_r_and_d_within_their_bounds():
    torch.manual_seed(0)
    x = 100 * torch.randn(8, 5, dtype=torch.float64) + 1000
    mean, var = torch.zeros(5).double(), torch.ones(5).double()
    y = group_norm.batch_renorm(x, mean, var, r_max=2, d_max=5)
    assert torch.allclose(y, 2 * functional.batch_norm(x) + 5, atol=1e-6)
    tiny = group_norm.batch_renorm((x - 1000) / 1e4, mean, var, r_max=2, d_max=0)
    plain = functional.batch_norm((x - 1000) / 1e4)
    assert torch.allclose(tiny, plain / 2, atol=1e-12)


def test_the_gradient_of_batch_renorm_is_r_times_batch_norms():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    mean, var = torch.zeros(4).double(), torch.full((4,), 2.0).double()
    y = group_norm.batch_renorm(x, mean, var, r_max=math.inf, d_max=math.inf)
    batch = x.detach().var((0, 2), correction=0, keepdim=True)
    r = ((batch + 1e-5) / (2 + 1e-5)).sqrt()
    expected = functional.batch_norm_vjp(r * dy, x.detach()).x
    assert torch.allclose(torch.autograd.grad(y, x, dy)[0], expected, atol=1e-12)


def test_workers_with_batch_renorm_begin_as_batch_norm_and_move_away():
    torch.manual_seed(0)
    plain, renorm = stacked.WorkerBatchNorm(6, 3), group_norm.WorkerBatchRenorm(6, 3)
    for _ in range(2):
        x = torch.randn(12, 6, 2, 2) + 1
        assert torch.allclose(plain(x), renorm(x), atol=1e-5)
        for name in ("running_mean", "running_var"):
            kept, same = getattr(plain, name), getattr(renorm, name)
            assert torch.allclose(kept, same, atol=1e-6)
    renorm.share = 1.0
    assert not torch.allclose(plain(x), renorm(x), atol=1e-2)
    assert torch.allclose(
        renorm.eval()(x),
        functional.batch_norm_eval(x, renorm.running_mean, renorm.running_var),
        atol=1e-6,
    )


def test_batch_renorm_opens_its_bounds_in_the_second_quarter():
    net, watch = group_norm.build("A", "batch renorm", [0], 8, 4, 8)
    x = torch.randn(16, 1, 14, 14)
    layer = next(part for part in net if isinstance(part, group_norm.WorkerBatchRenorm))
    seen = []
    for step in range(8):
        with torch.no_grad():
            layer.running_mean.fill_(-100.0)
            layer.running_var.fill_(1.0)
            seen.append(layer.train()(net[0](x)).mean().item())
        watch(step)
    # After as many steps as share counts, d is at its bound: 0 0 0 1/2, then 5.
    assert seen[:3] == pytest.approx([0, 0, 0], abs=1e-5)
    assert seen[3:] == pytest.approx([2.5, 5, 5, 5, 5], abs=1e-5)


def test_standardized_weights_have_mean_0_and_forget_their_scale():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64) + 2
    w_hat = group_norm.standardized_weights(weight, eps=0.0)
    assert torch.allclose(w_hat.mean((1, 2, 3)), torch.zeros(6).double(), atol=1e-12)
    assert torch.allclose((w_hat**2).sum((1, 2, 3)), torch.ones(6).double())
    assert torch.allclose(
        group_norm.standardized_weights(7 * weight - 3, eps=0.0), w_hat
    )


def test_every_convolution_of_a_stack_is_standardized_and_learns():
    net, _ = group_norm.build("A", "GN + WS", [0, 1], None, 4, 1)
    maps = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    before = [layer.weight.detach().clone() for layer in maps]
    for weight in before:
        assert weight.mean((1, 2, 3)).abs().max() < 1e-6
    batches = stacked.shuffled(data.mnist().train, [0, 1], 32)
    stacked.train(net, batches, steps=2, rates=[0.05, 0.05])
    for layer, weight in zip(maps, before, strict=True):
        assert not torch.equal(layer.weight, weight)


# ------------------------------------------------------------------- few values


def finite(record):
    """Whether a record's numbers are; null stands where a kind has no sub-batches."""
    return all(math.isfinite(n) for n in numbers(record) if n is not None)


def test_two_values_come_out_as_plus_and_minus_one():
    two = group_norm.what_passes(2, 1)
    assert two["size"] > 0.99
    assert two["gradient"] < 0.002
    assert two["of_few"] > 0.9


@pytest.mark.parametrize(("samples", "positions"), [(4, 1), (2, 4), (8, 1), (4, 16)])
def test_all_but_two_of_the_directions_pass(samples, positions):
    record = group_norm.what_passes(samples, positions)
    expected = 1 - 2 / (samples * positions)
    assert record["gradient"] == pytest.approx(expected, abs=0.01)
    assert record["values"] == samples * positions


def test_positions_that_are_all_alike_count_once():
    record = group_norm.what_passes(2, 4, alike=1.0)
    assert record["values"] == 2
    assert record["size"] > 0.99
    assert record["pooled"] < 0.002 < group_norm.what_passes(2, 4)["pooled"]


@pytest.mark.parametrize("samples", [8, 32])
def test_a_gradient_behind_a_relu_passes_but_for_two_directions(samples):
    """On one position the mask halves dy; what is lost is its share along 1 and x̂."""
    x_hat = torch.randn(4000, samples, dtype=torch.float64)
    x_hat = (x_hat - x_hat.mean(1, keepdim=True)) / x_hat.std(
        1, correction=0, keepdim=True
    )
    active = (x_hat > 0).double()
    lost = (active.sum() + (active * x_hat**2).sum()) / samples / active.sum()
    record = group_norm.what_passes(samples, 1)
    assert record["pooled"] == pytest.approx(1 - lost.item(), abs=0.02)


@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_values_are_those_of_the_variance_of_the_mean(alike):
    torch.manual_seed(0)
    own, shared = torch.randn(4, 20000, 9), torch.randn(4, 20000, 1)
    x = (1 - alike) ** 0.5 * own + alike**0.5 * shared
    values = group_norm.what_passes(4, 9, alike, channels=10)["values"]
    assert 1 / x.mean((0, 2)).var().item() == pytest.approx(values, rel=0.05)


def test_gradients_agree_less_the_fewer_values_a_set_has():
    many, few = (group_norm.first_gradients("B", "BN", each) for each in (32, 2))
    assert shape(many["norm"]) == shape(many["agreement"]) == (5, 3)
    for layer in range(4):  # the linear layer does not mind
        assert min(few["norm"][layer]) > 2 * max(many["norm"][layer])
        assert max(few["agreement"][layer]) < min(many["agreement"][layer])


def test_agreement_is_one_for_the_same_batch_and_none_for_noise(monkeypatch):
    same = next(stacked.shuffled(data.mnist().train, (0, 1, 2), 32))
    monkeypatch.setattr(group_norm, "shuffled", lambda *_, **__: iter([same] * 16))
    agreement = group_norm.first_gradients("A", "GN")["agreement"]
    assert all(value == pytest.approx(1, abs=1e-4) for value in numbers(agreement))


def test_a_batchs_mean_varies_as_the_effective_positions_say():
    record = group_norm.values_that_count("B", sizes=(2, 8), steps=4)
    assert record["positions"] == [49, 16, 4, 1]
    assert record["effective"][-1] == pytest.approx([1, 1, 1], rel=1e-3)
    assert shape(record["drawn"]) == (4, 2, 3)
    for seed in record["drawn"][-1][1]:
        assert seed == pytest.approx(8, rel=0.1)


# --------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (
            lambda: group_norm.virtual_workers("A", "BN", 4, rates=(0.1, 0.2), steps=3),
            {"validation": (2, 3), "test": (3,), "loss": (3,)},
        ),
        (
            lambda: group_norm.virtual_workers("B", "batch renorm + WS", 2, steps=8),
            {"validation": (1, 3), "test": (3,)},
        ),
        (
            lambda: group_norm.virtual_workers("C", "GN", images="digits", steps=3),
            {"test": (3,)},
        ),
        (
            lambda: group_norm.sorted_batches("BN", 4, by_class=True, steps=2),
            {"test": (3,)},
        ),
        (
            lambda: group_norm.fine_tuning("BN", frozen=True, steps=2, before=2),
            {"untuned": (3,), "validation": (3, 3), "test": (3,)},
        ),
    ],
)
def test_experiments_give_finite_records_of_the_shape_they_say(run, shapes):
    record = run()
    assert {key: shape(record[key]) for key in shapes} == shapes
    assert finite(record)
    assert run() == record


def test_the_best_rate_is_chosen_on_validation_images():
    settings = {"images": "digits", "steps": 60}
    record = group_norm.virtual_workers("C", "BN", 32, rates=(1e-5, 0.1), **settings)
    alone = group_norm.virtual_workers("C", "BN", 32, rates=(0.1,), **settings)
    assert record["rate"] == 0.1
    assert record["test"] == record["tests"][1]
    assert record["test"] == pytest.approx(alone["test"], abs=1.5)
    assert record["loss"] == pytest.approx(alone["loss"], rel=0.02)


def test_small_batches_take_more_and_shorter_steps(monkeypatch):
    taken = []
    monkeypatch.setattr(
        group_norm, "train_on_images", lambda *_, **settings: taken.append(settings)
    )
    monkeypatch.setattr(group_norm, "errors", lambda *_: torch.zeros(3))
    for size in (32, 2):
        group_norm.scaled_rates("A", "BN", size, epochs=1)
    assert [run["steps"] for run in taken] == [93, 1500]
    assert [run["rates"] for run in taken] == [[0.1] * 3, [0.00625] * 3]


def test_turned_images_are_turned_and_few():
    plain, turned = data.mnist(), group_norm._turned(data.mnist(), 300)
    assert len(turned.train.y) == 300
    assert torch.equal(turned.test.x[:, 0], plain.test.x[:, :, -1])
    assert torch.equal(turned.test.y, plain.test.y)


def test_a_stack_to_tune_holds_each_seed_once_for_every_rate():
    settings = {"steps": 3}
    once = group_norm.upright("A", "BN", (0, 1), 1, **settings)
    twice = group_norm.upright("A", "BN", (0, 1), 2, **settings)
    x = data.mnist().test.x[:50]
    with torch.no_grad():
        short = once(stacked.side_by_side(x, 2))
        long = twice(stacked.side_by_side(x, 4))
    assert torch.allclose(long, torch.cat([short, short], dim=1), atol=1e-5)
    twice[0].weight.data.zero_()  # the nets that are remembered stay
    assert torch.equal(
        group_norm.upright("A", "BN", (0, 1), 1, **settings)[0].weight, once[0].weight
    )


def test_only_batch_norm_is_evaluated_anew():
    run = {"images": "digits", "steps": 3, "rates": (0.1, 0.2)}
    batch = group_norm.virtual_workers("C", "BN", 4, **run)
    assert shape(batch["recalibrated"]) == (2, 3)
    assert batch["recalibrated"] != batch["tests"]
    assert "recalibrated" not in group_norm.virtual_workers("C", "GN", **run)


def test_one_value_a_group_is_refused():
    with pytest.raises(functional.InputError, match="got 1 for sets"):
        group_norm.virtual_workers("B", "GN", groups=64, steps=1)


@pytest.mark.parametrize(
    ("net", "kind", "each", "message"),
    [
        ("D", "BN", 4, "one of A, B, C, or a width for each layer; got 'D'"),
        ("A", "BN + SN", 4, r"got 'BN \+ SN' and sub-batches of 4"),
        ("A", "batch renorm", None, "needs sub-batches; got 'batch renorm'"),
        ("A", "XN", None, "one of none.*; got 'XN'"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(net, kind, each, message):
    with pytest.raises(functional.InputError, match=message):
        group_norm.build(net, kind, [0], each, 4, 1)


def test_a_net_may_be_widths_of_ones_own():
    run = group_norm.virtual_workers(
        (8, 8), "GN", activation=nn.Tanh, batch=16, steps=2, seeds=(0,)
    )
    assert all(map(math.isfinite, numbers(run["tests"])))
    stack, _ = group_norm.build((8, 4), "GN", [0], None, 4, 1, nn.Tanh)
    assert [layer.out_channels for layer in stack[:-4:3]] == [8, 4]
    assert isinstance(stack[2], nn.Tanh)


def test_the_stored_record_holds_every_long_run():
    record = records.read_record("group_norm")
    assert list(record["results"]) == list(group_norm.long_runs())
    assert record["threads"] == 1
    assert finite(record["results"])
