"""The practice questions: their file, and every answer that can be computed."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import practice_data
import pytest
import torch
import torch.nn.functional as F
import words
from myst_parser.config.main import MdParserConfig  # noqa: F401
from practice_data import Choice, Question
from torch import nn

from normbook import core, functional

QUESTIONS = practice_data.load()
ROOT = Path(__file__).parents[1]
each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)


def gradient(function: Callable[..., Any], x: Any, dy: Any) -> torch.Tensor:
    """Torch's gradient at x, in float64, where that of the output is dy."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(at), at, torch.as_tensor(dy))[0]


def names(question: Question) -> dict[str, Any]:
    """What the expressions of a question may use."""
    torch.manual_seed(0)
    known: dict[str, Any] = {
        "np": np, "torch": torch, "nn": nn, "F": F, "core": core,
        "functional": functional, "gradient": gradient,
        "rng": np.random.default_rng(0),
    }  # fmt: skip
    exec(question.given, known)
    return known


def numbers(value: Any) -> list[float]:
    """The numbers of a value, of an array, or of a nest of them."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in numbers(part)]
    return np.ravel(value).tolist()


def equal(left: Any, right: Any) -> bool:
    """Whether two values agree; texts and truths only with their own kind."""
    for kind in (str, (bool, np.bool_)):
        if isinstance(left, kind) or isinstance(right, kind):
            both = isinstance(left, kind) and isinstance(right, kind)
            return both and bool(left == right)
    a, b = numbers(left), numbers(right)
    return len(a) == len(b) and np.allclose(a, b, 1e-6, 1e-9, equal_nan=True)


def outcome(question: Question, choice: Choice) -> Any:
    """The result of the code with a choice's filling, or the name of its error."""
    known = names(question)
    try:
        exec(question.filled(choice), known)
        return eval(question.result, known)
    except Exception as error:
        return type(error).__name__


@each_question
def test_the_right_choice_is_right_and_each_mistake_gives_its_own(
    question: Question,
) -> None:
    if not question.computed:
        return
    with np.errstate(all="ignore"):
        right = eval(question.computed, names(question))
        for choice in question.choices:
            value, what = choice.value, f"{question.id}: {choice.en}"
            if question.kind == "blanks":
                value = outcome(question, choice)
            if choice.mistake:
                mistake = eval(choice.mistake, names(question))
                assert equal(value, mistake), (what, value, mistake)
            if value is not None:
                assert equal(value, right) == choice.right, (what, value, right)
