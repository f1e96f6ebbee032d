"""A label map of a photo, by the segmenter that comes with the package."""
from __future__ import annotations

import functools

import numpy as np

from jiidm.evaluation.features import predict
from jiidm.evaluation.weights import Evaluator, load_segmenter


def segment(photo: np.ndarray, segmenter: Evaluator | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Predicts the class of each pixel of a photo.

    Args:
        photo: H x W x 3 uint8 RGB.
        segmenter: from `load_segmenter` (None: the package's own, loaded once).
        size: (height, width) of the label map (None: the photo's).

    Returns:
        The labels, height x width uint8.
    """
    return predict(segmenter or _default_segmenter(), [photo], [size or photo.shape[:2]])[0]


@functools.cache
def _default_segmenter():
    return load_segmenter()
