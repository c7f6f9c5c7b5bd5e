"""Every experiment of chapter 2 gives the record it says."""

import math

import pytest
import torch
from conftest import numbers, shape
from torch import nn

from normbook import data
from normbook.functional import InputError
from normbook.labs import batch_norm
from normbook.training import records, stacked

pytestmark = pytest.mark.slow

SEEDS = (3, 1, 4)


@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (
            lambda: batch_norm.rates_that_train("BN", rates=(0.01, 0.1), steps=4),
            {"validation": (2, 3), "test": (2, 3), "loss": (2, 3), "chosen": (3,)},
        ),
        (
            lambda: batch_norm.scales_that_train("LN", scales=(0.1, 1), steps=4),
            {"test": (2, 3), "rates": (2,)},
        ),
        (
            lambda: batch_norm.depths_that_train("none", depths=(2, 3), steps=4),
            {"test": (2, 3), "rates": (2,)},
        ),
        (
            lambda: batch_norm.deep_sigmoid("noisy BN", rates=(0.1,), steps=20),
            {"loss": (2, 3), "drift": (2, 3), "test": (3,), "test_batch": (3,)},
        ),
        (
            lambda: batch_norm.gradient_growth("BN", residual=True, depth=12),
            {"gradient": (12, 3), "cosine": (12, 3), "growth": (3,)},
        ),
        (
            lambda: batch_norm.landscape("BN", steps=11),
            {"loss": (2, 3), "lowest": (2, 3), "highest": (2, 3), "cosine": (2, 3)},
        ),
        (
            lambda: batch_norm.distributions("BN", steps=11),
            {
                "over_training": (2, 3, 3),
                "over_depth": (2, 3, 3, 3),
                "validation": (3,),
                "test": (3,),
            },
        ),
        (
            lambda: batch_norm.weight_norm(0.01, steps=4, every=2),
            {"norm2": (2, 3), "turn": (2, 3), "share_of_rises": (3,), "test": (3,)},
        ),
        (
            lambda: batch_norm.batch_mates("BN", sizes=(2, 8), images=3, steps=4),
            {"flips": (2, 3), "spread": (2, 3)},
        ),
        (
            lambda: batch_norm.mates_class("BN", steps=3, batches=2),
            {"training": (3,), "evaluation": (3,)},
        ),
        (
            lambda: batch_norm.one_class_workers("BN", steps=3),
            {"evaluation": (3,), "batch": (3,)},
        ),
        (lambda: batch_norm.small_batches("BN", 2, steps=3), {"test": (3,)}),
        (
            lambda: batch_norm.running_statistics(momenta=(0.01, 0.1), steps=3),
            {"running": (2, 3), "recalibrated": (3,)},
        ),
    ],
)
def test_experiments_give_finite_records_of_the_shape_they_say(run, shapes):
    record = run()
    assert {key: shape(record[key]) for key in shapes} == shapes
    assert all(math.isfinite(number) for number in numbers(record))
    assert run() == record


@pytest.mark.parametrize(("kind", "ways"), [("BN", 3), ("GN", 1)])
def test_shifted_images_are_seen_every_way(kind, ways):
    record = batch_norm.shifted_images(kind, steps=4)["errors"]
    assert [len(way) for way in record.values()] == [ways] * 3
    assert all(shape(e) == (3,) for way in record.values() for e in way.values())


def test_drift_is_zero_for_a_net_that_does_not_move_and_large_with_noise():
    # At rate 0 only the noise moves what a layer reads from the same images.
    still = batch_norm.deep_sigmoid("BN", rates=(0.0,), steps=20)["drift"]
    noisy = batch_norm.deep_sigmoid("noisy BN", rates=(0.0,), steps=20)["drift"]
    assert max(numbers(still)) == 0
    assert min(numbers(noisy)) > 0.1


def test_larger_initial_weights_let_a_deep_sigmoid_net_move():
    small, large = (
        batch_norm.deep_sigmoid("none", gain=gain, rates=(0.1,), steps=60)["loss"]
        for gain in (1.0, 16.0)
    )
    assert min(small[-1]) > 2.25
    assert max(large[-1]) < 2.2


def test_the_best_rate_is_chosen_on_validation_images():
    record = batch_norm.rates_that_train("BN", rates=(1e-5, 0.1, 10.0), steps=20)
    assert record["best"] == 1
    assert record["chosen"] == record["test"][1]


def test_group_norm_does_not_know_its_batch_mates():
    record = batch_norm.batch_mates("GN", sizes=(2, 8), images=3, steps=4)
    assert set(numbers(record["flips"])) == {0.0}


def test_looking_ahead_does_not_move_the_run():
    often = batch_norm.landscape("BN", steps=5, every=1)
    lowest, highest = torch.tensor(often["lowest"]), torch.tensor(often["highest"])
    assert (lowest < highest).all()
    once = batch_norm.landscape("BN", steps=5, every=4)
    assert once["loss"] == [often["loss"][0], often["loss"][4]]


def test_without_decay_the_norm_of_weights_before_batch_norm_only_rises():
    record = batch_norm.weight_norm(0.0, rate=0.1, steps=12, every=1)
    assert record["share_of_rises"] == [1.0, 1.0, 1.0]
    # The step is at a right angle to w: tan(turn)² = ‖step‖²/‖w‖², the growth of ‖w‖².
    norm2, turn = torch.tensor(record["norm2"]), torch.tensor(record["turn"])
    growth = norm2[1:] / norm2[:-1] - 1
    assert torch.allclose(turn[1:].tan().square(), growth, rtol=0.02, atol=1e-6)


def test_gradients_grow_by_batch_norms_theory():
    growth = batch_norm.gradient_growth("BN", seeds=(0,))["growth"][0]
    assert growth == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)


def test_pairs_swap_their_labels():
    plain = stacked.shuffled(data.digits().train, SEEDS, 8)
    swapped = batch_norm._of_mates(stacked.shuffled(data.digits().train, SEEDS, 8))
    (x, y), (same, mates) = next(plain), next(swapped)
    assert torch.equal(x, same)
    assert torch.equal(mates[0::2], y[1::2])
    assert torch.equal(mates[1::2], y[0::2])


def test_the_stored_record_holds_every_long_run():
    record = records.read_record("batch_norm")
    assert list(record["results"]) == list(batch_norm.long_runs())
    assert list(record["seconds"]) == list(record["results"])
    assert record["threads"] == 1
    assert all(made["threads"] == 1 for made in record["again"].values())
    assert all(math.isfinite(number) for number in numbers(record["results"]))


@pytest.mark.parametrize(
    "run",
    [
        lambda **net: batch_norm.rates_that_train("LN", rates=(0.01,), **net),
        lambda **net: batch_norm.deep_sigmoid("BN", rates=(0.01,), every=1, **net),
        lambda **net: batch_norm.landscape("RMSNorm", every=1, **net),
        lambda **net: batch_norm.distributions("GN", every=1, **net),
        lambda **net: batch_norm.small_batches("BN", 4, rates=(0.01,), **net),
    ],
)
def test_a_reader_may_choose_depth_width_activation_and_batch(run, monkeypatch):
    made, dense = [], stacked.dense

    def noted(*arguments, **settings):
        made.append(settings)
        return dense(*arguments, **settings)

    monkeypatch.setattr(batch_norm, "dense", noted)
    net = {"depth": 2, "width": 8, "activation": nn.Tanh, "batch": 16}
    record = run(**net, seeds=SEEDS, steps=2)
    assert all(map(math.isfinite, numbers(record)))
    net.pop("batch")
    assert net.items() <= made[0].items()


def test_growth_between_layers_that_are_not_there_is_refused():
    with pytest.raises(InputError, match="got a depth of 10. Use 11"):
        batch_norm.gradient_growth("BN", depth=10)
