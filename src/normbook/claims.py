"""Statements of the book that are checked where they are made."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

HOLDS, FAILS = "✓ ", "✗ "  # how the line of a claim begins


def claim(statement: str, holds: Any | Callable[[], Any]) -> None:
    """Print "✓ statement" where it holds and "✗ statement" where it does not.

    holds: one truth value, or a function of nothing that gives one. An exception in the
    function counts as ✗, and its last line is printed below. Nothing is raised, so a
    reader who has altered a cell above goes on; the tests refuse a stored ✗. Raises
    ValueError for an array of several truth values, since `all` and `any` are different
    claims.
    """
    reason = ""
    if callable(holds):
        try:
            holds = holds()
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = f"\n  {': '.join([type(error).__name__, *lines[-1:]])}"
            holds = False
    shape = getattr(holds, "shape", ())
    if shape not in ((), (1,)):
        raise ValueError(
            f"a claim needs one truth value; got an array of shape {shape}. "
            "Say which you mean: .all() or .any()."
        )
    print(f"{HOLDS if bool(holds) else FAILS}{statement}{reason}")


def claim_id(statement: str) -> str:
    """Return the id of a claim: "claim-two-samples-come-out-as-1-5389bc".

    It is made from the statement alone, so it stays where it is when other claims come
    or go, and moves with its claim: six words in ASCII, for a reader of the address,
    and six digits of the whole statement's SHA-256.
    """
    words = re.findall(r"[a-z0-9]+", statement.lower().replace("'", ""))[:6]
    digest = hashlib.sha256(statement.encode()).hexdigest()[:6]
    return "-".join(["claim", *words, digest])
