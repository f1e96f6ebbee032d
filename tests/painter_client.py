"""What the painter's tests have in common: a server in a process of its own, and requests to it."""
import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
from helpers import ROOT
from PIL import Image

FAKE = ROOT / "tests" / "painter_fake.py"
STYLE = (ROOT / "examples" / "train" / "imgs" / "storm.jpg").read_bytes()


class Painter:
    """A `jiidm paint` that runs; `url` is the address that it printed."""

    def __init__(self, *options, seconds="0.1", real=False):
        command = [ROOT / "tools" / "paint.py"] if real else [FAKE, "paint", seconds]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command), "--no-browser", *options], env=environment, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # a script's background job ignores Ctrl-C, and its children would too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.messages = []
        reader = threading.Thread(target=self.messages.extend, args=(self.process.stderr,), daemon=True)
        reader.start()
        line = self.process.stdout.readline()
        found = re.search(r"http://([^/:]+):(\d+)/\S*", line)
        if not found:
            self.process.wait(10)
            reader.join(5)
            raise AssertionError(f"no address: {line}{''.join(self.messages)}")
        self.url, self.host, self.port = found[0], found[1], int(found[2])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, body=None, headers=None, connection=None):
        """Returns (status, headers, body) of one request."""
        own = connection or self.connect()
        own.request(method, path, body, headers or {})
        response = own.getresponse()
        data = response.read()
        if connection is None:
            own.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, data

    def paint(self, labels, session="", connection=None, **settings):
        """Returns the status and the events of a picture."""
        body = json.dumps(project(labels, **settings))
        path = "/api/picture" + (f"?session={session}" if session else "")
        status, _, data = self.ask("POST", path, body, {"Content-Type": "application/json"}, connection)
        return status, [json.loads(line) for line in data.splitlines()]

    def memory(self):
        """Resident memory of the server process in MB."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(number) for number in file.read().split()]

    def stop(self, number=signal.SIGTERM, seconds=5):
        """Ends it; returns its exit code. Raises TimeoutExpired where it takes longer."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.stdout.close()


@contextlib.contextmanager
def painter(*options, **settings):
    """A `Painter` for the time of the block."""
    running = Painter("--port", "0", *options, **settings)
    try:
        yield running
    finally:
        running.stop()


def png(array):
    """The PNG of an array, or of a PIL image, as bytes."""
    data = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(data, "PNG")
    return data.getvalue()


def text(data):
    return base64.b64encode(data).decode()


def project(labels, style="storm", **settings):
    """The JSON body of a picture, as a dict."""
    return {"map": labels if isinstance(labels, str) else text(png(labels)), "style": style, "settings": settings}


def picture(event):
    """The picture of an event as an array."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(event["picture"]))))
