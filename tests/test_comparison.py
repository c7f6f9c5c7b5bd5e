"""What chapter 6 says of the layers and does not prove on its page."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normbook import functional as F
from normbook import nn as nb


@pytest.fixture
def x() -> np.ndarray:
    """Images (4, 6, 5, 5) whose channels have their own sizes."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 6, 5, 5)) * rng.uniform(0.2, 5, size=(4, 6, 1, 1))


def over_image(x: np.ndarray) -> np.ndarray:
    return F.layer_norm(x, axes=(1, 2, 3), eps=0)


def test_group_norm_finds_after_layer_norm_what_it_finds_alone(x: np.ndarray) -> None:
    group = F.group_norm(x, 3, eps=0)
    assert np.allclose(F.group_norm(over_image(x), 3, eps=0), group)
    assert np.allclose(over_image(group), group)


def test_a_louder_group_changes_layer_norm_and_not_group_norm(x: np.ndarray) -> None:
    louder = x * np.array([3.0, 3, 1, 1, 1, 1]).reshape(1, 6, 1, 1)
    assert np.allclose(F.group_norm(louder, 3, eps=0), F.group_norm(x, 3, eps=0))
    assert abs(over_image(louder) - over_image(x)).max() > 0.1


def test_one_groups_norm_sees_a_contrast_of_each_channel_and_instance_norm_does_not(
    x: np.ndarray,
) -> None:
    tinted = x * np.linspace(0.2, 0.9, 6).reshape(1, 6, 1, 1) + 0.3
    assert np.allclose(F.instance_norm(tinted, eps=0), F.instance_norm(x, eps=0))
    moved = F.group_norm(tinted, 1, eps=0) - F.group_norm(x, 1, eps=0)
    assert abs(moved).max() > 0.3


def test_instance_norm_is_undefined_on_features() -> None:
    with pytest.raises(F.InputError, match="at least 3 axes"):
        F.instance_norm(np.ones((8, 6)))


def test_32_groups_hold_as_much_as_a_channel_of_64_images() -> None:
    last = (2048, 7, 7)
    assert F.group_sets((2, *last), 32).size == 3136 == F.batch_sets((64, *last)).size


@pytest.mark.parametrize("other", [(3, 8, 6, 5), (3, 8, 4, 4)])
def test_only_a_layer_norm_over_the_whole_image_fixes_its_size(
    other: tuple[int, ...],
) -> None:
    y = torch.randn(other)
    layers = (nb.BatchNorm(8), nb.InstanceNorm(8), nb.GroupNorm(2, 8))
    assert all(layer(y).shape == y.shape for layer in layers)
    last = y.movedim(1, -1)
    assert all(
        layer(last).shape == last.shape for layer in (nb.LayerNorm(8), nb.RMSNorm(8))
    )
    whole = nb.LayerNorm((8, 4, 4))
    if other[2:] == (4, 4):
        assert whole(y).shape == y.shape
    else:
        with pytest.raises(ValueError, match="normalized_shape|shape"):
            whole(y)


def refuses(layer: nn.Module, y: Tensor) -> bool:
    try:
        layer(y)
    except ValueError:
        return True
    return False


def test_a_group_of_one_value_is_refused_here_for_any_number_of_samples() -> None:
    one, two = torch.randn(1, 6, 1, 1), torch.randn(2, 6, 1, 1)
    assert refuses(nn.GroupNorm(6, 6), one)
    assert not refuses(nn.GroupNorm(6, 6), two)
    assert all(refuses(nb.GroupNorm(6, 6), x) for x in (one, two))


def test_torchs_instance_norm_only_warns_of_channels_it_was_not_built_for() -> None:
    six = torch.randn(2, 6, 3, 3)
    with pytest.warns(UserWarning, match="num_features"):
        nn.InstanceNorm2d(7)(six)
    assert refuses(nb.InstanceNorm(7), six)
    assert refuses(nn.InstanceNorm2d(7, affine=True), six)


def test_sync_batch_norm_without_a_group_is_batch_norm() -> None:
    y = torch.randn(4, 6, 3, 3)
    assert torch.equal(nn.SyncBatchNorm(6)(y), nn.BatchNorm2d(6)(y))


def test_a_layer_norm_after_a_linear_layer_under_autocast_puts_out_bfloat16() -> None:
    for norm in (nn.LayerNorm(6), nb.LayerNorm(6)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert nn.Sequential(nn.Linear(6, 6), norm)(torch.randn(2, 6)).dtype is (
                torch.bfloat16
            )
