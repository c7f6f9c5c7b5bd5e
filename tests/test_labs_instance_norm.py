"""Chapter 4's pictures, losses and nets are as they say, and so are its records."""

import pytest
import torch
import torch.nn.functional as F
from conftest import shape

from normbook import data
from normbook.labs import instance_norm
from normbook.training import records, stacked

pytestmark = pytest.mark.slow

KINDS = ["none", "BN", "LN", "GN", "IN"]
SEEDS = (3, 1, 4)
TASKS = [
    instance_norm.contrast_as_label,
    instance_norm.contrast_as_nuisance,
    instance_norm.relative_contrast,
]


def noise(*size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def is_part(crop, picture):
    """Whether a crop (C, h, w) is a window of a picture (C, H, W), to 1e-5."""
    _, h, w = crop.shape
    windows = picture.unfold(1, h, 1).unfold(2, w, 1)
    corners = (windows[..., 0, 0] - crop[:, :1, :1]).abs().amax(0) < 1e-5
    apart = (windows[:, i, j] - crop for i, j in corners.nonzero())
    return any(difference.abs().max() < 1e-5 for difference in apart)


# ------------------------------------------------------------------ pictures


def test_contrast_scales_around_the_mean_of_each_picture():
    x = noise(2, 3, 9, 7)
    y = instance_norm.with_contrast(x, 0.25, 0.1)
    assert torch.allclose(y.mean((1, 2, 3)), x.mean((1, 2, 3)) + 0.1, atol=1e-6)
    ratio = instance_norm.contrast_of(y) / instance_norm.contrast_of(x)
    assert torch.allclose(ratio, torch.tensor(0.25), atol=1e-5)
    assert torch.allclose(instance_norm.with_contrast(x, 1.0), x, atol=1e-6)


def test_contrast_is_the_deviation_of_the_grey_picture():
    grey = noise(2, 1, 5, 5).expand(-1, 3, -1, -1)
    want = grey[:, 0].flatten(1).std(1, correction=0)
    assert torch.allclose(instance_norm.contrast_of(grey), want, atol=1e-6)
    red, cyan = torch.zeros(2, 1, 3, 5, 5)
    red[:, 0], cyan[:, 1:] = grey[0, 0], -grey[0, 0] / 2
    assert instance_norm.contrast_of(red + cyan) < 1e-6


def test_adain_gives_the_styles_statistics_whatever_the_sizes():
    content, style = noise(3, 12, 8).double(), noise(3, 5, 20, seed=1).double() ** 3
    y = instance_norm.adain(content, style)
    assert y.shape == content.shape
    assert torch.allclose(y.mean((1, 2)), style.mean((1, 2)), atol=1e-12)
    got, want = (picture.std((1, 2), correction=0) for picture in (y, style))
    assert torch.allclose(got, want, atol=1e-12)
    correlation = torch.stack([y.flatten(1)[0], content.flatten(1)[0]]).corrcoef()
    assert correlation[0, 1] == pytest.approx(1)


def test_a_crop_is_part_of_a_picture_or_of_its_mirror_image():
    pictures = data.photographs()["coffee"][None]
    x = instance_norm.crops(pictures, 6, torch.Generator().manual_seed(0))
    assert x.shape == (6, 3, 64, 64)
    mirrored = [not is_part(crop, pictures[0]) for crop in x]
    assert 0 < sum(mirrored) < 6
    for crop, turned in zip(x, mirrored, strict=True):
        assert is_part(crop.flip(2), pictures[0]) == turned


# -------------------------------------------------------------- loss network


def test_the_style_has_no_style_loss_and_a_picture_no_content_loss():
    style, x = noise(3, 32, 32), noise(2, 3, 32, 32, seed=1)
    loss = instance_norm.TextureLoss(style)
    assert loss.style(style[None]) == pytest.approx(0, abs=1e-9)
    assert (loss.style(x) > 1e-3).all()
    assert (loss.content(x, x) == 0).all()
    assert torch.allclose(loss.content(x + 0.1, x), torch.zeros(2), atol=1e-6)
    grey = noise(2, 1, 32, 32, seed=2).expand(-1, 3, -1, -1)
    want = (0.5 * grey[:, 0]).flatten(1).var(1, correction=0) / 0.05
    assert torch.allclose(loss.content(0.5 * grey, grey), want, atol=1e-5)
    other = torch.stack([x.mean(1)] * 3, 1)  # the same grey in other colours
    assert torch.allclose(loss.content(other, x), torch.zeros(2), atol=1e-6)
    assert torch.allclose(loss(x, x), loss.style(x))


def test_gram_matrices_forget_places_and_keep_contrast():
    x = noise(1, 3, 64, 64)
    loss = instance_norm.TextureLoss(x[0])
    full, half = loss.grams(x), loss.grams(0.5 * x)
    assert [tuple(g.shape) for g in full] == [(1, 24, 24)] * 4
    for g, h in zip(full, half, strict=True):
        assert torch.allclose(g, g.mT)
        assert torch.allclose(h, 0.25 * g, atol=1e-6)
    assert torch.allclose(loss.grams(F.avg_pool2d(x, 2))[0], full[1])


def test_flat_pictures_leave_the_filters_silent():
    loss = instance_norm.TextureLoss(noise(3, 32, 32))
    flat = torch.full((1, 3, 32, 32), 0.7)
    assert all(g.abs().max() < 1e-10 for g in loss.grams(flat))


# ----------------------------------------------------------------- generator


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_keeps_the_size_and_takes_its_seed(kind):
    x = noise(2, 3, 32, 48)
    first, again, other = (instance_norm.Generator(kind, seed)(x) for seed in (0, 0, 1))
    shorter = instance_norm.Generator(kind, 0, blocks=0)
    assert len(list(shorter.modules())) < len(
        list(instance_norm.Generator(kind).modules())
    )
    assert shorter(x).shape == x.shape
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert first.min() > 0
    assert first.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_only_instance_norm_cannot_see_contrast(kind):
    """Before any training: the first norm has erased it, or the nets carry it on."""
    net = instance_norm.Generator(kind).eval()
    x = noise(2, 3, 32, 32)
    y = net(instance_norm.with_contrast(x, 0.25, 0.2))
    assert ((y - net(x)).abs().max() < 0.02) == (kind == "IN")


@pytest.mark.parametrize("kind", ["BN", "IN"])
def test_stylization_gives_its_record_and_pictures(kind):
    run, pictures = instance_norm.stylization(kind, seeds=(0, 1), steps=5, every=2)
    assert run["steps"] == [0, 2, 4]
    assert shape(run["loss"]) == (3, 2)
    assert max(run["loss"][2]) < min(run["loss"][0])
    assert run["input"][2] == pytest.approx(run["input"][0] / 4)
    assert run["rate"] == 0.003
    assert shape(run["ends"]) == (1, 2)
    for way in ("", "_batch", "_alone", "_darker"):
        style, output = (torch.tensor(run[n + way]) for n in ("style", "output"))
        assert style.shape == output.shape == (3, 2)
        blind = kind == "IN" or way == "_alone"
        assert ((output[2] / output[0] - 1).abs().max() < 0.05) == blind
    assert pictures.shape == (3, 2, 3, 128, 128)
    assert ((pictures[2] - pictures[0]).abs().max() < 0.1) == (kind == "IN")


def test_stylization_takes_the_rate_that_ends_lowest():
    run, _ = instance_norm.stylization("IN", seeds=(0,), steps=5, rates=(1e-6, 0.01))
    (low,), (high,) = run["ends"]
    assert run["rate"] == 0.01
    assert high < low
    assert run["loss"][0][0] > high


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LN", "GN", "BN"])
def test_dimmed_as_a_whole_a_photograph_is_the_same_to_layer_norm(kind):
    net = instance_norm.Generator(kind).eval()
    x = 0.2 + 0.6 * noise(2, 3, 32, 32)
    moved = (net(0.25 * x) - net(x)).abs().max()
    assert (moved < 0.01) == (kind != "BN")


def test_measuring_leaves_the_running_statistics_as_they_were():
    net = instance_norm.Generator("BN").eval()
    before = [b.clone() for b in net.buffers()]
    x = noise(2, 3, 32, 32)
    instance_norm._outputs(net, x, 0.5 * x)
    assert all(torch.equal(b, c) for b, c in zip(before, net.buffers(), strict=True))
    assert not any(layer.training for layer in stacked.batch_norms(net))


# ------------------------------------------------------------------ responses


@pytest.mark.parametrize(
    ("padding", "moved"), [("none", False), ("zeros", True), ("reflect", False)]
)
def test_zero_padding_lets_instance_norm_see_the_contrast(padding, moved):
    run = instance_norm.response_changes("IN", padding=padding)
    assert shape(run["moved"]) == (3, 3)
    for changes in run["moved"]:
        assert all((change > 0.05) == moved for change in changes)
        assert moved or max(changes) < 0.01


@pytest.mark.parametrize("kind", ["none", "BN", "LN", "GN"])
@pytest.mark.parametrize("training", [False, True])
def test_every_other_norm_sees_contrast_and_brightness(kind, training):
    run = instance_norm.response_changes(kind, training=training)
    assert min(min(changes) for changes in run["moved"]) > 0.1


def test_responses_of_the_original_are_the_same_in_training():
    run = instance_norm.responses
    for kind in ("BN", "IN"):
        trained = run(kind, training=True)
        # Running variances are unbiased: a factor of m/(m − 1) with m over 10,000.
        assert torch.allclose(trained, run(kind), atol=1e-3)
    assert run("IN").shape == (16, 92, 92)
    assert run("IN", padding="zeros").shape == (16, 96, 96)
    assert run("IN").mean((1, 2)).abs().max() < 1e-5


def test_there_is_no_fourth_padding():
    with pytest.raises(ValueError, match="none, zeros or reflect; got 'same'"):
        instance_norm.convolution("same")


# -------------------------------------------------------------- what is erased


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_crops_come_from_their_own_part_of_a_texture(part):
    x, texture, contrast = instance_norm.texture_crops(5, 0, part, [1.0], channels=2)
    assert x.shape == (5, 2, 32, 32)
    assert (contrast == 0).all()
    rows, columns = {
        "train": (slice(0, 256), slice(0, 128)),
        "validation": (slice(0, 128), slice(128, 256)),
        "test": (slice(128, 256), slice(128, 256)),
    }[part]
    for crops, kind in zip(x, texture, strict=True):
        home = list(data.textures().values())[kind][rows, columns]
        assert all(is_part(crop[None] + 0.5, home[None]) for crop in crops)
        assert not torch.equal(crops[0], crops[1])


def test_lower_contrast_is_the_same_crop_around_its_mean():
    (full, *_), (low, *_) = (
        instance_norm.texture_crops(50, 0, "train", [c]) for c in (1.0, 0.2)
    )
    assert torch.allclose(low.mean((2, 3)), full.mean((2, 3)), atol=1e-6)
    assert torch.allclose(low.std((2, 3)), 0.2 * full.std((2, 3)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["hidden", "input"])
def test_stacked_classifiers_answer_as_each_would_alone(kind, place):
    x = noise(6, 3, 2, 32, 32)
    together = instance_norm.classifier(kind, SEEDS, 2, 3, place).train()(x)
    for copy, seed in enumerate(SEEDS):
        net = instance_norm.classifier(kind, (seed,), 2, 3, place).train()
        assert torch.allclose(net(x[:, [copy]])[:, 0], together[:, copy], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_instance_norm_of_the_input_is_blind_to_relative_contrast(kind):
    x = noise(4, 1, 2, 32, 32) - 0.5
    other = x * torch.tensor([0.5, 2.0]).view(2, 1, 1)
    net = instance_norm.classifier(kind, (0,), 2, 3, "input").eval()
    assert ((net(other) - net(x)).abs().max() < 1e-2) == (kind == "IN")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_accuracies_by_test_and_seed(task):
    run = task("BN", seeds=(0, 1), steps=4, rates=(1e-6, 0.1))
    tests = 4 if task is instance_norm.contrast_as_nuisance else 1
    assert len(run["tests"]) == tests
    assert shape(run["test"]) == (tests, 2)
    assert run["rate"] in (1e-6, 0.1)
    assert 0 <= min(map(min, run["test"])) <= max(map(max, run["test"])) <= 100


def test_an_overflow_gets_nothing_right():
    net = instance_norm.classifier("none", (0, 1), 1, 3).eval()
    with torch.no_grad():
        net[-2].bias[1] = torch.nan
    x, y, _ = instance_norm.texture_crops(20, 0, "test")
    fine, broken = instance_norm._accuracy(net, data.Part(x, y), 2)
    assert broken == 0
    assert fine > 0


@pytest.mark.parametrize(("kind", "blind"), [("IN", True), ("GN", False)])
def test_only_instance_norm_loses_contrasts_as_labels(kind, blind):
    for task in (TASKS[0], TASKS[2]):
        run = task(kind, seeds=(0,), steps=100, rates=(0.05,))
        assert (run["test"][0][0] < run["chance"] + 10) == blind


# ------------------------------------------------------------------- record


def test_pictures_come_back_to_half_a_shade_of_grey(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    pictures = noise(3, 2, 3, 8, 8)
    records.write_pictures("some", pictures)
    back = records.read_pictures("some", 8)
    assert back.shape == pictures.shape
    assert (back - pictures).abs().max() <= 0.5 / 255 + 1e-6


def test_the_record_holds_every_long_run_and_its_pictures():
    record = records.read_record("instance_norm")
    assert record["command"] == "python -m normbook.labs.instance_norm"
    assert record["threads"] == 1
    assert set(record["results"]) == set(instance_norm.long_runs())
    assert set(record["seconds"]) == set(record["results"])
    pictures = records.read_pictures("instance_norm", 128)
    assert pictures.shape == (6, 2, 3, 128, 128)
    faded, kept = (
        instance_norm.contrast_of(rows.flatten(0, 1)).view(3, 2)
        for rows in pictures.split(3)
    )
    assert (faded[2] < 0.6 * faded[0]).all()
    assert torch.allclose(kept[2], kept[0], rtol=0.02)


def test_the_record_can_be_repeated():
    kept = records.read_record("instance_norm")["results"]["stylization"]["IN"]
    x = instance_norm.crops(
        instance_norm.held_out(96), 16, torch.Generator().manual_seed(3000)
    )
    again = instance_norm.contrast_of(x).mean().item()
    assert kept["input"][0] == pytest.approx(again, rel=1e-3)
    assert shape(kept["loss"]) == (20, 3)
    assert shape(kept["ends"]) == (3, 3)
