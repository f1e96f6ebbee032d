"""The process that owns Jittor: takes jobs on standard input, answers with events on standard output.

Jittor is not thread-safe and holds the interpreter's lock while it computes. In a process of its own it neither delays
the server's answers nor ends the server when it fails. Messages are pickles, each after its length; both ends are the
same program of the same user.
"""
import io
import os
import pickle
import queue
import struct
import sys
import threading

import numpy as np
from PIL import Image

from jiidm.painter.engine import Cancelled
from jiidm.system.errors import InputError, SetupError

LENGTH = struct.Struct("<I")


def pack(message):
    """Returns the bytes of a message as they go through the pipe."""
    data = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(data)) + data


def serve(build_engine):
    """Runs jobs until standard input ends.

    Args:
        build_engine: a function that returns an `Engine`; called here, in the thread that runs all jobs.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the messages
    lock = threading.Lock()

    def send(number, event):
        with lock:
            out.write(pack((number, event)))
            out.flush()

    jobs, cancelled = queue.SimpleQueue(), set()
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), jobs, cancelled), daemon=True).start()
    try:
        send(0, {"event": "say", "text": "loading the networks"})
        engine = build_engine()
        engine.warm_up(lambda text: send(0, {"event": "say", "text": text}))
    except (InputError, SetupError) as error:
        send(0, {"event": "failed", "error": str(error)})
        return
    send(0, {"event": "ready", "model": engine.describe()})
    while True:
        number, kind, arguments = jobs.get()
        send(number, _run(engine, kind, arguments, lambda event, n=number: _emit(send, n, event, cancelled)))
        cancelled.discard(number)


def _run(engine, kind, arguments, emit):
    """Runs one job; returns its last event."""
    try:
        emit({"event": "started"})
        if kind == "segment":
            return {"event": "result", "labels": engine.segment(*arguments)}
        engine.paint(*arguments, emit)
        return {"event": "end"}
    except Cancelled:
        return {"event": "cancelled"}
    except InputError as error:
        return {"event": "error", "error": str(error)}
    except Exception as error:  # noqa: BLE001 - one failed job must not end the ones after it
        print(f"jiidm: a job failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return {"event": "error", "error": f"the picture could not be computed ({type(error).__name__}: {error})"}


def _emit(send, number, event, cancelled):
    if number in cancelled:
        raise Cancelled
    picture = event.get("picture")
    if picture is not None:
        event = {**event, "picture": png_of(picture), "width": picture.shape[1], "height": picture.shape[0]}
    send(number, event)


def _read(source, jobs, cancelled):
    """Passes jobs on and notes which are cancelled; ends the process with the pipe."""
    while True:
        head = source.read(LENGTH.size)
        if len(head) < LENGTH.size:
            os._exit(0)  # the server is gone; Jittor may be computing
        number, kind, arguments = pickle.loads(source.read(LENGTH.unpack(head)[0]))
        if kind == "cancel":
            cancelled.add(number)
        else:
            jobs.put((number, kind, arguments))


def png_of(picture):
    """Returns the PNG of H x W x 3 or H x W uint8."""
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(data, "PNG", compress_level=1)
    return data.getvalue()


def main():
    """`python -m jiidm.painter.worker WEIGHTS DEVICE`, as the server starts it."""
    from jiidm.painter.engine import Engine

    weights, device = sys.argv[1:]
    serve(lambda: Engine(weights, device))


if __name__ == "__main__":
    main()
