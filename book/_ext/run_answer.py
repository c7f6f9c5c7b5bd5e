"""Run what a reader wrote on a page, and say what it prints, as text.

The pages' Python runs this, with normbook's own sources beside it; tests run it too.
"""

import ast
import io
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from normbook.exercises.limits import PRINT_LIMIT_CHARACTERS, Stopped, described

# Of a whole run; `check` has a limit of its own for what one answer prints.
LIMIT_CHARACTERS = 3 * PRINT_LIMIT_CHARACTERS
FILE = "<answer>"


class Paper(io.TextIOBase):
    """What is printed goes to the page a line at a time, up to a limit."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.line = ""
        self.left = LIMIT_CHARACTERS

    def write(self, text: str, /) -> int:
        if len(text) > self.left:
            raise Stopped(f"it prints more than {LIMIT_CHARACTERS:,} characters")
        self.left -= len(text)
        lines, end, self.line = (self.line + text).rpartition("\n")
        if end:
            self.show(lines + end)
        return len(text)

    def flush(self) -> None:
        """Show a last line that does not end."""
        if self.line:
            self.show(self.line)
            self.line = ""


def run(code: str, before: str, show: Callable[[str], None]) -> None:
    """Run code after `before`, which defines what the page has defined so far.

    As in a notebook, a value on the last line is shown. An error is shown by its last
    line and its place.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    paper = Paper(show)
    with redirect_stdout(paper), redirect_stderr(paper):
        try:
            exec(before, names)
            _execute(code, names)
        except Stopped as reason:
            fault = f"✗ {reason}"
        except BaseException as error:
            fault = f"✗ {_last_line(error)}"
        else:
            fault = ""
    paper.flush()
    if fault:
        show(f"{fault}\n")


def _execute(code: str, names: dict[str, Any]) -> None:
    body = ast.parse(code, FILE)
    last = (
        body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
    )
    exec(compile(body, FILE, "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), FILE, "eval"), names)
        if value is not None:
            print(repr(value))


def _last_line(error: BaseException) -> str:
    """The kind of an error, its text, and the line of the answer that it comes from."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "PyTorch is not here, and no page can run it: use the notebook"
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if step.filename == FILE]
    return f"{described(error)} (line {lines[-1]})" if lines else described(error)
