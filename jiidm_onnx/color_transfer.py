"""Colour transfers in numpy: the methods of `jiidm.inference.color_transfer`, without OpenCV and scikit-image.

All take and return H x W x 3 uint8 RGB; source and reference may differ in size.
"""
from __future__ import annotations

import numpy as np

_ROTATIONS, _PASSES = 8, 3
_FAR = 35  # grey levels: how far a full transfer moves pixels on average when the reference shows another scene
_SMOOTH = 1e-3  # squared brightness: fluctuations below 3 % of the range count as smooth

# linear sRGB to XYZ over its white (D65); the cube root of LAB, a line below a bend
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_TO_XYZ /= np.array([0.950456, 1.0, 1.088754])[:, None]
_BEND, _SLOPE, _OFFSET = 0.008856, 7.787, 16 / 116
# 8-bit LAB is computed in whole numbers: bits behind the point of linear values, of weights, and of roots
_LINEAR, _WEIGHT, _ROOT = 3, 12, 15


def reinhard(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Gives `source` the mean and the std of `reference` in each channel of 8-bit LAB (Reinhard et al. 2001).

    Statistics are rounded to 2 decimals. A flat channel of the source becomes the reference's mean.
    """
    source, reference = _to_lab(source), _to_lab(reference)
    (mean, std), (new_mean, new_std) = ((np.round(x.mean((0, 1)), 2), np.round(x.std((0, 1)), 2))
                                        for x in (source, reference))
    scale = np.divide(new_std, std, out=np.zeros(3), where=std > 0)
    return _from_lab(np.clip(np.rint((source - mean) * scale + new_mean), 0, 255))


def _to_lab(picture):
    """8-bit LAB: L * 255 / 100, a + 128, b + 128; in whole numbers, which gives OpenCV's values."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    linear = np.rint(linear * (255 << _LINEAR)).astype(int)
    xyz = _shifted(linear[picture] @ np.rint(_TO_XYZ * (1 << _WEIGHT)).astype(int).T, _WEIGHT)
    values = np.arange(xyz.max() + 1) / (255 << _LINEAR)
    roots = np.rint(np.where(values < _BEND, _SLOPE * values + _OFFSET, np.cbrt(values)) * (1 << _ROOT)).astype(int)
    x, y, z = np.moveaxis(roots[xyz], 2, 0)
    one = 1 << _ROOT
    lab = np.stack([round(116 * 2.55) * y - round(16 * 2.55 * one), 500 * (x - y) + 128 * one,
                    200 * (y - z) + 128 * one], 2)
    return np.clip(_shifted(lab, _ROOT), 0, 255)


def _shifted(values, bits):
    """values / 2^bits, rounded."""
    return values + (1 << bits - 1) >> bits


def _from_lab(lab):
    """The way back, to uint8 RGB."""
    y = (lab[..., 0] / 2.55 + 16) / 116
    roots = np.stack([y + (lab[..., 1] - 128) / 500, y, y - (lab[..., 2] - 128) / 200], 2)
    xyz = np.where(roots**3 > _BEND, roots**3, (roots - _OFFSET) / _SLOPE)
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ).T, 0, 1)
    rgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(rgb * 255).astype(np.uint8)


def match_histogram(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Gives each RGB channel of `source` the histogram of `reference`."""
    result = np.empty_like(source)
    for channel in range(3):
        counts, wanted = (np.bincount(x[..., channel].ravel(), minlength=256) for x in (source, reference))
        values = np.flatnonzero(wanted)
        quantiles = np.cumsum(wanted[values]) / wanted.sum()
        table = np.interp(np.cumsum(counts) / counts.sum(), quantiles, values)
        result[..., channel] = table[source[..., channel]]
    return result


def transport(source: np.ndarray, reference: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Gives `source` the joint colour distribution of `reference` (Pitie et al. 2007), smoothed by a guided filter.

    Args:
        source, reference: the pictures.
        share: weight of the reference's colours in the target distribution, 0 to 1.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    rotations = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(_ROTATIONS)]
    target = reference.astype(np.float64).reshape(-1, 3)
    curves = [_target_curves(rotation, target, np.ones(len(target))) for rotation in rotations]
    if share < 1:
        mixture = _mix_colors(source, target, curves, share)
        curves = [_target_curves(rotation, *mixture) for rotation in rotations]
    result, guide = source, source.mean(2) / 255
    for _ in range(_PASSES):
        colors, places, counts = _distinct_colors(result)
        moved = _match_colors(colors.astype(np.float64), counts, curves)[places].reshape(source.shape)
        result = np.clip(np.rint(source + _filter_guided(guide, moved - source)), 0, 255).astype(np.uint8)
    return result


def _mix_colors(source, target, curves, share):
    """A target between both pictures: colours (M x 3) and their weights; colours too far off get less of the share."""
    colors, _, counts = _distinct_colors(source)
    colors = colors.astype(np.float64)
    moves = ((_match_colors(colors, counts, curves) - colors) ** 2).sum(1)
    share = share ** min(np.sqrt(np.average(moves, weights=counts)) / _FAR, 2.0)
    weights = _count_near(target) ** (1 - share)
    weights = np.append(weights * (share / weights.sum()), counts * ((1 - share) / counts.sum()))
    return np.concatenate([target, colors]), weights


def _count_near(colors):
    """For each of M x 3 colours, how many of them lie in its cell of RGB, 16 levels a side."""
    cells = (colors.astype(np.intp) >> 4) @ np.array([256, 16, 1])
    return np.bincount(cells)[cells]


def _distinct_colors(picture):
    """The distinct colours (K x 3) of a picture, the index of each pixel's colour, and the pixels of each colour."""
    codes = picture.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    codes, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1), places.ravel(), counts


def _target_curves(rotation, colors, weights):
    """The rotation, and for each rotated coordinate the cumulated weight and weighted value, over the whole weight."""
    curves, total = [], weights.sum()
    for values in (colors @ rotation).T:
        order = _order(values)
        curves.append([np.append(0.0, np.cumsum(x)) / total for x in (weights[order], (weights * values)[order])])
    return rotation, curves


def _match_colors(colors, counts, targets):
    """K x 3 colours, of `counts` pixels each, matched in each of the rotations (`_target_curves`) in turn."""
    fractions = counts / counts.sum()
    for rotation, curves in targets:
        rotated = colors @ rotation
        for axis, (marks, areas) in enumerate(curves):
            order = _order(rotated[:, axis])
            # a colour takes the slice of the target at its own place in the order: it becomes the slice's mean
            ends = np.append(0.0, np.cumsum(fractions[order]))
            rotated[order, axis] = np.diff(np.interp(ends, marks, areas)) / fractions[order]
        colors = rotated @ rotation.T
    return colors


def _order(values):
    """The order of values, up to a 65536th of their range: numpy sorts 16 bits several times as fast as floats."""
    low, high = values.min(), values.max()
    return np.argsort(((values - low) * (65535 / ((high - low) or 1))).astype(np.uint16), kind="stable")


def _filter_guided(guide, values):
    """Guided filter (He et al. 2013) of H x W x 3 `values`, with the guide H x W, 0..1; its window is a 36th."""
    reach = max(1, round(min(guide.shape) / 36))
    centre, level = _box_mean(guide, reach), _box_mean(values, reach)
    slope = np.stack([_box_mean(guide * values[..., c], reach) - centre * level[..., c] for c in range(3)], 2)
    slope /= (_box_mean(guide * guide, reach) - centre * centre + _SMOOTH)[..., None]
    return _box_mean(slope, reach) * guide[..., None] + _box_mean(level - slope * centre[..., None], reach)


def _box_mean(x, reach):
    """The mean over `reach` pixels each way, the edge repeated; along rows, then columns."""
    for axis in (0, 1):
        edges = [(0, 0)] * x.ndim
        edges[axis] = (reach, reach)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, edges, "edge"), 2 * reach + 1, axis)
        x = windows.mean(-1)
    return x


METHODS = {"reinhard": reinhard, "histogram": match_histogram, "transport": transport}


def transfer_color(source: np.ndarray, reference: np.ndarray, method: str, share: float = 1.0) -> np.ndarray:
    """Gives `source` the colours of `reference` by one of METHODS, wholly or in part (`share`, 0 to 1)."""
    if method == "transport" and 0 < share < 1:
        share = np.sqrt(share)  # one root of the share in the target, the other in the change
        result = transport(source, reference, share)
    else:
        result = METHODS[method](source, reference)
    if share == 1:
        return result
    return np.rint(source + share * (result.astype(np.float64) - source)).astype(np.uint8)
