"""A run folder belongs to one run at a time."""
import contextlib
import fcntl
import json
import os
import socket

from jiidm.system.distributed import is_main_process
from jiidm.system.errors import InputError

NAME = ".claim"
_held = set()  # open files


@contextlib.contextmanager
def claimed(run):
    """Inside the block no other run may write into the folder `run`; of several processes the main one holds the claim.

    The system releases the claim of a process that has ended, whatever its end. What such a one has left half-written
    is deleted first.

    Raises:
        InputError: when another run holds it; the message has its process and host.
    """
    if not is_main_process():
        yield
        return
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
        owner = _owner((run / NAME).read_text(encoding="utf-8"))
        raise InputError(f"{run}: is in use by {owner}; wait for its end, or take another folder") from None
    except OSError as error:
        raise InputError(f"{run}: cannot be claimed ({error.strerror or error}); make room, or take another run "
                         f"folder") from error
    return file


def _owner(text):
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):  # not written yet
        return "another process"


def _release():
    for file in _held:
        file.close()


# a child process (Jittor compiles in some) would otherwise hold the claim after its parent is killed
os.register_at_fork(after_in_child=_release)
