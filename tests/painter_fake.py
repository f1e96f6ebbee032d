"""A worker for the painter's tests with an engine that computes nothing: a picture is the map's own colours.

Each picture has the colours of its label map, so a test can read from the picture which map it is of. Label maps of
certain classes misbehave.

    python painter_fake.py worker SECONDS             the worker process; a picture takes SECONDS
    python painter_fake.py paint SECONDS [OPTION ...]  `jiidm paint` with that worker
"""
import os
import sys
import time

import numpy as np

from jiidm.data.labels import CLASSES, PALETTE, colorize, resize_labels
from jiidm.painter.worker import serve
from jiidm.system.errors import InputError

SEEN = ("sky", "tree", "road", "grass", "water", "building", "mountain", "other")
WIDTH, HEIGHT, TIMES = 96, 72, 2
FAILS, CRASHES, HANGS, REFUSES = (CLASSES.index(name) for name in ("boat", "ship", "pier", "wall"))


class FakeEngine:
    """An `Engine` whose pictures are its maps."""

    def __init__(self, seconds):
        self._seconds = seconds
        self._count = 0

    def describe(self):
        return {
            "model": "fake", "weights": "none", "background": CLASSES.index("sky"), "strength": 0.6, "rounds": 2,
            "color_by_class": True,
            "classes": [{"index": i, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*PALETTE[i]),
                         "seen": name in SEEN} for i, name in enumerate(CLASSES)],
            "picture": {"width": WIDTH, "height": HEIGHT},
            "canvas": {"width": WIDTH * TIMES, "height": HEIGHT * TIMES},
            "samplers": {"preview": "fake", "full": "fake"},
        }

    def warm_up(self, say):
        say("warming up")

    def paint(self, labels, style, style_labels, settings, emit):
        self._count += 1
        first = labels[0, 0]
        if first == FAILS:
            raise RuntimeError("the fake engine was asked to fail")
        if first == REFUSES:
            raise InputError("label map: refused by the fake engine")
        if first == CRASHES:
            os._exit(3)
        if first == HANGS:
            time.sleep(3600)
        steps = 4 if settings.quality == "preview" else 12
        picture = colorize(resize_labels(labels, WIDTH, HEIGHT))
        for done in range(1, steps + 1):
            time.sleep(self._seconds / 12)
            emit({"event": "progress", "done": done, "steps": steps})
            if done == steps // 2:
                emit({"event": "preview", "picture": picture[::4, ::4]})
        if settings.size == "mask":
            picture = colorize(labels)
        by_class = settings.color_by_class
        if by_class:
            by_class = "predicted" if style_labels is None else np.unique(style_labels).tolist()
        emit({"event": "result", "picture": picture, "seconds": self._seconds, "count": self._count,
              "by_class": by_class})

    def segment(self, photo, width, height):
        labels = np.full((height, width), CLASSES.index("grass"), np.uint8)
        labels[photo[..., 2].astype(int) > photo[..., 1]] = CLASSES.index("sky")
        return labels


def run_paint(seconds):
    """Runs `jiidm paint` with the fake worker."""
    import jiidm.painter.jobs as jobs
    from jiidm.commands.main import run

    jobs.worker_command = lambda *_: [sys.executable, __file__, "worker", seconds]
    run("paint")


if __name__ == "__main__":
    mode, seconds = sys.argv[1:3]
    if mode == "worker":
        serve(lambda: FakeEngine(float(seconds)))
    else:
        del sys.argv[1:3]
        run_paint(seconds)
