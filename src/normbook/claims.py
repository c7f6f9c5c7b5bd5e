"""Statements of the book that are checked where they are made."""

from typing import Any


def claim(statement: str, holds: Any) -> None:
    """Print "✓ statement", or raise AssertionError when it does not hold.

    holds: one truth value; an array of several is refused, since `all` and `any` are
    different claims.
    """
    if getattr(holds, "shape", ()) not in ((), (1,)):
        raise ValueError(
            f"a claim needs one truth value; got an array of shape {holds.shape}. "
            "Say which you mean: .all() or .any()."
        )
    if not bool(holds):
        raise AssertionError(f"✗ {statement}")
    print(f"✓ {statement}")
