"""The data: whole, disjoint, balanced, the same every time."""

import pytest
import torch
from skimage.data import coffee

from normbook import data


def parts(split: data.Split) -> list[data.Part]:
    return [split.train, split.validation, split.test]


@pytest.mark.parametrize(
    ("split", "counts", "size"),
    [(data.digits, (1000, 250, 547), 8), (data.mnist, (3000, 500, 1500), 14)],
)
def test_sizes_and_types(split, counts, size):
    for part, count in zip(parts(split()), counts, strict=True):
        assert part.x.shape == (count, size, size)
        assert part.y.shape == (count,)
        assert part.x.dtype == torch.float32
        assert part.y.dtype == torch.int64


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_training_and_validation_are_balanced(split):
    for part in parts(split())[:2]:
        assert len(set(part.y.bincount(minlength=10).tolist())) == 1


def test_the_mnist_test_is_balanced_and_that_of_the_digits_nearly():
    assert set(data.mnist().test.y.bincount().tolist()) == {150}
    counts = data.digits().test.y.bincount()
    assert counts.max() - counts.min() <= 10


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_no_image_is_in_two_parts(split):
    seen = [{image.numpy().tobytes() for image in part.x} for part in parts(split())]
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_parts_are_not_sorted_by_class(split):
    for part in parts(split()):
        assert (part.y[:-1] > part.y[1:]).float().mean() > 0.3


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_only_the_training_part_sets_the_scale(split):
    part = split()
    assert part.train.x.mean().abs() < 1e-5
    assert (part.train.x.std() - 1).abs() < 1e-5
    assert part.test.x.mean().abs() > 1e-5


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_raw_images_lie_between_black_and_white_and_come_back(split):
    part = split()
    raw = part.raw(part.test.x)
    assert raw.min() > -1e-6
    assert raw.max() < 1 + 1e-6
    assert raw.max() > 0.9
    assert torch.allclose(part.standardized(raw), part.test.x, atol=1e-5)


@pytest.mark.parametrize("split", [data.digits, data.mnist])
def test_the_same_split_every_time(split):
    again = split.__wrapped__()
    for part, other in zip(parts(split()), parts(again), strict=True):
        assert torch.equal(part.x, other.x)
        assert torch.equal(part.y, other.y)


def test_pooling_takes_means_of_blocks():
    fine, coarse = data.mnist(28), data.mnist(14)
    blocks = fine.raw(fine.test.x).unflatten(1, (14, 2)).unflatten(3, (14, 2))
    assert torch.allclose(blocks.mean((2, 4)), coarse.raw(coarse.test.x), atol=1e-5)


def test_a_size_that_does_not_divide_28_says_so():
    with pytest.raises(ValueError, match="must divide 28, got 10; try 14 or 28"):
        data.mnist(10)


def test_images_are_of_the_classes_they_are_said_to_be():
    """The nearest mean image of the training part names most test images."""
    mnist = data.mnist()
    means = torch.stack([mnist.train.x[mnist.train.y == c].mean(0) for c in range(10)])
    nearest = torch.cdist(mnist.test.x.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == mnist.test.y).float().mean() > 0.7


# --------------------------------------------------------------------- names


def name_parts(names: data.Names) -> list[torch.Tensor]:
    return [names.train, names.validation, names.test]


def test_names_come_in_three_disjoint_parts():
    parts, counts = name_parts(data.names()), (4131, 516, 516)
    assert [tuple(part.shape) for part in parts] == [(n, 11) for n in counts]
    assert all(part.dtype == torch.int64 for part in parts)
    seen = [{data.spelled(row) for row in part} for part in parts]
    assert sum(counts) == len(set.union(*seen))


def test_names_are_letters_and_then_nothing():
    for part in name_parts(data.names()):
        live = part > 0
        assert live[:, :2].all()
        assert not (live[:, 1:] & ~live[:, :-1]).any()
        assert part.min() == 0
        assert part.max() < data.LETTERS


def test_names_are_those_of_the_census():
    spelled = {data.spelled(row) for part in name_parts(data.names()) for row in part}
    assert {"mary", "ada", "james", "christopher"} <= spelled
    assert "smith" not in spelled


def test_names_are_not_sorted_and_the_same_every_time():
    again = data.names.__wrapped__()
    for part, other in zip(name_parts(data.names()), name_parts(again), strict=True):
        assert torch.equal(part, other)
        assert (part[:-1, 0] > part[1:, 0]).float().mean() > 0.3


# -------------------------------------------------------------- photographs


def test_photographs_are_squares_between_black_and_white():
    for size in (96, 128):
        pictures = data.photographs(size)
        assert set(pictures) == {*data.TRAINING, *data.HELD_OUT, "flower"}
        for picture in pictures.values():
            assert picture.shape == (3, size, size)
            assert picture.dtype == torch.float32
            assert 0 <= picture.min() < 0.2
            assert 0.6 < picture.max() <= 1


def test_no_photograph_that_is_held_out_trains():
    assert not set(data.HELD_OUT) & set(data.TRAINING)
    assert "flower" not in data.TRAINING


def test_photographs_are_not_stretched_and_have_their_colours():
    coins = data.photographs()["coins"]
    assert torch.equal(coins[0], coins[1])
    red, green, blue = data.photographs()["flower"][:, 40:56, 40:56].mean((1, 2))
    assert red > green > blue
    middle = torch.tensor(coffee()[:, 100:500]).permute(2, 0, 1) / 255
    pooled = torch.nn.functional.avg_pool2d(middle, 10)
    assert (data.photographs(40)["coffee"] - pooled).abs().mean() < 0.02


def test_textures_are_grey_and_differ():
    pictures = data.textures()
    assert list(pictures) == list(data.TEXTURES)
    assert {tuple(p.shape) for p in pictures.values()} == {(256, 256)}
    assert len({round(p.std().item(), 2) for p in pictures.values()}) == 3
