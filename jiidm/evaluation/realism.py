"""How much pictures are like photographs: KID over a network's features, and sharpness."""
import cv2
import numpy as np

from jiidm.system.errors import InputError

FEWEST = 4  # pictures; two in each random half


def kernel_distance(first, second):
    """Computes KID: the unbiased squared MMD of two sets of features.

    The kernel is (x . y / D + 1)^3 (Binkowski et al. 2018, section 3). It can be below 0: that of two samples of one
    set is 0 on average. Sets of one size are taken for pairs (picture and photo of one mask), and no pair's own product
    takes part, as in Gretton et al. 2012, eq. 4: it would make them seem nearer. A set is then at 0 from itself.

    Args:
        first: N x D features of pictures.
        second: M x D features of photos.

    Raises:
        InputError: a set has fewer than 2 rows.
    """
    kernels = _kernels(first, second)
    return _unbiased(*kernels, np.ones(len(first)), np.ones(len(second)))


def kernel_distances_of_halves(first, second, number, seed=0):
    """Computes KID over random halves of both sets.

    The spread over halves, drawn without replacement, is that of the whole sets from sample to sample. Resamples with
    repeats would not do: an unbiased MMD must not meet a picture twice. Of pairs the same halves are drawn.

    Args:
        first, second: as for `kernel_distance`, at least 4 rows each.
        number: how many halves.
        seed: of the draws.

    Returns:
        `number` float64.
    """
    for features in (first, second):
        if len(features) < FEWEST:
            raise InputError(f"KID: {len(features)} pictures; an interval needs {FEWEST} at least")
    kernels, rng = _kernels(first, second), np.random.Generator(np.random.PCG64([seed, len(first), len(second)]))
    values = []
    for _ in range(number):
        one = _half(rng, len(first))
        values.append(_unbiased(*kernels, one, one if len(first) == len(second) else _half(rng, len(second))))
    return np.array(values)


def _half(rng, count):
    chosen = np.zeros(count)
    chosen[rng.permutation(count)[:count // 2]] = 1
    return chosen


def _kernels(first, second):
    """Returns the kernel's matrices within the first set, within the second, and between the two, in float64."""
    first, second = (np.asarray(features, np.float64) for features in (first, second))
    for features in (first, second):
        if len(features) < 2:
            raise InputError(f"KID: {len(features)} picture; it needs 2 at least, a hundred to mean something")
    return [(a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((first, first), (second, second), (first, second))]


def _unbiased(within_first, within_second, between, first, second):
    """Returns the unbiased MMD^2 of the rows that the indicators `first` and `second` (0 or 1 each) choose."""
    def mean(kernel, one, other, own):
        total, count = one @ kernel @ other, one.sum() * other.sum()
        if own:  # leave the diagonal out
            total, count = total - one @ np.diag(kernel), count - one.sum()
        return total / count

    pairs = len(first) == len(second)
    return float(mean(within_first, first, first, True) + mean(within_second, second, second, True)
                 - 2 * mean(between, first, second, pairs))


def sharpness(picture):
    """Computes the mean absolute Laplacian of the grey levels of H x W x 3 uint8 RGB, 0 for a flat picture.

    It depends on the size: compare pictures of one size.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())
