"""The paper's colour transfer: before a refinement round the previous result takes on the style reference's colours."""
import cv2
import numpy as np
from skimage.exposure import match_histograms

from jiidm.files import InputError


def reinhard(source, reference):
    """Gives `source` the mean and the standard deviation of `reference` in each LAB channel (Reinhard et al. 2001).

    source, reference: H x W x 3 uint8 RGB, of any two sizes. Returns a new array of the source's shape and type.
    As in the authors' release: OpenCV's 8-bit LAB, statistics rounded to 2 decimals, the result rounded and clipped. A
    channel of the source that is flat (deviation 0.00) becomes the reference's mean.
    """
    source, reference = (cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2LAB) for x in (source, reference))
    mean, deviation = _statistics(source)
    new_mean, new_deviation = _statistics(reference)
    scale = np.divide(new_deviation, deviation, out=np.zeros(3), where=deviation > 0)
    # a channel has 256 values, a picture many more pixels: the transfer of each value, then a look-up
    table = np.clip(np.rint((np.arange(256)[:, None] - mean) * scale + new_mean), 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(source, table[None]), cv2.COLOR_LAB2RGB)


def _statistics(picture):
    """Returns mean and standard deviation of each channel of H x W x 3 uint8, rounded to 2 decimals."""
    return tuple(np.round(values.ravel(), 2) for values in cv2.meanStdDev(picture))


def match_histogram(source, reference):
    """Gives each RGB channel of `source` the histogram of `reference`; shapes and types as in `reinhard`."""
    return match_histograms(source, reference, channel_axis=-1).astype(np.uint8, copy=False)


METHODS = {"reinhard": reinhard, "histogram": match_histogram}


def transfer_color(source, reference, method):
    """Gives `source` the colours of `reference` by a method of METHODS, named as there.

    source, reference: H x W x 3 uint8 RGB, of any two sizes. Returns a new array of the source's shape and type.
    Raises InputError for a method that does not exist.
    """
    if method not in METHODS:
        raise InputError(f"colour transfer {method!r}: no such method; expected {' or '.join(METHODS)}")
    return METHODS[method](source, reference)
