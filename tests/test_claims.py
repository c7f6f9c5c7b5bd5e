import numpy as np
import pytest
import torch

from normbook.claims import claim


@pytest.mark.parametrize(
    "holds", [True, np.bool_(True), np.array([True]), torch.tensor(True), 1 < 2]
)
def test_what_holds_is_printed(holds, capsys):
    claim("two samples give ±1", holds)
    assert capsys.readouterr().out == "✓ two samples give ±1\n"


@pytest.mark.parametrize("holds", [False, np.bool_(False), torch.tensor(False), 1 > 2])
def test_what_does_not_hold_raises_and_prints_nothing(holds, capsys):
    with pytest.raises(AssertionError, match=r"^✗ one sample is enough$"):
        claim("one sample is enough", holds)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("several", [np.array([True, True]), torch.ones(2, 3) > 0])
def test_several_truth_values_are_refused(several):
    with pytest.raises(ValueError, match=r"got an array of shape .*\.all\(\) or \.any"):
        claim("all of them", several)


def test_an_array_without_values_is_refused():
    with pytest.raises(ValueError, match="one truth value"):
        claim("none of them", np.array([]) > 0)
