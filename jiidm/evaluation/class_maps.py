"""From logits to label maps: enlarged bilinearly, then the likeliest class of each pixel and its probability."""
from collections.abc import Sequence

import numpy as np

from jiidm.evaluation.segformer import bilinear_matrix

_BAND = 2**22  # logits at full size that are in memory at a time


def merge_outputs(logits: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Adds the probabilities of outputs that mean one class.

    Args:
        logits: N, outputs, h, w float32.
        classes: the class of each output.

    Returns:
        N, classes, h, w logits, and the classes, sorted where some were merged.
    """
    kept = tuple(sorted(set(classes)))
    if len(kept) == len(classes):
        return logits, tuple(classes)
    of = np.array(classes)
    return np.stack([np.logaddexp.reduce(logits[:, of == c], 1) for c in kept], 1), kept


def class_map(logits: np.ndarray, size: tuple[int, int], classes: Sequence[int] | None = None,
              with_confidence: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Finds the likeliest class of each pixel, in bands of rows: memory does not grow with the size.

    Args:
        logits: outputs, h, w float32 of one picture.
        size: (height, width) to which the logits are enlarged.
        classes: the class of each output. None: its index.
        with_confidence: whether to compute the confidence.

    Returns:
        The label map, height x width uint8, and the probability of each pixel's class among all, height x width
        float32; an empty array without confidence.
    """
    height, width = size
    values = np.arange(len(logits), dtype=np.uint8) if classes is None else np.asarray(classes, np.uint8)
    rows, columns = bilinear_matrix(logits.shape[1], height), bilinear_matrix(logits.shape[2], width)
    labels, confidence = np.empty(size, np.uint8), np.empty(size if with_confidence else 0, np.float32)
    step = max(1, _BAND // (len(logits) * width))
    for top in range(0, height, step):
        band = rows[top:top + step] @ logits @ columns.T
        best = band.argmax(0)
        labels[top:top + step] = values[best]
        if with_confidence:
            band -= np.take_along_axis(band, best[None], 0)
            confidence[top:top + step] = 1 / np.exp(band, out=band).sum(0)
    return labels, confidence
