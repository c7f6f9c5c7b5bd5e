"""Run a reader's code so that it can be stopped, whatever it does.

The code runs in a thread of its own while the caller waits. A loop without end is
stopped by an exception that is raised inside that thread; no signal handler and no
timer is touched, so it works wherever threads do, and Ctrl-C still reaches the caller.
"""

import ctypes
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from threading import Event, Lock, Thread, get_ident
from time import monotonic
from typing import Any

TIME_LIMIT_S = 5.0
PRINT_LIMIT_CHARACTERS = 10_000
# How long a thread is asked to end that swallows the exception or is inside a call of
# C; and how long one waits for it at a time.
_GRACE_S = 5.0
_PAUSE_S = 0.02
# Of so many seconds; a page that runs an answer says it, too.
LATE = "it did not finish in {:g} seconds: is there a loop that never ends?"


class Stopped(SystemExit):
    """Code that was stopped, and why. No `except Exception` catches it."""


class _Paper(io.StringIO):
    """What was printed, up to a limit."""

    def write(self, text: str, /) -> int:
        if self.tell() + len(text) > PRINT_LIMIT_CHARACTERS:
            raise Stopped(f"it prints more than {PRINT_LIMIT_CHARACTERS:,} characters")
        return super().write(text)


class _Worker(Thread):
    """A thread for one call, which another thread can stop."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.returned: list[Any] = []
        self.raised: list[BaseException] = []
        self.lock = Lock()
        self.ended = Event()

    def run(self) -> None:
        # A second time round when Stopped arrives after the call, on the way out. One
        # that never arrived would slow the interpreter down for good; so the lock is
        # taken, after which none is sent, and a call is made, where one sent arrives.
        while not self.ended.is_set():
            try:
                sys.settrace(_untraced)
                if not self.returned and not self.raised:
                    self.returned.append(self.call())
                sys.settrace(None)
                with self.lock:
                    self.ended.set()
            except BaseException as error:
                sys.settrace(None)
                self.raised.append(error)

    def stop(self) -> None:
        """Raise Stopped in the call; nothing once it has ended.

        And again at every line that its frames go on to, so that no `except:` of a loop
        swallows it for good: the handler's own line raises it once more.
        """
        with self.lock:
            if self.ended.is_set():
                return
            frame = sys._current_frames().get(self.ident or 0)
            while frame is not None and frame.f_code is not _Worker.run.__code__:
                frame.f_trace = _stop_again
                frame = frame.f_back
            _raise_in(self.ident or 0)


def _raise_in(thread: int) -> None:
    """Raise Stopped in a thread, at its next jump back or call."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(Stopped)
    )


def _untraced(frame: Any, event: str, argument: Any) -> None:
    """Trace nothing yet: without a trace function, a frame could not be given one."""


def _stop_again(frame: Any, event: str, argument: Any) -> Any:
    """Raise Stopped soon; raised from here, it would end the tracing."""
    _raise_in(get_ident())
    return _stop_again


def limited(run: Callable[[], Any]) -> Any:
    """What `run()` returns; an Exception that it raises is raised here.

    What it prints is printed when it has ended. Raises Stopped after TIME_LIMIT_S
    seconds, for more than PRINT_LIMIT_CHARACTERS printed, and for a SystemExit or
    KeyboardInterrupt of its own. The reader's own KeyboardInterrupt stops it and comes
    through.
    """
    worker = _Worker(run)
    paper = _Paper()
    late = False
    try:
        with redirect_stdout(paper):
            try:
                worker.start()
            except RuntimeError:  # a browser has no threads: its page sets the limit
                worker.run()
            until = monotonic() + TIME_LIMIT_S
            # Short waits, for on some systems Ctrl-C ends none.
            while not worker.ended.wait(_PAUSE_S) and monotonic() < until:
                pass
            late = not worker.ended.is_set()
    finally:
        _stop(worker)
        if worker.ended.is_set() and worker.is_alive():
            worker.join()  # a moment: the thread is on its way out
        print(paper.getvalue(), end="")
    if late:
        raise Stopped(LATE.format(TIME_LIMIT_S))
    for error in worker.raised:
        if isinstance(error, Exception | Stopped):
            raise error
        raise Stopped(f"it raised {described(error)}") from error
    return worker.returned[0]


def described(error: BaseException) -> str:
    """The kind of an error, and its text where it has one."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))


def _stop(worker: _Worker) -> None:
    """Raise Stopped in a thread until it ends; not for ever: it may be in C."""
    until = monotonic() + _GRACE_S
    while not worker.ended.is_set() and monotonic() < until:
        worker.stop()
        worker.ended.wait(_PAUSE_S)
