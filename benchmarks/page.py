"""Measures the static page with the default weights in headless Chromium (WebAssembly, in threads): seconds and memory
of a picture, and its distance from the painter's picture at the same seed.

  python -m benchmarks.page

Needs the extras onnx, painter and browser, Chromium and npm. Run it on a quiet machine.
"""
import argparse
import base64
import contextlib
import functools
import http.server
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import ROOT, machine, row, write_report
from jiidm.commands.entry import run_tool
from jiidm.system.errors import InputError

EXAMPLE, STYLE = "mountain_lake", "evening_glow"
_PAINT = """async ([map, style, quality]) => {
    const project = { map, style, settings: { strength: null, quality, size: 'model', seed: 0 } };
    const { picture, seconds } = await painter.engine.paint(project, () => {});
    const bytes = new Uint8Array(await picture.arrayBuffer());
    return [btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')), seconds];
}"""
# the painter's engine, in a process of its own: none has both Jittor's kernels and a browser
_PAINTER = """
import sys
import numpy as np
from jiidm.data.labels import read_label_map
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.data.project import Settings
from jiidm.painter.engine import Engine
labels, style, checkpoint, output = sys.argv[1:]
engine, pictures = Engine(checkpoint, "cpu"), {}
size = engine.describe()["picture"]
for quality in ("preview", "full"):
    events = []
    photo = fit_photo(read_photo(style), size["width"], size["height"])
    engine.paint(read_label_map(labels), photo, None, Settings(quality=quality, size="model"), events.append)
    pictures[quality] = events[-1]["picture"]
np.savez(output, **pictures)
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main():
    """Measures and writes page-MACHINE.md and page-MACHINE.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default", help="folder of weights (default: the package's)")
    parser.add_argument("--pictures", type=int, default=3, help="pictures to time (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    if args.pictures < 1:
        raise InputError(f"--pictures {args.pictures}: expected at least 1")
    missing = [name for name in ("chromium", "npm") if shutil.which(name) is None]
    if missing:
        raise InputError(f"{' and '.join(missing)}: not installed; apt install {' '.join(missing)}")
    labels = ROOT / "examples" / "test" / "labels" / f"{EXAMPLE}.png"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        site, expected = Path(folder, "page"), Path(folder, "expected.npz")
        subprocess.run([sys.executable, ROOT / "tools" / "page.py", "-o", site, args.checkpoint], check=True,
                       env=environment)
        subprocess.run([sys.executable, "-c", _PAINTER, labels, ROOT / "examples" / "train" / "imgs" / f"{STYLE}.jpg",
                        args.checkpoint, expected], check=True, env=environment)
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        rows = [row("the folder", size / 1e6, "MB")]
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with np.load(expected) as pictures:
            rows += _measure(f"http://127.0.0.1:{server.server_port}/", labels, dict(pictures), args.pictures)
        server.shutdown()
    print(write_report(args.output, "page", "The static page", rows, machine()))
    return 0


def _measure(url, labels, expected, count):
    """Rows of both qualities of picture, and of the memory after them."""
    from playwright.sync_api import sync_playwright

    rows, drawing = [], base64.b64encode(labels.read_bytes()).decode()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        _wait(page, "document.body?.className === '' && window.painter && !painter.live.stopped")
        page.evaluate("painter.live.abort(), painter.live.preview = painter.live.full = false")
        threads = page.evaluate("crossOriginIsolated")
        for quality in ("preview", "full"):
            painted = [page.evaluate(_PAINT, [drawing, STYLE, quality]) for _ in range(count + 1)][1:]
            rows.append(row(f"{quality} picture", statistics.median(seconds for _, seconds in painted), "s",
                            note=f"{count} pictures after a first one; {'threads' if threads else 'one thread'}"))
            found = np.array(Image.open(io.BytesIO(base64.b64decode(painted[-1][0]))).convert("RGB"), int)
            distance = np.abs(found - expected[quality])
            rows.append(row(f"{quality} picture: mean difference from the painter's", distance.mean(), "grey levels",
                            note=f"largest {distance.max()}, {(distance > 3).mean():.2%} of the values beyond 3"))
        rows.append(row("memory of the page's process", _memory_of_pages() / 1e9, "GB"))
        browser.close()
    return rows


def _wait(page, condition, seconds=180):
    """Waits until a JavaScript condition holds. The page's policy forbids Playwright's own way: it evaluates text."""
    from playwright.sync_api import Error

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Error):  # the page loads itself once more, for threads
            if page.evaluate(condition):
                return
        if time.monotonic() > end:
            raise InputError(f"the page is not ready after {seconds} s")
        time.sleep(0.2)


def _memory_of_pages():
    """Resident bytes of the largest of Chromium's renderers: the page that computes."""
    found = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            command = (status.parent / "cmdline").read_bytes()
            resident = re.search(r"VmRSS:\s*(\d+) kB", status.read_text())
        except OSError:  # it ended meanwhile
            continue
        if b"--type=renderer" in command and resident:
            found.append(1024 * int(resident[1]))
    return max(found)


if __name__ == "__main__":
    run_tool(main)
