"""Colour transfer: a picture takes on the style reference's colours.

The paper's, before each refinement round, is `reinhard`; the others come nearer to the reference's colours.
"""
import cv2
import numpy as np
from skimage.exposure import match_histograms

from jiidm.config import COLOR_TRANSFERS
from jiidm.system.errors import InputError

# style correlation of photos with references on 72 pairs: 0.91 after one pass, 0.96 after two, 0.973 after three, 0.979
# after four; with 4 rotations 0.96 after three
_ROTATIONS, _PASSES = 8, 3
_FAR = 35  # levels: about what a whole transfer moves the pixels of a picture with a reference of another scene
_SMOOTH = 1e-3  # squared brightness: fluctuations below 3 % of the range count as smooth


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


def transport(source, reference, share=1.0):
    """Gives `source` the joint distribution of the colours of `reference`; shapes and types as in `reinhard`.

    Iterative distribution transfer (Pitie et al. 2007): in each of a fixed series of rotations of RGB the three
    coordinates are matched one by one. Equal colours stay equal: each takes the mean of its share of the wanted
    values, so that a flat picture becomes the reference's mean. What that changes then passes a guided filter (He et
    al. 2013) with the source's brightness for a guide, which keeps the source's smooth places smooth; further passes
    regain what the filter took from the distribution. Gradients of photos correlate at 0.95 with those of the result,
    at 0.81 without the filter.

    share, 0 to 1: below 1 the colours wanted are a mixture of the reference's and the source's own. The share is that
    of a reference as far as another scene's usually is; of nearer ones the mixture has more, of farther ones less.
    """
    source = np.ascontiguousarray(source)
    random = np.random.Generator(np.random.PCG64(0))
    rotations = [np.linalg.qr(random.standard_normal((3, 3)))[0] for _ in range(_ROTATIONS)]
    wanted = np.asarray(reference, np.float64).reshape(-1, 3)
    goals = [_goal(rotation, wanted, np.ones(len(wanted))) for rotation in rotations]
    if share < 1:
        mixture = _mixture(source, wanted, goals, share)
        goals = [_goal(rotation, *mixture) for rotation in rotations]
    result, guide = source, source.mean(2) / 255
    for _ in range(_PASSES):
        colors, places, counts = _distinct(result)
        moved = _matched(colors.astype(np.float64), counts, goals)[places].reshape(source.shape)
        result = np.clip(np.rint(source + _guided(guide, moved - source)), 0, 255).astype(np.uint8)
    return result


def _mixture(source, wanted, goals, share):
    """Colours (K x 3) and their weights: a share of the reference's pixels (`wanted`, whose `goals` are), the rest the
    source's own.

    The share is taken of a whole transfer that would move pixels by _FAR levels; nearer references get more of it,
    farther ones, whose colours would turn what is seen in the picture into something else, less, down to its square.
    The smaller it is, the more the reference's prevailing colours come before its rare ones.
    """
    colors, _, counts = _distinct(source)
    colors = colors.astype(np.float64)
    moves = ((_matched(colors, counts, goals) - colors) ** 2).sum(1)
    share = share ** min(np.sqrt(np.average(moves, weights=counts)) / _FAR, 2.0)
    weights = _density(wanted) ** (1 - share)
    weights = np.append(weights * (share / weights.sum()), counts * ((1 - share) / counts.sum()))
    return np.concatenate([wanted, colors]), weights


def _density(colors):
    """How many of the M x 3 colours, 0..255, lie in the same cell of RGB, 16 levels a side, as each of them."""
    cells = (colors.astype(np.intp) >> 4) @ np.array([256, 16, 1])
    return np.bincount(cells)[cells]


def _distinct(picture):
    """The distinct colours (K x 3) of H x W x 3 uint8, which of them each pixel has, and how many pixels each has."""
    codes = picture.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    codes, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1), places, counts


def _goal(rotation, colors, weights):
    """The rotation and, for each coordinate of M x 3 `colors` in it, two curves: over the weight of the colours up to a
    value, as a share of all, the sum of these colours' values."""
    curves, total = [], weights.sum()
    for values in (colors @ rotation).T:
        order = np.argsort(values)
        ends, areas = (np.append(0.0, np.cumsum(x)) / total for x in (weights[order], (weights * values)[order]))
        curves.append((ends, areas))
    return rotation, curves


def _matched(colors, counts, goals):
    """K x 3 colours, of `counts` pixels each, after the matching in each of the `goals`, made by `_goal`."""
    shares = counts / counts.sum()
    for rotation, curves in goals:
        rotated = colors @ rotation
        for axis, (marks, areas) in enumerate(curves):
            order = np.argsort(rotated[:, axis], kind="stable")
            # under the wanted values in their order: what lies between two ends is the share that one colour takes
            ends = np.append(0.0, np.cumsum(shares[order]))
            rotated[order, axis] = np.diff(np.interp(ends, marks, areas)) / shares[order]
        colors = rotated @ rotation.T
    return colors


def _guided(guide, values):
    """Guided filter of H x W x 3 `values`: linear in the H x W `guide` (0..1) within about a 36th of the picture."""
    side = 2 * max(1, round(min(guide.shape) / 36)) + 1

    def mean(x):
        return cv2.blur(x, (side, side), borderType=cv2.BORDER_REPLICATE)

    centre, level = mean(guide), mean(values)
    slope = np.stack([mean(guide * values[..., c]) - centre * level[..., c] for c in range(3)], 2)
    slope /= (mean(guide * guide) - centre * centre + _SMOOTH)[..., None]
    return mean(slope) * guide[..., None] + mean(level - slope * centre[..., None])


METHODS = dict(zip(COLOR_TRANSFERS, (reinhard, match_histogram, transport), strict=True))


def transfer_color(source, reference, method, share=1.0):
    """Gives `source` the colours of `reference` by a method of METHODS, named as there, or a share of them.

    source, reference: H x W x 3 uint8 RGB, of any two sizes; share: 0 to 1, of the change; with "transport"
    its root is the share of the reference's colours in what is wanted, and of the change to that. Returns a new array
    of the source's shape and type. Raises InputError for a method that does not exist.
    """
    if method not in METHODS:
        raise InputError(f"colour transfer {method!r}: no such method; expected {' or '.join(METHODS)}")
    if method == "transport" and 0 < share < 1:
        # half of the way by what is wanted, half by the mean: the former alone costs as much of what is seen in the
        # picture and leaves patches, the latter alone costs more
        share = np.sqrt(share)
        result = transport(source, reference, share)
    else:
        result = METHODS[method](source, reference)
    if share == 1:
        return result
    return np.rint(source + share * (result.astype(np.float64) - source)).astype(np.uint8)
