"""An attempt that never ends, prints without end or leaves is stopped with a message.

Nothing stays behind: no thread, no timer, no handler, no switched output.
"""

import inspect
import signal
import subprocess
import sys
import threading
import time

import pytest

from normbook.exercises import check, limits


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(limits, "TIME_LIMIT_S", 0.3)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    def state():
        return (
            threading.active_count(),
            signal.getsignal(signal.SIGINT),
            sys.getswitchinterval(),
            sys.stdout,
            sys.gettrace(),
        )

    before = state()
    yield
    until = time.monotonic() + 5  # a stopped thread ends at its next turn
    while state() != before and time.monotonic() < until:
        time.sleep(0.02)
    assert state() == before


def for_ever(x, axes, eps):
    while True:
        pass


def for_ever_in_try(x, axes, eps):
    while True:
        try:
            for _ in range(100):
                pass
        except BaseException:
            continue


def asleep(x, axes, eps):
    while True:
        time.sleep(0.01)


def ends_after_being_stopped(x, axes, eps):
    try:
        for_ever(x, axes, eps)
    except BaseException:
        return x


LOOPS = [for_ever, for_ever_in_try, asleep, ends_after_being_stopped]


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_without_end_is_stopped(loop, capsys):
    start = time.monotonic()
    check("standardize", loop)
    assert time.monotonic() - start < 10
    assert capsys.readouterr().out == (
        "standardize ✗ it did not finish in 0.3 seconds: is there a loop that never "
        "ends?\n"
    )


def test_a_loop_is_stopped_off_the_main_thread_as_well(capsys):
    thread = threading.Thread(target=check, args=("standardize", for_ever))
    thread.start()
    thread.join(10)
    assert "it did not finish in 0.3 seconds" in capsys.readouterr().out


def raising(error):
    def attempt(x, axes, eps):
        raise error

    return attempt


def printing(x, axes, eps):
    while True:
        print("x")


def recursive(x, axes, eps):
    return recursive(x, axes, eps)


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (raising(SystemExit()), "it raised SystemExit"),
        (raising(SystemExit(3)), "it raised SystemExit: 3"),
        (raising(KeyboardInterrupt()), "it raised KeyboardInterrupt"),
        (raising(GeneratorExit()), "it raised GeneratorExit"),
        (raising(ValueError("no")), "it raised ValueError: no"),
        (recursive, "it calls itself without an end"),
        (printing, "it prints more than 10,000 characters"),
    ],
)
def test_what_ends_otherwise_gets_a_message(attempt, says, capsys):
    check("standardize", attempt)
    assert capsys.readouterr().out.endswith(f"standardize ✗ {says}\n")


def test_what_an_attempt_prints_is_shown_before_the_verdict(capsys):
    def attempt(x, axes, eps):
        print("x has shape", x.shape)
        return x

    check("standardize", attempt)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["x has shape (3, 4)", "x has shape (2, 3, 4)"]
    assert lines[-1].startswith("standardize ✗")


@pytest.fixture
def interrupts():
    """A notebook's handler: a process in the background may ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_interrupt_of_the_reader_ends_the_check(monkeypatch):
    monkeypatch.setattr(limits, "TIME_LIMIT_S", 30.0)
    interrupt = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        check("standardize", for_ever)
    assert time.monotonic() - start < 10
    interrupt.join()


def test_without_threads_an_attempt_is_run_in_place(monkeypatch, capsys):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    check("by-hand", [-1, -1 / 3, -1 / 3, 5 / 3])
    check("standardize", raising(ValueError("no")))
    assert capsys.readouterr().out == (
        "by-hand ✓ right\nstandardize ✗ it raised ValueError: no\n"
    )


@pytest.mark.slow
def test_the_interpreter_is_as_before():
    """An exception that is sent to a thread and never arrives hangs a profiler."""
    code = f"""
import cProfile
from normbook.exercises import check, limits
limits.TIME_LIMIT_S = 0.2

{inspect.getsource(for_ever)}
{inspect.getsource(for_ever_in_try)}

for loop in (for_ever, for_ever_in_try, lambda x, axes, eps: x):
    check("standardize", loop)
cProfile.run("[sorted([2, 1], key=lambda x: x) for _ in range(100)]")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
