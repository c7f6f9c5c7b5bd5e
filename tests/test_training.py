"""Stacked nets train as each would alone; batches and records are what they say."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from normbook import data
from normbook import nn as nb
from normbook.functional import InputError
from normbook.labs import record_long_runs
from normbook.labs.comparison import first_weights
from normbook.training import norms, records, stacked

pytestmark = pytest.mark.slow

KINDS = ["none", "BN", "LN", "GN"]
SEEDS = (3, 1, 4)


def small_net(seeds, kind, net):
    if net == "dense":
        return stacked.dense(seeds, kind, inputs=64, depth=3, width=8)
    return stacked.convolutional(seeds, kind, widths=(4, 8), per_size=2)


# ------------------------------------------------------------------ stacking


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_stacked_networks_train_as_each_would_alone(kind, net):
    part, rates = data.digits().train, [0.01, 0.05, 0.1]

    def run(seeds, rates):
        trained = small_net(seeds, kind, net)
        batches = stacked.shuffled(part, seeds, 16)
        loss = stacked.train(trained, batches, steps=6, rates=rates, decay=1e-3)
        return loss, trained

    together, stack = run(SEEDS, rates)
    for copy, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        alone, single = run([seed], [rate])
        assert torch.allclose(together[:, copy], alone[:, 0], atol=1e-4)
        for p, q in zip(stack.parameters(), single.parameters(), strict=True):
            rows = p.reshape(len(SEEDS), -1)[copy]
            assert torch.allclose(rows, q.flatten(), atol=1e-4)


def test_copies_differ_from_one_another():
    net = small_net(SEEDS, "BN", "dense")
    x, y = next(stacked.shuffled(data.digits().train, SEEDS, 16))
    assert len({tuple(column) for column in y.T.tolist()}) == 3
    assert stacked.losses(net(x), y).unique().numel() == 3


def test_a_copy_that_overflows_takes_none_with_it():
    part = data.digits().train

    def last_loss(rates):
        net = stacked.dense([0, 1], "none", inputs=64, depth=3, width=8)
        batches = stacked.shuffled(part, [0, 1], 16)
        return stacked.train(net, batches, steps=30, rates=rates)[-1], net

    loss, net = last_loss([1e6, 0.01])
    assert not loss[0].isfinite()
    assert loss[1] == last_loss([0.01, 0.01])[0][1]
    error = stacked.errors(net, data.digits().test, 2)
    assert error[0] == stacked.CHANCE
    assert error[1] < 90


def test_first_weights_of_a_dense_layer_are_scaled_by_its_inputs():
    net = stacked.dense([0, 1], "BN", inputs=64, depth=1, width=400)
    assert net[1].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_first_weights_have_the_variance_that_was_asked_for(net):
    make = {
        "dense": lambda: stacked.dense([0, 1], "BN", inputs=64, depth=2, width=400),
        "convolutional": lambda: stacked.convolutional([0, 1], "BN", widths=(64, 64)),
    }[net]
    weight = list(make().parameters())[3]
    fan_in = {"dense": 400, "convolutional": 64 * 9}[net]
    for rows in weight.detach().view(2, -1):
        assert rows.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


def test_gain_is_the_variance_of_the_hidden_layers_alone():
    plain, scaled = (
        list(stacked.dense([0], "BN", inputs=64, depth=2, width=8, gain=g).parameters())
        for g in (2.0, 18.0)
    )
    for index in (0, 3):
        assert torch.allclose(3 * plain[index], scaled[index])
    assert torch.equal(plain[-2], scaled[-2])


def test_sgd_is_torchs_with_decay_on_weights_alone():
    weight, bias = torch.randn(1, 3, 4), torch.randn(1, 4)
    ours = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    theirs = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    groups = [
        {"params": theirs[:1], "weight_decay": 0.1},
        {"params": theirs[1:], "weight_decay": 0.0},
    ]
    reference = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    sgd = stacked.SGD(ours, [0.2], momentum=0.9, decay=0.1)
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in ours]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        reference.step()
        sgd.step(gradients)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=1e-5)


# ------------------------------------------------------------ virtual workers


@pytest.mark.parametrize("rest", [(), (4, 5)])
def test_workers_equal_split_batches(rest):
    torch.manual_seed(0)
    x = torch.randn(12, 6, *rest, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    workers = norms.WorkerBatchNorm(6, each=3).double()
    with torch.no_grad():
        workers.weight.uniform_(0.5, 2)
        workers.bias.uniform_(-1, 1)
    alone = [nb.BatchNorm(6).double() for _ in range(4)]
    for layer in alone:
        layer.load_state_dict(workers.state_dict())
    y = workers(x)
    split = torch.cat(
        [layer(part) for layer, part in zip(alone, x.split(3), strict=True)]
    )
    assert torch.allclose(y, split, atol=1e-12)
    assert torch.allclose(
        torch.autograd.grad(y, x, dy)[0],
        torch.autograd.grad(split, x, dy)[0],
        atol=1e-12,
    )
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(layer, name) for layer in alone]).mean(0)
        assert torch.allclose(getattr(workers, name), mean, atol=1e-12)


def test_workers_evaluate_as_batch_norm():
    workers = norms.WorkerBatchNorm(6, each=3)
    workers(torch.randn(12, 6))
    plain = nb.BatchNorm(6)
    plain.load_state_dict(workers.state_dict(), strict=False)
    x = torch.randn(5, 6)
    assert torch.equal(workers.eval()(x), plain.eval()(x))


# ----------------------------------------------------- batches and statistics


def test_an_epoch_shows_every_image_once():
    part = data.digits().train
    batches = stacked.shuffled(part, SEEDS, 50)
    x, y = map(torch.cat, zip(*[next(batches) for _ in range(20)], strict=True))
    assert x.shape == (1000, 3, 8, 8)
    for copy in range(3):
        assert y[:, copy].bincount().tolist() == [100] * 10
        seen = {image.numpy().tobytes() for image in x[:, copy]}
        assert seen == {image.numpy().tobytes() for image in part.x}


def test_shifts_move_whole_images():
    x = torch.arange(1.0, 17).view(1, 1, 4, 4).expand(30, 2, 4, 4)
    moved = stacked.moved(x, 1, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x[:1, :1], (1,) * 4, value=1.0)
    windows = {
        padded[0, 0, r : r + 4, c : c + 4].contiguous().numpy().tobytes()
        for r in range(3)
        for c in range(3)
    }
    seen = {image.contiguous().numpy().tobytes() for image in moved.flatten(0, 1)}
    assert seen == windows


def test_batch_statistics_leave_no_trace():
    net = stacked.convolutional([0], "BN", widths=(4,), each=5).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = stacked.side_by_side(data.digits().test.x[:20], 1)
    evaluated = net(x)
    with stacked.batch_statistics(net, each=10):
        assert net[1].each == 10
        inside = net(x)
        assert torch.allclose(inside[:10], net(x[:10]), atol=1e-5)
        assert not torch.allclose(inside[:10], net(x[10:]), atol=1e-2)
    assert not torch.allclose(inside, evaluated, atol=1e-2)
    assert net[1].each == 5
    assert not any(layer.training for layer in net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_recalibrated_statistics_are_the_plain_mean():
    net = stacked.convolutional([0], "BN", widths=(4,)).eval()
    before = net[1].running_mean.clone()
    x = data.digits().train.x[:600]
    with torch.no_grad():
        mean = net[0](stacked.side_by_side(x, 1)).mean((0, 2, 3))
    with stacked.recalibrated(net, x, 1):
        assert not net[1].training
        assert torch.allclose(net[1].running_mean, mean, atol=1e-5)
    assert net[1].momentum == 0.1
    assert torch.equal(net[1].running_mean, before)


def test_noise_moves_training_alone_and_by_the_paper():
    noise, x = norms.Noise(), torch.zeros(400, 300)
    assert torch.equal(noise.eval()(x), x)
    shift = noise.train()(x)
    assert shift.mean(0).abs().max() <= 0.5 + 0.1
    assert shift.mean(0).std() == pytest.approx(1 / math.sqrt(12), rel=0.15)
    assert (shift - shift.mean(0)).abs().max() <= 0.2
    scale = noise(torch.ones(400, 300)) - noise(x)
    assert scale.mean() == pytest.approx(1.125, abs=0.1)


@pytest.mark.parametrize("by_class", [True, False])
def test_sub_batches_hold_one_class_or_many(by_class):
    _, y = next(stacked.grouped(data.digits().train, SEEDS, by_class))
    assert y.shape == (120, 3)
    assert (y.sort(0).values == torch.arange(120)[:, None] // 12).all()
    classes = [len(group.unique()) for group in y[:, 0].split(12)]
    assert (max(classes) == 1) == by_class


# ------------------------------------------------------------------- records


def test_records_come_back_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    results = {"errors": [[1.0, 2.123456789], [3e-7, 4.0]], "kind": "BN", 3: (1, 2)}
    path = records.write_record(
        "some", results, command="python -m some", seconds={"errors": 1.5}
    )
    record = records.read_record("some")
    assert record["results"] == {
        "errors": [[1.0, 2.1235], [3e-7, 4.0]],
        "kind": "BN",
        "3": [1, 2],
    }
    assert record["command"] == "python -m some"
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["device"]
    assert "[1.0, 2.1235]" in path.read_text()


def test_a_record_refuses_what_json_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_record("bad", [math.nan], command="", seconds={})


def test_runs_are_recorded_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    runs = {"one": lambda: {"test": [1.0]}, "two": lambda: {"test": [2.0]}}
    path = records.run_and_record("both", runs, "python -m both")
    record = json.loads(path.read_text())
    assert record["results"] == {"one": {"test": [1.0]}, "two": {"test": [2.0]}}
    assert set(record["seconds"]) == set(runs)
    assert "2/2 two" in capsys.readouterr().err
    again = dict(runs, two=lambda: {"test": [3.0]}, one=lambda: {"test": [9.0]})
    records.run_and_record("both", again, "python -m both", only=["two"])
    partly = records.read_record("both")
    assert partly["results"] == {"one": {"test": [1.0]}, "two": {"test": [3.0]}}
    assert partly["again"]["two"]["torch"] == torch.__version__
    assert list(partly["again"]) == ["two"]
    with pytest.raises(InputError, match="no experiment is called three"):
        records.run_and_record("both", runs, "python -m both", only=["three"])


@pytest.mark.processes
def test_two_jobs_give_the_same_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    small = {"depth": 2, "width": 4, "images": 8, "seeds": [0]}
    runs = {kind: partial(first_weights, kind, **small) for kind in ("BN", "GN", "LN")}
    kept = []
    for jobs in (1, 2):
        records.run_and_record("all", runs, "python -m all", jobs=jobs)
        kept.append(records.read_record("all"))
    alone, together = kept
    assert together["results"] == alone["results"]
    assert list(together["results"]) == list(together["seconds"]) == ["BN", "GN", "LN"]
    assert "3/3" in capsys.readouterr().err


def test_a_labs_command_line_names_its_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    with pytest.raises(InputError, match="no experiment is called depth"):
        record_long_runs("comparison", ["depth"])
    with pytest.raises(SystemExit):
        record_long_runs("comparison", ["--help"])
    told = capsys.readouterr().out
    assert "python -m normbook.labs.comparison" in told
    assert "larger_rate_4_images" in told


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale():
    net = stacked.convolutional([0], "BN", each=32)
    batches = stacked.shuffled(data.mnist().train, [0], 32)
    stacked.train(net, batches, steps=3, rates=[0.05])
    layer = stacked.batch_norms(net)[0]
    mean, scale = layer.running_mean.clone(), layer.weight.detach().clone()
    stacked.train(net, batches, steps=3, rates=[0.05], frozen=True)
    assert torch.equal(layer.running_mean, mean)
    assert not torch.equal(layer.weight, scale)
    stacked.train(net, batches, steps=3, rates=[0.05])
    assert not torch.equal(layer.running_mean, mean)


def test_the_mean_cosine_is_that_of_all_pairs():
    h = torch.randn(5, 2, 7)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    for copy in range(2):
        each = [
            torch.cosine_similarity(h[i, copy], h[j, copy], dim=0) for i, j in pairs
        ]
        got = stacked.mean_cosine(h)[copy]
        assert got == pytest.approx(sum(each).item() / len(pairs), abs=1e-6)


def test_mean_cosine_leaves_out_each_image_with_itself():
    same, apart = torch.ones(4, 1, 3), torch.eye(4)[:, None]
    assert stacked.mean_cosine(same).item() == pytest.approx(1)
    assert stacked.mean_cosine(apart).item() == pytest.approx(0)
