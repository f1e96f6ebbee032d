"""Label maps of photos: by the package's small segmenter, by the judge's network, or by a segmenter of one's own."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jiidm.checkpoint import open_tensors
from jiidm.data.classes import CONTEST, ClassTable
from jiidm.data.vocabulary import Vocabulary
from jiidm.evaluation import judge
from jiidm.evaluation.class_maps import class_map, merge_outputs
from jiidm.evaluation.features import segmenter_logits
from jiidm.evaluation.weights import load_segmenter
from jiidm.foreign.archive import open_weights
from jiidm.foreign.efficientnet import efficientnet_installed
from jiidm.system.errors import InputError

NAMED = ("judge", "small")  # segmenters that come with the package


class Segmentation(NamedTuple):
    """The label map of a photo.

    Args:
        labels: H x W uint8, the class of each pixel.
        confidence: H x W float32, the probability of that class, 0..1.
    """

    labels: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class PhotoSegmenter:
    """What finds the classes in photos of any size.

    Args:
        name: "judge", "small" or the path of a file.
        about: the network in words.
        logits: H x W x 3 uint8 RGB -> outputs, h, w float32, of the whole photo.
        classes: the class of each output; several may mean one.
        table: names and colours of the classes.
    """

    name: str
    about: str
    logits: Callable[[np.ndarray], np.ndarray]
    classes: tuple[int, ...]
    table: ClassTable = CONTEST

    def segment(self, photo: np.ndarray, size: tuple[int, int] | None = None) -> Segmentation:
        """Finds the class of each pixel.

        Args:
            photo: H x W x 3 uint8 RGB.
            size: (height, width) of the result. None: the photo's.
        """
        logits, classes = merge_outputs(self.logits(photo)[None], self.classes)
        return Segmentation(*class_map(logits[0], size or photo.shape[:2], classes, with_confidence=True))

    def for_weights(self, vocabulary: Vocabulary) -> PhotoSegmenter:
        """Returns the segmenter whose label maps have the classes of other weights, and no classes that these have not
        seen: such a class is counted as what may stand in for it (`nearest` in its table), or left out.

        Raises InputError where no class is left.
        """
        seen, nearest = vocabulary.seen_names, {c.name: (c.name, *c.nearest) for c in self.table.classes}
        stand_ins = [next((name for name in nearest[self.table.names[c]] if name in seen), None) for c in self.classes]
        kept = [place for place, name in enumerate(stand_ins) if name]
        if not kept:
            raise InputError(f"segmenter {self.name}: it knows none of the weights' classes {', '.join(seen)}; give "
                             f"label maps")
        logits = self.logits
        return replace(self, table=vocabulary.table, logits=lambda photo: logits(photo)[kept],
                       classes=tuple(vocabulary.names.index(stand_ins[place]) for place in kept))


def open_segmenter(name: str | os.PathLike | None = None,
                   classes: str | os.PathLike | Mapping[int, int] | None = None) -> PhotoSegmenter:
    """Loads a segmenter for photos.

    Args:
        name: "judge" (better; needs the extra `judge`), "small", or the path of a segmenter of jiidm, a judge's head or
            public weights of SegFormer. None: "judge" where its extra is installed, else "small".
        classes: for public weights, as for `load_segmenter`.

    Raises:
        InputError: the extra is not installed, or the file is none of these.
    """
    name = name or ("judge" if efficientnet_installed(judge.JudgeConfig().variant) else "small")
    if name == "judge" or classes is None and name not in NAMED and _is_judge(name):
        return _of_judge(os.fspath(name), judge.load_judge(None if name == "judge" else name))
    evaluator = load_segmenter(None if name == "small" else name, classes)
    network = evaluator.network
    outputs = evaluator.classes or tuple(range(network.config.num_classes))
    known = evaluator.known.classes if evaluator.known else outputs
    about = f"SegFormer for {network.config.width}x{network.config.height}, {len(set(known))} classes"
    return PhotoSegmenter(os.fspath(name), about, lambda photo: segmenter_logits(evaluator, [photo])[0], outputs,
                          evaluator.vocabulary.table)


def _is_judge(path):
    """Whether a file is the head of a judge."""
    weights = open_weights(path)
    return weights.native and open_tensors(Path(path))[1].get("kind") == judge.KIND


def _of_judge(name, network):
    """The `PhotoSegmenter` of a `Judge`, without its output for destroyed pictures."""
    kept = [place for place, c in enumerate(network.classes) if c != judge.NOTHING]
    about = (f"EfficientNet-{network.config.variant} with a head for {network.config.picture_width}x"
             f"{network.config.picture_height}, {len(kept)} classes")
    return PhotoSegmenter(name, about, lambda photo: network.logits([photo])[0][0, kept],
                          tuple(network.classes[place] for place in kept))
