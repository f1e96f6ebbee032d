"""Ctrl-C, SIGTERM and a time limit in a long job: the first signal stops it in order, a second one at once."""
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

from jiidm.system.errors import Stopped

_SIGNALS = signal.SIGINT, signal.SIGTERM


class _Watch:
    """The state of this process's signals."""

    handlers = {}  # number -> address of Python's handler in the C library; empty when nothing is watched
    received = None  # the first signal that came
    may_raise = False
    end = float("inf")  # of the job's time, on the clock of time.monotonic


@contextlib.contextmanager
def stoppable(minutes: float | None = None) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM stop what runs under `interruptible`. For the main thread of a command.

    Args:
        minutes: `time_is_up` from then on. None: never.
    """
    _Watch.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    # Ctrl-C in a terminal kills the compilers that Jittor runs, and Jittor ends the process when a child is killed
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    libc = _load_libc()
    for number in _SIGNALS:  # even where SIGINT is ignored, as in a script's background job: `kill -INT` is meant
        signal.signal(number, _on_signal)
        _Watch.handlers[number] = libc.signal(number, signal.SIG_DFL)
    _arm()
    try:
        yield
    finally:
        _Watch.handlers.clear()
        _Watch.end = float("inf")
        if _Watch.received is None:  # else a further signal is to end the process, at its exit too
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Context in which a signal that `stoppable` watches raises `Stopped`, as soon as Python code runs.

    A signal outside of such a block raises at the beginning of the next one. Without `stoppable` nothing changes.
    """
    if _Watch.received is None and _Watch.handlers:
        _arm()
    _Watch.may_raise = True
    try:
        _raise_if_received()
        yield
        _raise_if_received()  # again, for code that catches every exception
    finally:
        _Watch.may_raise = False


def time_is_up() -> bool:
    """Returns whether the minutes that `stoppable` was given are over."""
    return time.monotonic() >= _Watch.end


def _raise_if_received():
    """Raises `Stopped` where a signal came."""
    if _Watch.received is not None:
        raise Stopped(_Watch.received)


def _on_signal(number, _frame):
    """Python's handler: notes the signal, and lets the next one end the process."""
    _Watch.received = number
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    if _Watch.may_raise:
        raise Stopped(number)


def _arm():
    """Installs Python's handler for one signal only; the next one gets the system's own handling.

    Python could not do that itself: Jittor holds the interpreter's lock while it computes, and no Python handler runs
    before the step ends. Jittor's import resets the signals, so this runs again after it.
    """
    libc = _load_libc()
    for number, handler in _Watch.handlers.items():
        libc.sysv_signal(number, handler)


def _load_libc():
    """The C library with its signal functions."""
    libc = ctypes.CDLL(None)
    for function in (libc.signal, libc.sysv_signal):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return libc


def _in_child():
    """Leaves Ctrl-C to the parent, which ends a process forked in the block; Jittor compiles its core in some."""
    if _Watch.handlers:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
