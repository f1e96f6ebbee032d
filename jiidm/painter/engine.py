"""What turns a label map and a style into pictures for the painter."""
import dataclasses
import functools
import time

import numpy as np

from jiidm.data.colors import hex_of
from jiidm.system.errors import InputError

_PREVIEW_STEPS = 6
_PREVIEW_TRANSFER = "reinhard"  # 1 ms where optimal transport takes longer than all steps
_LEAST_CANVAS = 512  # pixels a row of the drawing, at least
_PREVIEW_INTERVAL = 0.1  # seconds between previews of one picture, at least


class Cancelled(Exception):
    """Raised by `emit`: nobody wants the picture any more."""


class Engine:
    """Makes pictures by a `jiidm.generator.Generator`. The painter knows nothing else of the model."""

    def __init__(self, weights="default", device="auto"):
        """Loads the generator: `weights` and `device` as in `Generator.from_checkpoint`."""
        for kind in (np.float32, np.float64):
            np.finfo(kind)  # numpy looks at subnormal numbers once, and warns where Jittor flushes them to zero
        from jiidm.generator import Generator

        self._generator = Generator.from_checkpoint(weights, device)
        self._recipe = self._generator.config.inference
        self._segmented = (b"", None)  # the last style without a label map, and what the segmenter says of it

    def describe(self):
        """Returns what GET /api/model says of the model, as a dict for JSON."""
        generator, vocabulary = self._generator, self._generator.vocabulary
        seen = vocabulary.seen_names
        width, height = generator.width, generator.height
        times = -(-_LEAST_CANVAS // width)
        return {
            "model": generator.model,
            "weights": generator.describe(),
            "classes": [
                {"index": index, "name": name, "color": hex_of(color), "seen": name in seen}
                for index, (name, color) in enumerate(zip(vocabulary.names, vocabulary.table.palette, strict=True))
            ],
            "background": self._label("sky"),
            "picture": {"width": width, "height": height},
            "canvas": {"width": times * width, "height": times * height},
            "strength": self._recipe.rounds[0].start / _chain(self._recipe.rounds[0]),
            "rounds": len(self._recipe.rounds),
            "color_by_class": True,
            "samplers": {"preview": f"dpmpp, {_PREVIEW_STEPS} steps", "full": self._recipe.sampler},
        }

    def _label(self, name):
        """The label of a class; that of the first one where the weights have no such class."""
        names = self._generator.vocabulary.names
        return names.index(name) if name in names else 0

    def paint(self, labels, style, style_labels, settings, emit):
        """Makes one picture.

        Args:
            labels: H x W uint8, the label map.
            style: H x W x 3 uint8 RGB, the style photo.
            style_labels: H x W uint8, its label map, or None.
            settings: a `jiidm.data.project.Settings`.
            emit: is called with an event at each step: {"event": "progress", "done", "steps"}, {"event": "preview",
                "picture"} and last {"event": "result", "picture", "seconds"}; pictures are H x W x 3 uint8. It raises
                `Cancelled` to end the work.
        """
        begin = time.monotonic()
        rounds = [dataclasses.asdict(r) for r in self._recipe.rounds]
        if settings.strength is not None:
            count = _chain(self._recipe.rounds[0])
            rounds[0]["start"] = min(count - 1, max(1, round(settings.strength * count)))
        recipe = {"rounds": rounds}
        if settings.quality == "preview":
            recipe = {"rounds": rounds[:1], "sampler": "dpmpp", "steps": _PREVIEW_STEPS}
            if self._recipe.final_color_transfer:
                recipe["final_color_transfer"] = _PREVIEW_TRANSFER
        by_class = self._recipe.color_by_class if settings.color_by_class is None else settings.color_by_class
        recipe["color_by_class"] = by_class
        if not by_class:
            style_labels = None
        elif style_labels is None:
            style_labels = self._segment_style(style)
        done = [0] * len(recipe["rounds"])
        steps = [0] * len(recipe["rounds"])
        previewed = begin

        def on_step(step):
            nonlocal previewed
            done[step.round], steps[step.round] = step.done, step.steps
            whole = sum(steps) * len(steps) // max(1, sum(s > 0 for s in steps))
            emit({"event": "progress", "done": sum(done), "steps": whole})
            last = step.round == len(steps) - 1 and step.done == step.steps
            if step.pictures is not None and not last:
                emit({"event": "preview", "picture": np.asarray(step.pictures[0])})
            elif step.pictures is None and step.round == 0 and time.monotonic() > previewed + _PREVIEW_INTERVAL:
                previewed = time.monotonic()
                emit({"event": "preview", "picture": np.asarray(step.preview()[0])})

        picture = self._generator.infer(labels, style, recipe=recipe, seed=settings.seed, size=settings.size,
                                        on_step=on_step, style_labels=style_labels)
        emit({"event": "result", "picture": np.asarray(picture), "seconds": round(time.monotonic() - begin, 3)})

    def _segment_style(self, style):
        """The label map of a style photo; the last one is remembered, since previews of one style follow each other."""
        key = style.tobytes()
        if key != self._segmented[0]:
            self._segmented = key, self.segment(style, style.shape[1], style.shape[0])
        return self._segmented[1]

    def segment(self, photo, width, height):
        """Returns the label map, height x width uint8, of a photo, H x W x 3 uint8, cropped to that aspect."""
        from jiidm.data.pictures import centre_crop

        photo = np.ascontiguousarray(centre_crop(photo, width, height))
        return self._segmenter.segment(photo, (height, width)).labels

    @functools.cached_property
    def _segmenter(self):
        """The default segmenter for photos, with no classes but those that the weights have seen."""
        from jiidm.evaluation.segment import open_segmenter

        return open_segmenter().for_weights(self._generator.vocabulary)

    def warm_up(self, say):
        """Runs each part once, so that the first request does not wait for a compiler; `say` takes lines of text."""
        from jiidm.data.project import Settings

        size = self._generator.height, self._generator.width
        labels = np.full(size, self._label("sky"), np.uint8)
        labels[size[0] // 2:] = self._label("grass")
        style = np.full((*size, 3), 128, np.uint8)
        for number, quality in enumerate(("preview", "full")):
            say(f"warming up ({number + 1}/3): {quality} picture")
            self.paint(labels, style, labels, Settings(quality=quality, color_by_class=True), lambda event: None)
        say("warming up (3/3): segmenter for photos")
        try:
            self.segment(style, *size[::-1])
        except InputError as error:  # weights of other classes than the segmenter's: all but photos works
            say(f"no label maps of photos: {error}")


def _chain(settings):
    """How many steps the respaced chain of a round has."""
    return int(settings.respacing.removeprefix("ddim"))
