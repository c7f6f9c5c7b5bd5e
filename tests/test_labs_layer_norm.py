"""Chapter 3's nets and tools are exact, and every experiment gives its record."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import shape

from normbook import data
from normbook.functional import InputError
from normbook.labs import layer_norm
from normbook.training import records, sequences

pytestmark = pytest.mark.slow

SEEDS = (3, 1, 4)
RECURRENT = [
    (cell, kind) for cell in ("RNN", "LSTM") for kind in ("none", "LN", "BN")
] + [("LSTM", "shared BN")]
KINDS = ["none", "LN", "BN", "RMSNorm", "DyT"]


def some_names(copies: int, count: int = 12) -> sequences.Batch:
    return sequences.every_copy(data.names().train[:count], copies)


# ----------------------------------------------------------------- networks


def trained(make, seeds, rates):
    # In 64 bits: Adam makes full steps of gradients that are 0 but for rounding.
    net = make(seeds).double()
    batches = sequences.random_names(data.names().train[:, :4], seeds, 16)
    sequences.fit(net, batches, steps=4, rates=rates, clip=0.5)
    return net


def assert_copies_are_as_alone(make):
    rates = [0.001, 0.003, 0.01]
    stack = trained(make, SEEDS, rates)
    assert not stack.training
    together = stack(*some_names(3)[::2])
    for copy, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        alone = trained(make, (seed,), [rate])
        logits = alone(*some_names(1)[::2])
        live = some_names(1)[2][:, 0]
        assert torch.allclose(logits[:, 0][live], together[:, copy][live], atol=1e-6)


@pytest.mark.parametrize(("cell", "kind"), RECURRENT)
def test_stacked_recurrent_nets_train_as_each_would_alone(cell, kind):
    assert_copies_are_as_alone(
        lambda seeds: sequences.Recurrent(seeds, cell, kind, width=8)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["pre", "post"])
def test_stacked_transformers_train_as_each_would_alone(kind, place):
    assert_copies_are_as_alone(
        lambda seeds: sequences.Transformer(seeds, kind, place, depth=2, width=8)
    )


def test_the_lstm_is_torchs():
    net = sequences.Recurrent((5,), "LSTM", "none", width=8).requires_grad_(False)
    theirs = torch.nn.LSTM(32, 8).requires_grad_(False)
    # Ours are input, forget, output, new; torch's input, forget, new, output.
    order = torch.cat([torch.arange(8) + 8 * gate for gate in (0, 1, 3, 2)])
    theirs.weight_ih_l0.copy_(net.input.weight[0].T[order])
    theirs.weight_hh_l0.copy_(net.state.weight[0].T[order])
    theirs.bias_ih_l0.copy_(net.bias.flatten()[order])
    theirs.bias_hh_l0.zero_()
    x, _, live = some_names(1)
    states, _ = theirs(net.embed.weight[0][x[:, 0].T])
    want = states @ net.head.weight[0] + net.head.bias
    assert torch.allclose(net(x, live)[:, 0], want.transpose(0, 1), atol=1e-5)


def test_scales_multiply_the_maps_and_nothing_else():
    plain = sequences.Recurrent((7, 7), "RNN", "none", scales=[1.0, 16.0])
    for layer in (plain.input, plain.state):
        assert torch.equal(layer.weight[1], 16 * layer.weight[0])
    for layer in (plain.embed, plain.head):
        assert torch.equal(layer.weight[1], layer.weight[0])


@pytest.mark.parametrize("kind", KINDS)
def test_only_batch_norm_lets_a_transformer_see_the_future(kind):
    net = sequences.Transformer((0,), kind, depth=2, width=8).train()
    x, _, live = some_names(1)
    changed = x.clone()
    changed[:, :, 6:] = 5
    moved = (net(changed, live) - net(x, live))[:, :, :6].abs().max()
    assert (moved > 1e-3) == (kind == "BN")
    if kind != "BN":
        assert moved < 1e-6


def test_there_is_no_third_cell():
    with pytest.raises(InputError, match="RNN or LSTM; got 'GRU'"):
        layer_norm.badly_scaled("LN", cell="GRU")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_moves_no_transformer(kind):
    net = sequences.Transformer((0,), kind, depth=2, width=8).train()
    x, _, live = some_names(1)
    junk = torch.where(live, x, 5)
    moved = (net(junk, live) - net(x, live))[live]
    assert moved.abs().max() < 1e-6


def test_a_transformer_has_no_other_place_for_its_norms():
    with pytest.raises(ValueError, match="sandwich, output, deepnorm; got 'middle'"):
        sequences.Transformer((0,), "LN", "middle")


# -------------------------------------------------------- norms of time steps


def test_a_step_norm_counts_the_living_only():
    layer = sequences.StepNorm("BN", 1, 4, steps=3).train()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    live = torch.tensor([True, True, True, False, False, True])[:, None]
    y = layer(x, 0, live)
    other = torch.where(live, x, 100.0)
    assert torch.equal(layer(other, 0, live)[live[:, 0]], y[live[:, 0]])
    assert y[live[:, 0]].mean(0).abs().max() < 1e-6
    assert abs(y[live[:, 0]].std(0, correction=0).mean() - 0.1) < 1e-3


def test_a_step_norm_with_one_living_name_uses_what_it_remembers():
    layer = sequences.StepNorm("BN", 1, 4, steps=2).train()
    x = torch.full((3, 4), 5.0)
    live = torch.tensor([True, False, False])[:, None]
    assert torch.allclose(layer(x, 1, live)[0], torch.tensor(0.5), atol=1e-4)
    assert int(layer.of_step[1].num_batches_tracked) == 0


def test_steps_beyond_the_last_use_its_statistics():
    layer = sequences.StepNorm("BN", 1, 4, steps=2).eval()
    layer.of_step[1].running_mean += 3
    x, live = torch.zeros(2, 4), torch.ones(2, 1, dtype=torch.bool)
    assert torch.equal(layer(x, 7, live), layer(x, 1, live))
    assert not torch.equal(layer(x, 7, live), layer(x, 0, live))


# ------------------------------------------------------- batches and training


def test_the_target_is_the_next_letter_and_then_the_end():
    x, y, live = some_names(2)
    assert torch.equal(y[:, :, :-1], x[:, :, 1:])
    assert torch.equal((y == 0) & live, live & ~F.pad(live[:, :, 1:], (0, 1)))


def test_guessing_costs_log2_of_27_bits_and_dead_places_nothing():
    _, y, live = some_names(2)
    logits = torch.zeros(*y.shape, data.LETTERS)
    logits[~live] = 50 * torch.randn(data.LETTERS)
    got = sequences.bits(logits, y, live)
    assert torch.allclose(got, torch.tensor(math.log2(27)), atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_adam_is_torchs_for_every_copy(clip):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 5, generator=generator)
    gradients = torch.randn(6, 2, 5, generator=generator)
    ours, rates = start.clone(), [0.1, 0.01]
    optimizer = sequences.Adam([torch.nn.Parameter(ours)], rates, clip)
    for g in gradients:
        optimizer.step([g])
    for copy, rate in enumerate(rates):
        theirs = torch.nn.Parameter(start[copy].clone())
        reference = torch.optim.Adam([theirs], rate)
        for g in gradients[:, copy]:
            theirs.grad = g.clone()
            if clip:
                torch.nn.utils.clip_grad_norm_([theirs], clip)
            reference.step()
        assert torch.allclose(optimizer.parameters[0][copy], theirs, atol=1e-6)


def test_a_warm_up_starts_with_small_steps():
    def first_move(warm_up: int) -> float:
        net = sequences.Transformer((0,), depth=1, width=8)
        before = net.head.weight.detach().clone()
        batches = sequences.random_names(data.names().train, (0,), 4)
        sequences.fit(net, batches, steps=1, rates=[0.01], warm_up=warm_up)
        return (net.head.weight - before).abs().max().item()

    assert first_move(0) == pytest.approx(0.01, rel=1e-3)
    assert first_move(20) == pytest.approx(0.0005, rel=1e-2)


def test_an_overflow_counts_as_guessing():
    net = sequences.Recurrent((0, 1), "RNN", "none", width=8)
    with torch.no_grad():
        net.head.bias[1] = math.nan
    fine, broken = sequences.evaluate(net, some_names(2))
    assert broken == pytest.approx(math.log2(27))
    assert fine != broken


# -------------------------------------------------------------- experiments


def test_badly_scaled_weights_pick_a_rate_for_each_scale():
    run = layer_norm.badly_scaled(
        "LN", scales=(1.0, 4.0), rates=(1e-5, 0.01), seeds=SEEDS, steps=6
    )
    assert shape(run["validation"]) == (2, 2, 3)
    assert shape(run["test"]) == (2, 3)
    assert run["chosen"] == [0.01, 0.01]


def test_learning_curves_start_before_the_first_step():
    run = layer_norm.learning_curves(
        "LN", rates=(1e-5, 0.01), seeds=SEEDS, steps=6, every=3
    )
    assert run["steps"] == [0, 3, 6]
    assert shape(run["validation"]) == (2, 3, 3)
    assert run["validation"][0][0] == pytest.approx(run["validation"][1][0])
    assert run["best"] == 1
    assert run["chosen"] == run["test"][1]


def test_names_run_dry_and_padding_biases_their_mean():
    run = layer_norm.names_alive(draws=40)
    alive, few = torch.tensor(run["alive"]), torch.tensor(run["too_few"])
    assert shape(run["alive"]) == (11, 3)
    assert (alive[0] == 64).all()
    assert (alive.diff(dim=0) <= 0).all()
    assert (alive[8:] < 5).all()
    assert (few[:6] == 0).all()
    masked, padded = torch.tensor(run["masked"]), torch.tensor(run["padded"])
    assert (masked[0] - 1 / 8).abs().max() < 0.02  # 1/√64
    assert torch.equal(masked[0], padded[0])
    assert (padded[6:9] > 1.6 * masked[6:9]).all()


def test_padding_moves_batch_norm_only():
    run = layer_norm.padding_moves(lengths=(11, 40))
    assert run["LN"] == [[0.0] * 3] * 2
    assert run["BN"][0] == [0.0] * 3
    assert min(run["BN"][1]) > 2
    assert max(run["masked BN"][1]) < 1e-5


@pytest.mark.parametrize("kind", ["none", "LN", "BN", "shared BN"])
def test_only_batch_norm_remembers(kind):
    run = layer_norm.time_statistics(kind, seeds=(0, 1), steps=3)
    assert len(run["evaluation"]) == 2
    assert (run["evaluation"] == run["batch"]) == (kind in ("none", "LN"))


@pytest.mark.parametrize("kind", ["LN", "BN", "shared BN"])
def test_only_statistics_of_steps_can_end_before_the_name(kind):
    run = layer_norm.longer_than_trained(kind, seeds=(0, 1), steps=3)
    assert len(run["within"]) == 2
    assert (run["beyond"] == run["beyond_last"]) == (kind != "BN")


def test_post_ln_gradients_stay_and_pre_ln_gradients_fall_with_depth():
    post, pre = (
        layer_norm.gradient_norms(place, depths=(4, 16)) for place in ("post", "pre")
    )
    assert shape(post["last"]) == (2, 3)
    assert shape(post["blocks"]) == (16, 3)
    assert post["last"][1] == post["blocks"][-1]
    ratio = {
        run["place"]: (torch.tensor(run["last"][1]) / torch.tensor(run["last"][0]))
        for run in (post, pre)
    }
    assert ratio["pre"].mean() < 0.75
    assert ratio["post"].mean() > 0.75
    slopes = ratio["pre"].log() / math.log(4)
    assert pre["exponents"] == pytest.approx(slopes.tolist(), abs=1e-5)


def test_a_transformer_gives_its_curve():
    run = layer_norm.transformer(depth=1, seeds=(0, 1), steps=4, every=2, rate=0.01)
    assert run["steps"] == [0, 2, 4]
    assert shape(run["validation"]) == (3, 2)
    assert max(run["validation"][2]) < min(run["validation"][0])
    assert len(run["test"]) == 2


def test_small_batches_are_refused_or_learned():
    refused = layer_norm.small_batches("BN", 1, samples=4)
    assert refused["test"] is None
    assert "more than 1 value" in refused["raises"]
    run = layer_norm.small_batches("LN", 2, samples=600, rates=(0.0001, 0.03))
    assert run["rate"] == 0.03
    assert max(run["test"]) < 60


# ------------------------------------------------------------------- record


def test_the_record_holds_every_long_run():
    record = records.read_record("layer_norm")
    assert record["command"] == "python -m normbook.labs.layer_norm"
    assert record["threads"] == 1
    assert set(record["results"]) == set(layer_norm.long_runs())
    assert set(record["seconds"]) == set(record["results"])


def test_the_record_can_be_repeated():
    kept = records.read_record("layer_norm")["results"]["padding_moves"]
    again = layer_norm.padding_moves(seeds=range(5))
    assert kept["BN"][2] == pytest.approx(again["BN"][2], rel=1e-3)


def test_the_record_of_each_decoder_with_a_norm_lies_below_guessing():
    results = records.read_record("layer_norm")["results"]
    for name in ("warm_up", "norms_in_a_transformer"):
        for run in results[name].values():
            if run["kind"] != "none":
                assert all(2 < loss < math.log2(27) for loss in run["test"])
