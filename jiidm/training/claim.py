"""A run folder belongs to one run at a time."""
import contextlib
import fcntl
import json
import os
import socket

from jiidm.system.errors import InputError

NAME = ".claim"
_held = set()  # open files


@contextlib.contextmanager
def claimed(run):
    """Inside the block the folder `run` is this process's own.

    Raises InputError, with process and host of the owner, when another run holds it. The system lets go of the claim of
    a process that has ended, whatever its end. What such a one has left half-written is removed at the beginning.
    """
    file = _locked(run)
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        file.close()


def _locked(run):
    try:
        file = open(run / NAME, "a+b", buffering=0)  # noqa: SIM115 - closed by `claimed`
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in (*run.glob(".*.tmp*"), *run.glob("*/.*.tmp*")):
            left.unlink()
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
    except BlockingIOError:
        owner = _named((run / NAME).read_text(encoding="utf-8"))
        raise InputError(f"{run}: is in use by {owner}; wait for its end, or take another folder") from None
    except OSError as error:
        raise InputError(f"{run}: cannot be claimed ({error.strerror or error}); make room, or take another run "
                         f"folder") from error
    return file


def _named(text):
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):  # not written yet
        return "another process"


def _let_go():
    for file in _held:
        file.close()


# a child (Jittor compiles in some) would else hold on to the claim when its parent is killed
os.register_at_fork(after_in_child=_let_go)
