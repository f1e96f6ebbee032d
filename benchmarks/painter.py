"""Measures the painter's latency: from the end of a stroke to the preview, and to the full picture.

Starts `jiidm paint` and draws strokes on an example. Where playwright and Chromium are installed, the page does it in
headless Chromium, and the time ends when the picture is decoded; else requests are sent as the page sends them. Run it
on a quiet machine. The aim is 0.5 s to the preview on two cores.
"""
import argparse
import base64
import http.client
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import ROOT, machine, row, write_report
from jiidm.commands.entry import run_tool
from jiidm.data.labels import CLASSES
from jiidm.system.errors import InputError

_STROKES = 20
_PAGE = """async ([labels, x, y, quality]) => {
    const canvas = document.getElementById('canvas'), { view, state, live, buffer } = painter;
    const label = labels.find((label) => label !== buffer.data[y * buffer.width + x]);  // else nothing changes
    canvas.setPointerCapture = () => {};
    Object.assign(state, { tool: 'brush', size: 30, label });
    live.preview = quality === 'preview';
    const box = canvas.getBoundingClientRect(), shown = live.show.result;
    const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
        pointerId: 1, pointerType: 'mouse', clientX: box.left + view.corner.x + x * view.scale,
        clientY: box.top + view.corner.y + y * view.scale }));
    send('pointerdown', x, y);
    send('pointermove', x + 60, y + 10);
    live.abort();
    const done = new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error('no picture within a minute')), 60000);
        live.show.result = (...result) => { shown(...result); resolve(document.getElementById('picture').decode()); };
    });
    const start = performance.now();
    send('pointerup', x + 60, y + 10);
    if (quality === 'full') live.run('full');
    await done;
    live.show.result = shown;
    return (performance.now() - start) / 1000;
}"""


def main():
    """Measures and writes painter.md and painter.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default", help="folder of weights (default: the package's)")
    parser.add_argument("--strokes", type=int, default=_STROKES, help=f"strokes to draw (default {_STROKES})")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    if args.strokes < 1:
        raise InputError(f"--strokes {args.strokes}: expected at least 1")
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "paint.py", "--no-browser", "--port", "0", "--checkpoint", args.checkpoint],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        if not found:
            raise InputError("jiidm paint did not start; its messages are above")
        rows = []
        for quality, name in (("preview", "end of a stroke to preview"), ("full", "end of a stroke to full picture")):
            measure, how = _measurer(found[0], int(found[1]))
            times = measure(quality, args.strokes)
            rows.append(row(name, statistics.median(times), "s",
                            note=f"{how}; {len(times)} strokes, longest {max(times):.2f} s"))
    finally:
        process.terminate()
        process.wait(10)
    print(write_report(args.output, "painter", "The painter", rows, machine()))
    return 0


def _measurer(url, port):
    """Returns a function (quality, strokes) -> seconds of each stroke, and what it measures, in words."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        return lambda quality, strokes: _requests(port, quality, strokes), "from the request to the answer"

    def in_page(quality, strokes):
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(url)
            page.wait_for_selector("#picture:not([hidden])", timeout=120_000)
            page.uncheck("#full")
            times = [page.evaluate(_PAGE, [*stroke, quality]) for stroke in _strokes(strokes)]
            browser.close()
            return times
    return in_page, "in headless Chromium, until the picture is decoded"


def _requests(port, quality, strokes):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    labels = np.array(Image.open(ROOT / "examples" / "test" / "labels" / "mountain_lake.png"))
    times = []
    for (label, *_), x, y in _strokes(strokes):
        labels[y:y + 30, x:x + 60] = label
        data = io.BytesIO()
        Image.fromarray(labels).save(data, "PNG")
        body = json.dumps({"map": base64.b64encode(data.getvalue()).decode(), "style": "evening_glow",
                           "settings": {"quality": quality}})
        start = time.perf_counter()
        connection.request("POST", "/api/picture?session=bench", body, {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        times.append(time.perf_counter() - start)
        if b'"result"' not in answer:
            raise InputError(f"no picture came back: {answer[-200:].decode()}")
    return times


def _strokes(count):
    """Labels to choose from, and the place of each stroke."""
    rng = np.random.default_rng(0)
    labels = [CLASSES.index(name) for name in ("tree", "water", "grass", "mountain")]
    places = rng.integers(20, [300, 250], (count, 2)).tolist()
    return [(labels[i % 4:] + labels[:i % 4], x, y) for i, (x, y) in enumerate(places)]


if __name__ == "__main__":
    run_tool(main)
