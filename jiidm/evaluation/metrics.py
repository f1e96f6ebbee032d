"""What a generated picture is measured by: mask accuracy, IoU, style, Frechet distance, and the contest's score.

Only numpy, OpenCV and scipy's statistics of pictures that are read already; the networks are elsewhere.
"""
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from scipy import linalg

from jiidm.data.labels import NO_CLASS
from jiidm.system.errors import InputError

FEW_SAMPLES = 2048  # features of the Inception network; below it the covariance has no full rank
BIASED = (f"a Frechet distance from fewer than {FEW_SAMPLES} is biased upwards: compare it only with one from as many "
          f"pictures")
_SPACES = {"rgb": None, "lab": cv2.COLOR_RGB2LAB, "hsv": cv2.COLOR_RGB2HSV}
_CHANNELS = ("joint", "single")
_SCALES = ("linear", "root")
SCORE_WEIGHTS = {"aesthetic": 0.2, "style": 0.3, "fid": 0.5}


# ---------------------------------------------------------------------------------------------------------- label maps

def confusion(labels, predicted, num_classes):
    """Counts pixels: entry (t, p) of the num_classes x num_classes int64 matrix has class t and was predicted as p.

    labels, predicted: H x W integers of one shape; pixels of NO_CLASS in `labels` take no part.
    """
    known = labels != NO_CLASS
    pairs = labels[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mask_accuracy(matrix):
    """mean(gt == predicted) over the pixels of a `confusion` matrix, or of each of a stack of them; NaN without any."""
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def class_iou(matrix):
    """Intersection over union of each class of a (stack of) `confusion` matrix; NaN where neither label map nor
    prediction has the class."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _ratio(hit, matrix.sum(-1) + matrix.sum(-2) - hit)


def mean_iou(matrix):
    """Mean of `class_iou` over the classes that label map or prediction has; one that both lack is left out."""
    iou = class_iou(matrix)
    present = np.isfinite(iou)
    return _ratio(np.where(present, iou, 0).sum(-1), present.sum(-1))


def _ratio(part, whole):
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)[()]


# --------------------------------------------------------------------------------------------------------------- style

@dataclass(frozen=True)
class HistogramProtocol:
    """How colour histograms are taken: `bins` for each of the three channels of `space` ("rgb", "lab" or "hsv").

    `channels` "joint" is one histogram of bins^3 cells; "single" is one a channel, whose correlations are averaged.
    The correlation does not change when a histogram is scaled or shifted, so counts, shares and min-max-normalised
    counts ("linear") are one and the same; "root" takes the square root of each count, which weighs the fullest cells
    less.
    """

    bins: int = 8
    space: str = "rgb"
    channels: str = "joint"
    scale: str = "linear"

    def __post_init__(self):
        for name, known in (("space", _SPACES), ("channels", _CHANNELS), ("scale", _SCALES)):
            if getattr(self, name) not in known:
                raise InputError(f"histogram {name} {getattr(self, name)!r}: expected {', '.join(known)}")
        if not 2 <= self.bins <= 256:
            raise InputError(f"histogram bins {self.bins}: expected 2 to 256")

    def describe(self):
        """The protocol in words."""
        shape = f"{self.bins}x{self.bins}x{self.bins} joint" if self.channels == "joint" else f"3 x {self.bins}"
        scale = "counts (any linear normalisation is the same)" if self.scale == "linear" else "roots of counts"
        return f"cv2.compareHist HISTCMP_CORREL, {shape} bins, {self.space.upper()}, {scale}"


def color_histograms(picture, protocol):
    """The histograms of H x W x 3 uint8 RGB, a list of flat float32 arrays: one of bins^3, or three of bins."""
    code = _SPACES[protocol.space]
    picture = np.ascontiguousarray(picture)
    values = picture if code is None else cv2.cvtColor(picture, code)
    ranges = [[0, 180 if protocol.space == "hsv" and i == 0 else 256] for i in range(3)]
    if protocol.channels == "joint":
        found = [cv2.calcHist([values], [0, 1, 2], None, [protocol.bins] * 3, sum(ranges, []))]
    else:
        found = [cv2.calcHist([values], [i], None, [protocol.bins], ranges[i]) for i in range(3)]
    # flat: of an array of three dimensions cv2.compareHist takes the last for channels, and can give NaN
    return [np.sqrt(h.ravel()) if protocol.scale == "root" else h.ravel() for h in found]


def style_correlation(result, reference, protocol):
    """Correlation, -1 to 1, of the colour histograms of two pictures (H x W x 3 uint8 RGB, of any two sizes)."""
    pairs = zip(color_histograms(result, protocol), color_histograms(reference, protocol), strict=True)
    return float(np.mean([cv2.compareHist(a, b, cv2.HISTCMP_CORREL) for a, b in pairs]))


def lab_distances(result, reference):
    """Euclidean distances of the LAB channels' means and of their standard deviations, two numbers in CIELAB units.

    Pictures are H x W x 3 uint8 RGB; LAB is OpenCV's in float (L 0..100, a and b about -127..127).
    """
    statistics = []
    for picture in (result, reference):
        lab = cv2.cvtColor(np.ascontiguousarray(picture).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        statistics.append([values.ravel() for values in cv2.meanStdDev(lab)])
    return tuple(float(np.linalg.norm(a - b)) for a, b in zip(*statistics, strict=True))


# ---------------------------------------------------------------------------------------------------- Frechet distance

class FeatureStatistics(NamedTuple):
    """Mean (D), covariance (D x D, of the sample, divided by count - 1), both float64, and the count of pictures."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def feature_statistics(features, name="pictures"):
    """`FeatureStatistics` of N x D features in float64.

    Raises InputError below 2 rows; warns below 2048, where a Frechet distance is mostly the noise of its sample.
    """
    features = np.asarray(features, np.float64)
    count = len(features)
    if count < 2:
        raise InputError(f"{name}: {count} picture; a Frechet distance needs 2 at least, thousands to mean something")
    warn_of_few(count, name)
    return FeatureStatistics(features.mean(0), np.cov(features, rowvar=False).reshape(2 * (features.shape[1],)), count)


def warn_of_few(count, name):
    """Warns where a Frechet distance is from fewer than 2048 pictures."""
    if count < FEW_SAMPLES:
        warnings.warn(f"{name}: {count} pictures; {BIASED}", stacklevel=3)


def frechet_distance(first, second):
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two `FeatureStatistics`, in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root is that of the symmetric (R C1 R)^(1/2) with R = C2^(1/2), from eigenvalues: real for
    covariances without full rank too.
    """
    root = symmetric_root(second.covariance)
    inner = linalg.eigvalsh(root @ first.covariance @ root)
    trace = np.sqrt(np.clip(inner, 0, None)).sum()
    apart = first.mean - second.mean
    distance = apart @ apart + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace
    return max(0.0, float(distance))  # rounding can take the distance of a set to itself below 0


def symmetric_root(matrix):
    """The positive root of a symmetric D x D matrix without negative eigenvalues."""
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


class FrechetTo:
    """Frechet distances of many resamples of N x D features to one `FeatureStatistics`.

    The trace of the root is the sum of the singular values of (centred sample) C2^(1/2): with the product with the root
    made once, a resample costs the eigenvalues of a matrix of min(N, D) rows.
    """

    def __init__(self, features, statistics):
        self.features = np.asarray(features, np.float64)
        self.projected = self.features @ symmetric_root(statistics.covariance)
        self.statistics = statistics

    def distance(self, indices):
        """The distance of the rows `indices` (with repeats) of the features."""
        sample, projected, count = self.features[indices], self.projected[indices], len(indices)
        mean = sample.mean(0)
        apart = mean - self.statistics.mean
        own = ((sample - mean) ** 2).sum() / (count - 1)
        projected = projected - projected.mean(0)
        gram = projected @ projected.T if count <= projected.shape[1] else projected.T @ projected
        roots = np.sqrt(np.clip(linalg.eigvalsh(gram), 0, None)).sum() / np.sqrt(count - 1)
        return float(apart @ apart + own + np.trace(self.statistics.covariance) - 2 * roots)


# ------------------------------------------------------------------------------------------------------- contest score

def contest_score(accuracy, style=None, fid=None, aesthetic=None):
    """The contest's score A = accuracy * (0.2 aesthetic + 0.3 (style / 2 + 1/2) + 0.5 (100 - min(FID, 100)) / 100).

    accuracy and aesthetic are 0..1, style -1..1; numbers or arrays of one shape. A term that is None is left out and
    the other weights are divided by their sum. Returns (score, names of the terms it is over); (None, ()) without any.
    """
    terms = {
        "aesthetic": aesthetic,
        "style": None if style is None else style * 0.5 + 0.5,
        "fid": None if fid is None else (100 - np.minimum(fid, 100)) / 100,
    }
    used = tuple(name for name, value in terms.items() if value is not None)
    if not used:
        return None, ()
    total = sum(SCORE_WEIGHTS[name] for name in used)
    return accuracy * sum(SCORE_WEIGHTS[name] * terms[name] for name in used) / total, used


def score_formula(used):
    """The formula of `contest_score` over the terms `used`, and what is left out, as text."""
    text = {"aesthetic": "aesthetic", "style": "(style * 0.5 + 0.5)", "fid": "(100 - min(FID, 100)) / 100"}
    full = " + ".join(f"{weight} * {text[name]}" for name, weight in SCORE_WEIGHTS.items())
    missing = [name for name in SCORE_WEIGHTS if name not in used]
    if not missing:
        return f"mask_accuracy * ({full})"
    total = sum(SCORE_WEIGHTS[name] for name in used)
    parts = " + ".join(f"{SCORE_WEIGHTS[name]} * {text[name]}" for name in used)
    return (f"mask_accuracy * ({parts}) / {total:g}; without {' and '.join(missing)}, not comparable with the full "
            f"mask_accuracy * ({full})")


# ------------------------------------------------------------------------------------------------------------ intervals

class Figure(NamedTuple):
    """A number with its 95 % bootstrap interval; `low` and `high` are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def resamples(count, number, seed=0):
    """number x count indices of pictures, drawn with replacement; the same for the same arguments."""
    return np.random.Generator(np.random.PCG64([seed, count, number])).integers(0, count, (number, count))


def centred(replicates, value):
    """Values over resamples, shifted so that their mean is the value of the sample itself.

    For what resampling biases: pictures drawn twice make the covariance of features narrower, and the Frechet distance
    of a resample is too large by that.
    """
    return replicates - np.mean(replicates) + value


def figure(value, replicates):
    """The `Figure` of a value and of its values over resamples: percentiles 2.5 and 97.5 of those that are finite."""
    replicates = np.asarray(replicates, np.float64)
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates) or not np.isfinite(value):
        return Figure(float(value))
    low, high = np.percentile(replicates, (2.5, 97.5))
    return Figure(float(value), float(low), float(high))
