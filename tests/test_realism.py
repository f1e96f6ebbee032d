"""KID and sharpness: against their definitions, on sets of known distance, and with intervals that hold."""
import numpy as np
from helpers import refused
from scipy.ndimage import gaussian_filter

from jiidm.evaluation.realism import kernel_distance, kernel_distances_of_halves, sharpness


def test_kid_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 7)), rng.standard_normal((6, 7)) + 0.5
    pair = rng.standard_normal((5, 7))

    def kernel(a, b):
        return (a @ b / 7 + 1) ** 3

    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert np.isclose(kernel_distance(x, y), sum(within) - 2 * between, rtol=1e-12)
    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, pair)]
    between = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(pair) if i != j])
    assert np.isclose(kernel_distance(x, pair), sum(within) - 2 * between, rtol=1e-12)
    assert abs(kernel_distance(x, x)) < 1e-12


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(1)
    same = [kernel_distance(*rng.standard_normal((2, 40, 16))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 300 ** 0.5 and min(same) < 0
    x = rng.standard_normal((200, 16))
    values = [kernel_distance(x + shift, rng.standard_normal((200, 16))) for shift in (0.2, 0.5, 1.0)]
    assert 0 < values[0] < values[1] < values[2]


def test_halves_spread_as_samples_do():
    """The interval from one sample is as wide as the spread over fresh samples."""
    rng = np.random.default_rng(2)
    fresh = [kernel_distance(rng.standard_normal((60, 8)) + 0.4, rng.standard_normal((60, 8))) for _ in range(300)]
    halves = [kernel_distances_of_halves(rng.standard_normal((60, 8)) + 0.4, rng.standard_normal((60, 8)), 100).std()
              for _ in range(20)]
    assert 0.7 < np.mean(halves) / np.std(fresh) < 1.5


def test_the_same_arguments_give_the_same_halves():
    x, y = np.random.default_rng(3).standard_normal((2, 20, 8))
    first, same, other = (kernel_distances_of_halves(x, y, 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_too_few_pictures_are_refused():
    refused(lambda: kernel_distance(np.zeros((1, 4)), np.zeros((5, 4))), "1 picture")
    refused(lambda: kernel_distances_of_halves(np.zeros((3, 4)), np.zeros((5, 4)), 9), "3 pictures")


def test_blur_costs_sharpness():
    picture = np.random.default_rng(4).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    values = [sharpness(picture)]
    values += [sharpness(np.stack([gaussian_filter(picture[..., c], sigma) for c in range(3)], -1)) for sigma in (1, 2)]
    assert values[0] > 3 * values[1] > 6 * values[2] > 0
    assert sharpness(np.full((8, 8, 3), 77, np.uint8)) == 0
