"""Chapter 6's nets are exact, and every experiment gives its record."""

import pytest
import torch
from conftest import shape

from normbook import data
from normbook.labs import comparison
from normbook.training import records, stacked

pytestmark = pytest.mark.slow

SEEDS = (3, 1)


def some(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", comparison.KINDS)
@pytest.mark.parametrize("pooled", [True, False])
def test_stacked_nets_train_as_each_would_alone(kind, pooled):
    def trained(seeds, rates):
        net = stacked.convolutional(
            seeds, kind, widths=(8, 8), each=8, pooled=pooled, native=True
        )
        batches = stacked.shuffled(data.mnist().train, seeds, 8)
        stacked.train(net, batches, steps=3, rates=rates)
        return net(stacked.side_by_side(data.mnist().test.x[:20], len(seeds)))

    rates = [0.01, 0.05]
    together = trained(SEEDS, rates)
    for copy, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        alone = trained((seed,), [rate])
        assert torch.allclose(alone[:, 0], together[:, copy], atol=1e-3)


def test_first_weights_has_a_row_a_layer_and_a_number_a_seed():
    run = comparison.first_weights("none", depth=6, width=8, images=16, seeds=SEEDS)
    for key in ("deviation", "gradient", "cosine"):
        assert shape(run[key]) == (6, 2)
    deviations = torch.tensor(run["deviation"]).mean(1)
    assert (deviations.diff() < 0).all()


def test_first_weights_gives_the_gradient_that_autograd_gives():
    """The norm at the last convolution, from the weights of the linear layer alone."""
    kept = stacked.convolutional(
        (0,), "none", widths=(4,), stride=1, size=8, gain=1 / 3
    )
    digits = data.digits()
    x, y = digits.train.x[:16], digits.train.y[:16]
    z = kept[0](x[:, None]).detach().requires_grad_()
    loss = stacked.losses(kept[2:](z), y[:, None]).sum()
    (want,) = torch.autograd.grad(loss, z)
    run = comparison.first_weights("none", depth=1, width=4, images=16, seeds=(0,))
    assert run["gradient"][0][0] == pytest.approx(want.norm().item(), rel=1e-5)


def test_one_group_is_layer_norm_and_a_group_a_channel_instance_norm():
    def run(kind, **settings):
        small = {"depth": 3, "width": 8, "images": 16, "seeds": (0,)}
        return comparison.first_weights(kind, **small, **settings)["cosine"]

    assert torch.allclose(
        torch.tensor(run("GN", groups=1)), torch.tensor(run("LN")), atol=1e-5
    )
    assert torch.allclose(
        torch.tensor(run("GN", groups=8)), torch.tensor(run("IN")), atol=1e-4
    )


def test_a_function_of_a_sample_acts_on_each_copy_alone():
    def layer_norm(x):
        return torch.nn.functional.layer_norm(x, x.shape[1:])

    small = {"depth": 3, "width": 8, "images": 16, "seeds": SEEDS}
    ours = comparison.first_weights(layer_norm, **small)
    usual = comparison.first_weights("LN", **small)
    for key in ("deviation", "gradient", "cosine"):
        assert torch.allclose(
            torch.tensor(ours[key]), torch.tensor(usual[key]), rtol=1e-4, atol=1e-5
        )


def test_a_task_reports_the_rate_that_validation_prefers():
    run = comparison.task("GN", 50, rates=(1e-6, 0.1), seeds=SEEDS, epochs=1)
    assert shape(run["validation"]) == (2, 2)
    assert shape(run["test"]) == (2,)
    assert run["rate"] == 0.1
    assert max(run["test"]) < 60


def test_trained_on_single_images_batch_norm_is_instance_norm(monkeypatch):
    def short(*args, steps, **settings):
        return stacked.trained_on_mnist(*args, steps=steps // 30, **settings)

    monkeypatch.setattr(comparison, "trained_on_mnist", short)
    settings = {"seeds": SEEDS, "epochs": 1, "widths": (4, 8), "pooled": False}
    run = comparison.single_images((0.15, 1e-6), **settings)
    assert shape(run["validation"]) == (2, 2)
    assert run["rate"] == 0.15
    # The same two rates, for the images of a stack share one generator of shifts.
    alike = comparison.task("IN", 1, rates=(0.15, 1e-6), **settings)
    assert run["own"] == pytest.approx(alike["test"], abs=0.5)
    assert run["running"] != run["own"] != run["recalibrated"] != run["running"]


@pytest.mark.parametrize("kind", ["BN", "IN"])
def test_shifted_images_unshifted_are_the_test_images(kind):
    run = comparison.shifted(
        kind, 0.1, contrasts=(1.0, 0.1), offsets=(0.0,), seeds=SEEDS, epochs=1
    )
    assert shape(run["contrast"]) == (2, 2)
    assert run["contrast"][0] == run["brightness"][0]
    assert run["contrast"][0] != run["contrast"][1]
    assert ("contrast_batch" in run) == (kind == "BN")


def test_cost_joins_what_is_counted_and_what_is_measured(monkeypatch):
    def speed(device, rounds):
        return [
            {"method": "group_norm", "shape": [n, 64, 16, 16], "pass": "forward"}
            | {"least": 1.0, "native": 3.0, "ours": n}
            for n in (8, 128)
        ]

    monkeypatch.setattr(comparison, "speed", speed)
    (row,) = comparison.cost()
    assert (row["native"], row["ours"], row["least"]) == (3.0, 128, 1.0)
    assert row["bytes"] == pytest.approx(1, abs=0.02)
    assert row["steps"] > 3


def test_what_is_learned_and_remembered():
    count = {
        row["method"]: (row["learned"], row["remembered"])
        for row in comparison.parameters()
    }
    assert count["batch norm"] == (128, 129)
    assert count["rms norm"] == (256, 0)


def test_the_record_holds_every_long_run():
    kept = records.read_record("comparison")["results"]
    assert set(kept) == set(comparison.long_runs())


def test_the_records_errors_lie_between_none_and_chance():
    kept = records.read_record("comparison")["results"]
    for kind in comparison.KINDS:
        assert shape(kept["batch_sizes"][kind]["test"]) == (5, 5)
        errors = torch.tensor(kept["batch_sizes"][kind]["test"])
        assert (errors >= 0).all()
        assert (errors <= 100).all()
        unshifted = torch.tensor(kept["shifted"][kind]["contrast"])[3]
        assert torch.equal(
            unshifted, torch.tensor(kept["shifted"][kind]["brightness"])[2]
        )


def test_the_usual_stack_may_have_other_widths_and_activations():
    settings = {"widths": (4, 4), "activation": torch.nn.Tanh, "pooled": False}
    run = comparison.task("IN", 100, rates=(0.1,), seeds=(0,), epochs=1, **settings)
    assert shape(run["test"]) == (1,)
    usual = comparison.task("IN", 100, rates=(0.1,), seeds=(0,), epochs=1)
    assert run["test"] != usual["test"]


def test_maps_of_several_channels():
    net = stacked.convolutional(SEEDS, "GN", widths=(8,), inputs=3)
    assert net(torch.randn(4, 6, 14, 14)).shape == (4, 2, 10)
