"""The measures: mask accuracy, IoU, style, Frechet distance, the contest's score, and bootstrap intervals.

No network runs here: pictures, label maps and features come as arrays.
"""
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from scipy import linalg

from jiidm.data.labels import NO_CLASS
from jiidm.system.errors import InputError

FEW_SAMPLES = 2048  # features of the Inception network; below it the covariance has no full rank
BIASED = (f"a Frechet distance from fewer than {FEW_SAMPLES} is biased upwards: compare it only with one from as many "
          f"pictures")
BINS = 8  # of a colour histogram, in each channel
STYLE_PROTOCOL = (f"cv2.compareHist HISTCMP_CORREL, {BINS}x{BINS}x{BINS} joint bins, RGB, counts (any linear "
                  f"normalisation is the same)")
SCORE_WEIGHTS = {"aesthetic": 0.2, "style": 0.3, "fid": 0.5}


# ---------------------------------------------------------------------------------------------------------- label maps

def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by class and prediction.

    Args:
        labels: H x W integers; pixels of NO_CLASS are left out.
        predicted: H x W integers.
        num_classes: of both.

    Returns:
        num_classes x num_classes int64; entry (t, p) counts the pixels of class t that were predicted as p.
    """
    known = labels != NO_CLASS
    pairs = labels[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mask_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns mean(gt == predicted) over the pixels of a `confusion` matrix, or a stack of them; NaN without pixels."""
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class of a `confusion` matrix, or a stack of them.

    NaN where neither label map nor prediction has the class.
    """
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _ratio(hit, matrix.sum(-1) + matrix.sum(-2) - hit)


def mean_iou(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean of `class_iou` over the classes that label map or prediction has."""
    iou = class_iou(matrix)
    present = np.isfinite(iou)
    return _ratio(np.where(present, iou, 0).sum(-1), present.sum(-1))


def _ratio(part, whole):
    """part / whole; NaN where there is no whole."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)[()]


# --------------------------------------------------------------------------------------------------------------- style

def color_histogram(picture: np.ndarray) -> np.ndarray:
    """Returns the joint RGB histogram of H x W x 3 uint8, flat: BINS^3 float32 counts."""
    histogram = cv2.calcHist([np.ascontiguousarray(picture)], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return histogram.ravel()  # of three dimensions cv2.compareHist would take the last for channels


def style_correlation(result: np.ndarray, reference: np.ndarray) -> float:
    """Returns the correlation, -1 to 1, of the colour histograms of two pictures, the contest's measure of style.

    It does not change when a histogram is scaled, so the pictures may have any two sizes.

    Args:
        result, reference: H x W x 3 uint8 RGB.
    """
    return float(cv2.compareHist(color_histogram(result), color_histogram(reference), cv2.HISTCMP_CORREL))


def lab_distances(result: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Returns the Euclidean distances of the LAB channels' means and of their standard deviations, in CIELAB units.

    LAB is OpenCV's in float: L 0..100, a and b about -127..127.

    Args:
        result, reference: H x W x 3 uint8 RGB.
    """
    statistics = []
    for picture in (result, reference):
        lab = cv2.cvtColor(np.ascontiguousarray(picture).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        statistics.append([values.ravel() for values in cv2.meanStdDev(lab)])
    mean, std = (float(np.linalg.norm(a - b)) for a, b in zip(*statistics, strict=True))
    return mean, std


# ---------------------------------------------------------------------------------------------------- Frechet distance

class FeatureStatistics(NamedTuple):
    """Of the features of `count` pictures: mean (D) and sample covariance (D x D), both float64."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def feature_statistics(features: np.ndarray, name: object = "pictures") -> FeatureStatistics:
    """Returns the `FeatureStatistics` of N x D features.

    Below 2048 rows it warns: a Frechet distance is mostly the noise of its sample then.

    Args:
        features: N x D.
        name: what messages call the pictures.

    Raises:
        InputError: there are fewer than 2 rows.
    """
    features = np.asarray(features, np.float64)
    count = len(features)
    if count < 2:
        raise InputError(f"{name}: {count} picture; a Frechet distance needs 2 at least, thousands to mean something")
    warn_of_few(count, name)
    return FeatureStatistics(features.mean(0), np.cov(features, rowvar=False).reshape(2 * (features.shape[1],)), count)


def warn_of_few(count: int, name: object) -> None:
    """Warns where a Frechet distance is from fewer than 2048 pictures."""
    if count < FEW_SAMPLES:
        warnings.warn(f"{name}: {count} pictures; {BIASED}", stacklevel=3)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Returns |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root equals that of the symmetric (R C1 R)^(1/2) with R = C2^(1/2). Its eigenvalues are real, also
    for covariances without full rank.
    """
    root = symmetric_root(second.covariance)
    inner = linalg.eigvalsh(root @ first.covariance @ root)
    trace = np.sqrt(np.clip(inner, 0, None)).sum()
    apart = first.mean - second.mean
    distance = apart @ apart + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace
    return max(0.0, float(distance))  # rounding can take the distance of a set to itself below 0


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Returns the positive root of a symmetric D x D matrix without negative eigenvalues."""
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


class FrechetTo:
    """Frechet distances of many resamples of features to the same statistics.

    The trace of the root is the sum of the singular values of (centred sample) C2^(1/2). The product with the root is
    computed once, so a resample costs the eigenvalues of a matrix of min(N, D) rows.

    Args:
        features: N x D.
        statistics: what the distances are to.
    """

    def __init__(self, features: np.ndarray, statistics: FeatureStatistics):
        self.features = np.asarray(features, np.float64)
        self.projected = self.features @ symmetric_root(statistics.covariance)
        self.statistics = statistics

    def distance(self, indices: np.ndarray) -> float:
        """Returns the distance of the rows `indices`, which may repeat."""
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
    """Computes A = accuracy * (0.2 aesthetic + 0.3 (style / 2 + 1/2) + 0.5 (100 - min(FID, 100)) / 100).

    Numbers or arrays of one shape. A term that is None is left out, and the other weights are divided by their sum.

    Args:
        accuracy: mask accuracy, 0..1.
        style: style correlation, -1..1.
        fid: FID.
        aesthetic: 0..1.

    Returns:
        (score, names of the terms it has); (None, ()) without any.
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


def score_formula(used: Iterable[str]) -> str:
    """Returns the formula of `contest_score` over the terms `used`, and what is left out, as text."""
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


def resamples(count: int, number: int, seed: int = 0) -> np.ndarray:
    """Draws `number` x `count` indices of pictures with replacement; the same for the same arguments."""
    return np.random.Generator(np.random.PCG64([seed, count, number])).integers(0, count, (number, count))


def centred(replicates: np.ndarray, value: float) -> np.ndarray:
    """Shifts the values over resamples so that their mean is the value of the sample itself.

    Pictures that are drawn twice narrow the covariance of features, and the Frechet distance of a resample is too large
    by that.
    """
    return replicates - np.mean(replicates) + value


def figure(value: float, replicates: np.ndarray) -> Figure:
    """Returns the `Figure` of a value and its values over resamples: percentiles 2.5 and 97.5 of the finite ones."""
    replicates = np.asarray(replicates, np.float64)
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates) or not np.isfinite(value):
        return Figure(float(value))
    low, high = np.percentile(replicates, (2.5, 97.5))
    return Figure(float(value), float(low), float(high))
