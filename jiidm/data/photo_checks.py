"""What somebody should look at in training photos: near copies, plain frames, grey pictures, odd sizes."""
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_SIDE, _FREQUENCIES = 32, 12
_COPY = 0.16  # of the bits; of 1,400 landscapes the nearest two differ by 0.25, re-encoded and resized copies by 0.08
_BLOCK = 1024  # fingerprints compared at a time with all others
_PLAIN = 12  # grey levels in a picture of one colour, and between the two sides of a frame
_ROW = 6  # mean distance of a plain row from the frame's colour: a JPEG's rings at the edge are less
_EDGE = 15  # mean distance two rows further inside, at least
_GREY = 2.5  # mean distance of the channels, in grey levels
_LEAST_KEPT = 0.4  # of a photo by the crop
_LEAST_FRAME = 0.01  # of the height or the width


def look_at(photo: np.ndarray, width: int, height: int) -> Iterator[tuple[str, str]]:
    """Yields (kind, text) of what is odd about a photo.

    Args:
        photo: H x W x 3 uint8 RGB.
        width, height: of the training's pictures, in pixels.
    """
    rows, columns = photo.shape[:2]
    if 2 * columns < width or 2 * rows < height:
        yield "tiny", f"{columns}x{rows}, less than half of {width}x{height}"
    kept = min(columns * height / (rows * width), rows * width / (columns * height))
    if kept < _LEAST_KEPT:
        yield "aspect", f"{columns}x{rows}, of which a crop to {width}:{height} keeps {100 * kept:.0f} %"
    small = cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA)
    if np.ptp(small.reshape(-1, 3), 0).max() <= _PLAIN:
        yield "frame", "one colour all over"
        return
    frame = [f"{one} and {other} pixels {where}" for axis, where in ((0, "above and below"), (1, "left and right"))
             if (borders := _borders(photo.swapaxes(0, axis))) for one, other in [borders]]
    if frame:
        yield "frame", f"a plain frame of {', '.join(frame)}"
    if np.ptp(small.astype(int), 2).mean() < _GREY:
        yield "grey", "without colour"


def _borders(photo):
    """How many plain rows of one colour there are above and below; None unless there is a frame on both sides."""
    first, last = photo[0].mean(0), photo[-1].mean(0)
    if np.abs(first - last).max() > _PLAIN:
        return None
    sizes = []
    for rows, color in ((photo, first), (photo[::-1], last)):
        size = next((place for place, row in enumerate(rows) if np.abs(row - color).mean() > _ROW), len(rows))
        if np.abs(rows[min(size + 2, len(rows) - 1)] - color).mean() < _EDGE:
            return None  # fades, as a dark sky does
        sizes.append(size)
    return sizes if min(sizes) >= max(2, _LEAST_FRAME * len(photo)) else None


def fingerprint(photo: np.ndarray) -> np.ndarray | None:
    """Returns a perceptual hash: which low frequencies of the grey picture are above their median.

    Args:
        photo: H x W x 3 uint8 RGB.

    Returns:
        143 numbers -1 or 1, int8; None for a picture of one colour, which has none.
    """
    grey = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if np.ptp(grey) <= _PLAIN:
        return None
    values = cv2.dct(grey.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    return np.where(values > np.median(values), 1, -1).astype(np.int8)


def near_copies(names: Sequence[Path], fingerprints: Sequence[np.ndarray]) -> Iterator[list[Path]]:
    """Yields the groups of photos whose fingerprints differ in few bits, each sorted.

    Args:
        names: of the photos.
        fingerprints: one for each.
    """
    if not names:
        return
    bits = np.stack(fingerprints).astype(np.float32)
    ones, others = [], []
    for start in range(0, len(bits), _BLOCK):
        differ = (bits.shape[1] - bits[start:start + _BLOCK] @ bits.T) / 2
        one, other = np.nonzero(differ <= _COPY * bits.shape[1])
        ones.append(one + start), others.append(other)
    one, other = np.concatenate(ones), np.concatenate(others)
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), (len(bits), len(bits)))
    count, group = connected_components(graph, directed=False)
    sizes = np.bincount(group, minlength=count)
    for number in np.flatnonzero(sizes > 1):
        yield sorted(names[place] for place in np.flatnonzero(group == number))
