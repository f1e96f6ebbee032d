"""The queue of jobs and the worker process that runs them, one at a time."""
import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import sys
from pathlib import Path

from jiidm.painter.worker import LENGTH, pack

FINAL = ("end", "cancelled", "error")
_CHECKOUT = str(Path(__file__).resolve().parents[2])  # the worker finds the package where the server did
_GRACE = 10  # seconds that a cancelled job may go on before its process is ended
_SESSIONS = 256  # of which the newest request is remembered
_RESTARTS = 3  # failures in a row after which there is no further try


class Busy(Exception):
    """The queue is full."""


class Job:
    """One job. Iterate over it for its events, the last of which is one of `FINAL` or a segmentation's result."""

    def __init__(self, jobs, number, session, kind, arguments):
        self.number, self.session, self.kind, self.arguments = number, session, kind, arguments
        self.cancelled = self.finished = False
        self._jobs, self._events = jobs, asyncio.Queue()

    def put(self, event):
        """Adds an event; nothing follows a final one."""
        if not self.finished:
            self.finished = event["event"] in FINAL or "labels" in event
            self._events.put_nowait(event)

    def cancel(self):
        """Ends the job at its next step, or before it has begun."""
        if not self.finished:
            self._jobs.cancel(self)

    async def __aiter__(self):
        while True:
            event = await self._events.get()
            yield event
            if event["event"] in FINAL or "labels" in event:
                return


class Jobs:
    """Runs jobs in a worker process. Of one session only the newest job counts: it replaces the one before.

    `status` is "starting", "ready", "failed" or "closed", `detail` a line on it, `model` the engine's description.
    """

    def __init__(self, command, time_limit=120, waiting_limit=4, say=None):
        """
        Args:
            command: the arguments that start the worker process.
            time_limit: seconds that a job may compute.
            waiting_limit: jobs that may wait while one runs.
            say: is called with each line of progress of the start.
        """
        self.status, self.detail, self.model = "starting", "starting", None
        self.changed = asyncio.Event()
        self._command, self._time_limit, self._waiting_limit = command, time_limit, waiting_limit
        self._say = say or (lambda text: None)
        self._numbers, self._newest = itertools.count(1), {}
        self._waiting, self._running, self._arrived = [], None, asyncio.Event()
        self._process = self._task = None

    def start(self):
        """Starts the worker in the background."""
        self._task = asyncio.create_task(self._supervise())

    async def close(self):
        """Drops all jobs and ends the worker."""
        self.status, self.detail = "closed", "the server is shutting down"
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for job in [*self._waiting, *([self._running] if self._running else [])]:
            job.put({"event": "error", "error": self.detail})
        self._waiting, self._running = [], None

    def draw_number(self):
        """Returns the number of a request, drawn when it arrives: decoding may let a later one overtake it."""
        return next(self._numbers)

    def submit(self, number, kind, arguments, session=None):
        """Queues a job.

        Args:
            number: from `draw_number`.
            kind: "paint" or "segment".
            arguments: those of the engine's method, without `emit`.
            session: a text. Of one session the request with the highest number wins, the others are cancelled. None
                stands alone.

        Returns:
            The `Job`.

        Raises:
            Busy: too many jobs wait.
        """
        job = Job(self, number, session, kind, arguments)
        if session is not None:
            if self._newest.get(session, 0) > number:
                job.put({"event": "cancelled"})
                return job
            self._newest.pop(session, None)
            self._newest[session] = number
            if len(self._newest) > _SESSIONS:
                del self._newest[next(iter(self._newest))]
            for older in [*self._waiting, *([self._running] if self._running else [])]:
                if older.session == session:
                    older.cancel()
        if len(self._waiting) >= self._waiting_limit:
            raise Busy
        self._waiting.append(job)
        self._arrived.set()
        return job

    def cancel(self, job):
        """Takes a waiting job out of the queue, or asks the worker to end a running one."""
        if job in self._waiting:
            self._waiting.remove(job)
            job.put({"event": "cancelled"})
        elif job is self._running and not job.cancelled:
            job.cancelled = True
            self._send((job.number, "cancel", None))

    def _set(self, status, detail):
        self.status, self.detail = status, detail
        self._say(detail)
        if status != "starting":
            self.changed.set()

    def _send(self, message):
        with contextlib.suppress(ConnectionError, RuntimeError):  # a dead worker is noticed where it is read
            self._process.stdin.write(pack(message))

    async def _supervise(self):
        failures = 0
        path = os.pathsep.join(filter(None, (_CHECKOUT, os.environ.get("PYTHONPATH"))))
        while failures < _RESTARTS:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
            try:
                await self._serve(self._process)
            except EOFError:
                failures = failures + 1 if self.status == "starting" else 1
            finally:
                await self._end_process()
            if self.status == "failed":
                return
            if self._running:
                self._running.put({"event": "error", "error": "the process that computes pictures ended; try again"})
                self._running = None
            self._set("starting", "the process that computes pictures ended; starting it again")
        self._set("failed", "the process that computes pictures does not start; its messages are in the terminal")

    async def _serve(self, process):
        """Runs jobs in a worker process; raises EOFError when it ends."""
        while self.status == "starting":
            _, event = await _receive(process)
            if event["event"] == "say":
                self._set("starting", event["text"])
            elif event["event"] == "failed":
                self._set("failed", event["error"])
                return
            else:
                self.model = event["model"]
                self._set("ready", "ready")
        message = asyncio.ensure_future(_receive(process))
        try:
            while True:
                arrived = asyncio.ensure_future(self._arrived.wait())
                await asyncio.wait({arrived, message}, return_when=asyncio.FIRST_COMPLETED)
                arrived.cancel()
                if message.done():
                    message.result()  # between jobs nothing but the end comes
                    message = asyncio.ensure_future(_receive(process))
                while self._waiting:
                    message = await self._compute(self._waiting.pop(0), process, message)
                self._arrived.clear()
        finally:
            message.cancel()

    async def _compute(self, job, process, message):
        """Runs one job to its end; returns the future of the next message."""
        self._running = job
        self._send((job.number, job.kind, job.arguments))
        job.arguments = None
        limit, over = self._time_limit, False
        end = asyncio.get_running_loop().time() + limit
        while True:
            left = end - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({message}, timeout=max(0.0, min(left, _GRACE if job.cancelled else left)))
            if not done:
                if over or job.cancelled and left > 0:
                    raise EOFError  # it does not answer: end its process
                over, end = True, asyncio.get_running_loop().time() + _GRACE
                job.put({"event": "error", "error": f"stopped after {limit:g} s, the time limit of a picture"})
                self._send((job.number, "cancel", None))
                continue
            number, event = message.result()
            message = asyncio.ensure_future(_receive(process))
            if number != job.number:
                continue
            job.put(event)
            if event["event"] in FINAL or "labels" in event:
                self._running = None
                return message

    async def _end_process(self):
        """Ends the worker and the compilers that it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdin.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 2)


async def _receive(process):
    try:
        head = await process.stdout.readexactly(LENGTH.size)
        return pickle.loads(await process.stdout.readexactly(LENGTH.unpack(head)[0]))
    except asyncio.IncompleteReadError as error:
        raise EOFError from error


def worker_command(weights="default", device="auto"):
    """The arguments that start the worker with a generator's weights."""
    return [sys.executable, "-m", "jiidm.painter.worker", str(weights), device]
