"""Compiled operations, each with a plain twin in Jittor's own operators (`..._plain`)."""
import contextlib

_compiled = True


def compiled():
    """Whether the compiled operations are in use; not so within `plain_operators`."""
    return _compiled


@contextlib.contextmanager
def plain_operators():
    """Inside the block all operations are Jittor's own: what the kernels are compared with."""
    global _compiled
    before, _compiled = _compiled, False
    try:
        yield
    finally:
        _compiled = before
