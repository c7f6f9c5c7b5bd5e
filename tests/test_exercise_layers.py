"""The graders of classes: every class gone wrong is named, and what is no layer too."""

import numpy as np
import pytest
import torch
from torch import nn

import normbook.nn
from normbook.exercises import check
from normbook.exercises.grading import BLANK
from normbook.exercises.layers import (
    CANCELS,
    EXERCISES,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    QKNorm,
    RMSNorm,
    TorchBatchNorm,
)

pytestmark = pytest.mark.slow

OWN = {
    "batch-norm-class": BatchNorm,
    "layer-norm-class": LayerNorm,
    "rms-norm-class": RMSNorm,
    "qk-norm-class": QKNorm,
    "instance-norm-class": InstanceNorm,
    "group-norm-class": GroupNorm,
}
MISTAKES = [(name, message) for name in EXERCISES for message in EXERCISES[name][1]]


@pytest.fixture
def verdict(capsys):
    def of(name, attempt):
        check(name, attempt)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        return lines[0].removeprefix(f"{name} ")

    return of


@pytest.mark.parametrize("name", EXERCISES)
def test_torch_s_layer_and_one_of_our_own_pass(name, verdict):
    assert verdict(name, EXERCISES[name].solution) == "✓ right"
    assert verdict(name, OWN[name]) == "✓ right"


def test_normbook_s_batch_norm_passes(verdict):
    assert verdict("batch-norm-class", normbook.nn.BatchNorm) == "✓ right"
    assert verdict("group-norm-class", normbook.nn.GroupNorm) == "✓ right"


@pytest.mark.parametrize(("name", "message"), MISTAKES)
def test_a_class_gone_wrong_is_named(name, message, verdict):
    assert verdict(name, EXERCISES[name].mistakes[message]) == f"✗ {message}"


@pytest.mark.parametrize("name", EXERCISES)
def test_the_layer_of_another_exercise_does_not_pass(name, verdict):
    for other in EXERCISES:
        if other != name:
            assert verdict(name, OWN[other]).startswith("✗")
            assert verdict(name, EXERCISES[other].solution).startswith("✗")


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 1e-4, 1e-6, 1e-8])
def test_another_eps_by_default_is_named(name, eps, verdict):
    class Other(OWN[name]):
        def __init__(self, *args, eps=eps, **settings):
            super().__init__(*args, eps=eps, **settings)

    assert "ε" in verdict(name, Other)


@pytest.mark.parametrize(
    "name", [name for name in EXERCISES if "rms" not in name and "qk" not in name]
)
def test_a_variance_that_cancels_is_named(name, verdict):
    class MeanOfSquares(OWN[name]):
        def moments(self, view):
            mean, square = (
                v.mean(self.axes(view), keepdim=True) for v in (view, view**2)
            )
            return mean, square - mean**2

    assert verdict(name, MeanOfSquares) == f"✗ {CANCELS}"


class Starter(nn.Module):
    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__()

    def forward(self, x): ...


class NoForward(BatchNorm):
    forward = nn.Module.forward


class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()


class NoInit(nn.Module):
    def __init__(self, channels, eps=1e-5, momentum=0.1):
        self.weight = nn.Parameter(torch.ones(channels))


class PlainBuffers(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        mean, var = self.running_mean, self.running_var
        del self.running_mean, self.running_var
        self.running_mean, self.running_var = mean, var


class LostBuffers(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.register_buffer("running_mean", self.running_mean, persistent=False)


class LearnedBuffers(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        mean = self.running_mean
        del self.running_mean
        self.running_mean = nn.Parameter(mean, requires_grad=False)


class PlainWeight(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        del self.weight
        self.weight = torch.ones(4)


class NoBias(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        del self.bias

    def affine(self, x_hat):
        return self.weight.reshape(-1, *(1 for _ in x_hat.shape[2:])) * x_hat


class Greek(BatchNorm):
    def __init__(self, channels, **settings):
        super().__init__(channels, **settings)
        self.gamma = nn.Parameter(torch.ones(channels))


class WideWeight(BatchNorm):
    def __init__(self, channels, **settings):
        super().__init__(channels, **settings)
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))


class OtherSets(BatchNorm):
    def axes(self, view):
        return tuple(range(1, view.dim()))


class Half(TorchBatchNorm):
    def forward(self, x):
        return super().forward(x)[:1]


class Pair(TorchBatchNorm):
    def forward(self, x):
        return super().forward(x), x


class NoGradient(TorchBatchNorm):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Single(TorchBatchNorm):
    def forward(self, x):
        return super().forward(x).float()


class WritesIntoX(TorchBatchNorm):
    def forward(self, x):
        y = super().forward(x)
        x += 1
        return y


class StartsAtZero(BatchNorm):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.running_var.zero_()


class Endless(BatchNorm):
    def forward(self, x):
        return self.forward(x)


class TwoSlips(EXERCISES["batch-norm-class"].mistakes["the root is missing"]):
    def unbiased(self, var, m):
        return var


class UnbiasedOnce(nn.BatchNorm1d):
    """As many write it: one variance, the unbiased, to divide by and to store."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__(channels, eps, momentum)

    def forward(self, x):
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(axes), x.var(axes)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        x_hat = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return self.weight.view(shape) * x_hat + self.bias.view(shape)


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (..., BLANK),
        (Starter, BLANK),
        (3.0, "it asks for a class"),
        (lambda x: x, "it asks for a class"),
        (TorchBatchNorm(4), "it asks for a class"),
        (dict, "it asks for a class"),
        (NoForward, "it has no forward"),
        (NoArguments, "NoArguments(4, eps=0.5, momentum=0.3) raised TypeError"),
        (NoInit, "before Module.__init__() call"),
        (PlainBuffers, "running_mean is a plain attribute"),
        (LostBuffers, "running_mean is a plain attribute"),
        (LearnedBuffers, "running_mean is a parameter, which an optimizer would"),
        (PlainWeight, "weight is no parameter and cannot learn"),
        (NoBias, "it has no tensor named bias"),
        (Greek, "its state dict holds gamma; that of torch.nn holds weight, bias"),
        (WideWeight, "weight has shape (1, 4, 1, 1); that of torch.nn has (4,)"),
        (OtherSets, "in training, for x of shape (6, 4), it raised RuntimeError"),
        (Half, "forward gives (1, 4): y is a tensor of x's shape"),
        (Pair, "forward gives tuple: y is a tensor of x's shape"),
        (NoGradient, "y has no gradient"),
        (Single, "its numbers are float32, not float64"),
        (WritesIntoX, "it changes its input in place"),
        (StartsAtZero, "running_var of a new layer is 0.0000 at (0,)"),
        (Endless, "it raised RecursionError"),
        (TwoSlips, "the root is missing"),
        (UnbiasedOnce, "you normalize by the unbiased variance"),
    ],
)
def test_what_is_no_such_layer_is_told_so(attempt, says, verdict):
    assert says in verdict("batch-norm-class", attempt)


def test_inputs_are_the_same_for_every_attempt():
    for exercise in EXERCISES.values():
        for case in exercise.cases:
            assert all(a.dtype == np.float64 for a in case.args[2:])
            assert case.args[2].shape == case.args[3].shape
