"""Label maps changed to look drawn by hand (after SCDM, arXiv 2402.16506)."""
import cv2
import numpy as np

from jiidm.data.labels import NO_CLASS

_MOST_SHIFT = 0.03  # of the height, for the edges
_MOST_BLUR = 0.04  # of the height: std of the filter that rounds edges and drops small regions
_LEFT_OUT = 0.1  # probability for each class of a map


def draw_by_hand(labels, rng):
    """Moves the edges of a label map, rounds them, merges small regions and leaves some classes out.

    Args:
        labels: H, W uint8.
        rng: a numpy `Generator`.

    Returns:
        H, W uint8; 255 where a class was left out.
    """
    height, width = labels.shape
    shift = rng.uniform(0, _MOST_SHIFT) * height * rng.standard_normal((2, 4, 4)).astype(np.float32)
    shift = [cv2.resize(axis, (width, height), interpolation=cv2.INTER_CUBIC) for axis in shift]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(labels, columns + shift[0], rows + shift[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    classes = np.unique(moved)
    blur = rng.uniform(0.01, _MOST_BLUR) * height
    regions = [cv2.GaussianBlur((moved == c).astype(np.float32), (0, 0), blur) for c in classes]
    drawn = classes[np.argmax(regions, 0)]
    left_out = classes[rng.random(len(classes)) < _LEFT_OUT]
    return np.where(np.isin(drawn, left_out), NO_CLASS, drawn).astype(np.uint8)
