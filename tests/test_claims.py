import subprocess
import sys

import numpy as np
import pytest
import torch

from normbook.claims import claim, claim_id


@pytest.mark.parametrize(
    "holds", [True, np.bool_(True), np.array([True]), torch.tensor(True), 1 < 2]
)
def test_what_holds_is_printed(holds, capsys):
    claim("two samples give ±1", holds)
    assert capsys.readouterr().out == "✓ two samples give ±1\n"


@pytest.mark.parametrize("holds", [False, np.bool_(False), torch.tensor(False), 1 > 2])
def test_what_does_not_hold_is_printed_and_stops_nobody(holds, capsys):
    claim("one sample is enough", holds)
    assert capsys.readouterr().out == "✗ one sample is enough\n"


def test_a_function_is_called(capsys):
    claim("two", lambda: 2 > 1)
    claim("three", lambda: 2 > 3)
    assert capsys.readouterr().out == "✓ two\n✗ three\n"


def test_an_exception_counts_as_not_holding_and_its_last_line_is_printed(capsys):
    def reshaped():
        raise ValueError("cannot reshape\n\nsize 4 into shape (3,)\n")

    claim("four are three", reshaped)
    assert capsys.readouterr().out == (
        "✗ four are three\n  ValueError: size 4 into shape (3,)\n"
    )


@pytest.mark.parametrize("several", [np.array([True, True]), torch.ones(2, 3) > 0])
def test_several_truth_values_are_refused(several):
    for holds in (several, lambda: several):
        with pytest.raises(ValueError, match=r"of shape .*\.all\(\) or \.any"):
            claim("all of them", holds)


def test_an_array_without_values_is_refused():
    with pytest.raises(ValueError, match="one truth value"):
        claim("none of them", np.array([]) > 0)


def test_an_id_is_made_from_the_statement_alone():
    statement = "Two samples come out as ±1 whatever they were"
    assert claim_id(statement) == "claim-two-samples-come-out-as-1-5389bc"
    assert claim_id("Torch's γ") == "claim-torchs-b7081d"
    assert claim_id("γ = β") == "claim-553505"
    # What the words leave out still tells two statements apart.
    assert claim_id(statement + " before") != claim_id(statement)
    assert claim_id("γ = 1") != claim_id("β = 1")


def test_claims_needs_the_standard_library_alone():
    command = (
        "import sys, normbook.claims; "
        "print({'numpy', 'torch', 'sphinx', 'docutils'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"
