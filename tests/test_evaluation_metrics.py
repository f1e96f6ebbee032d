"""The measures of the evaluation, against definitions written out and closed forms."""
import warnings

import cv2
import numpy as np
import pytest
from helpers import refused
from scipy import linalg

from jiidm.data.labels import NO_CLASS
from jiidm.evaluation.metrics import (
    Figure,
    FrechetTo,
    class_iou,
    confusion,
    contest_score,
    feature_statistics,
    figure,
    frechet_distance,
    lab_distances,
    mask_accuracy,
    mean_iou,
    resamples,
    score_formula,
    style_correlation,
)


@pytest.fixture
def random():
    return np.random.default_rng(5)


def picture(random, height=20, width=30):
    return random.integers(0, 256, (height, width, 3), np.uint8)


def test_accuracy_and_iou_by_counting(random):
    labels, predicted = random.integers(0, 4, (2, 9, 11))
    labels[0, :5] = NO_CLASS
    known = labels != NO_CLASS
    matrix = confusion(labels, predicted, 6)
    assert matrix.sum() == known.sum()
    assert mask_accuracy(matrix) == (labels == predicted)[known].mean()
    for c in range(4):
        truth, found = (labels == c) & known, (predicted == c) & known
        assert class_iou(matrix)[c] == (truth & found).sum() / (truth | found).sum()
    assert np.isnan(class_iou(matrix)[4:]).all()
    assert mean_iou(matrix) == pytest.approx(class_iou(matrix)[:4].mean())


def test_a_class_that_is_only_predicted_counts():
    matrix = confusion(np.zeros((2, 2), int), np.array([[0, 0], [0, 3]]), 5)
    assert class_iou(matrix)[3] == 0 and mean_iou(matrix) == 0.75 / 2


def test_a_label_map_without_classes_has_no_accuracy():
    matrix = confusion(np.full((2, 2), NO_CLASS), np.zeros((2, 2), int), 3)
    assert np.isnan(mask_accuracy(matrix)) and np.isnan(mean_iou(matrix))


def test_measures_of_a_stack_are_those_of_its_matrices(random):
    stack = random.integers(0, 9, (5, 4, 4))
    assert np.allclose(mask_accuracy(stack), [mask_accuracy(m) for m in stack])
    assert np.allclose(mean_iou(stack), [mean_iou(m) for m in stack])


def test_style_is_the_correlation_of_joint_histograms(random):
    first, second = picture(random), picture(random, 40, 16) // 2
    counts = [np.histogramdd(p.reshape(-1, 3), 8, [(0, 256)] * 3)[0].ravel() for p in (first, second)]
    assert style_correlation(first, second) == pytest.approx(np.corrcoef(counts)[0, 1], abs=1e-6)
    assert style_correlation(first, first) == pytest.approx(1)


def test_style_does_not_depend_on_linear_normalisation(random):
    first, second = picture(random), picture(random)
    larger = np.tile(second, (3, 1, 1))  # three times the counts
    assert style_correlation(first, larger) == pytest.approx(
        style_correlation(first, second), abs=1e-6)


def test_lab_distances(random):
    grey = np.full((4, 4, 3), 119, np.uint8)
    lab = cv2.cvtColor(np.float32([[[119 / 255] * 3, [1, 1, 1]]]), cv2.COLOR_RGB2LAB)[0]
    mean, deviation = lab_distances(grey, np.full((9, 2, 3), 255, np.uint8))
    assert mean == pytest.approx(lab[1, 0] - lab[0, 0], abs=0.02) and deviation == pytest.approx(0, abs=1e-4)
    half = grey.copy()
    half[:2] = 255
    assert lab_distances(half, grey)[1] == pytest.approx((lab[1, 0] - lab[0, 0]) / 2, abs=0.02)


@pytest.mark.filterwarnings("ignore:.*Frechet")
def test_frechet_distance_is_that_of_a_matrix_root(random):
    first, second = random.normal(0, 1, (40, 6)) @ random.normal(0, 1, (6, 6)), random.normal(1, 2, (50, 6))
    a, b = feature_statistics(first), feature_statistics(second)
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*Frechet")
@pytest.mark.parametrize("count", [5, 40])  # fewer and more pictures than features
def test_frechet_distance_of_resamples(random, count):
    features, wanted = random.normal(0, 2, (count, 12)), feature_statistics(random.normal(0, 1, (60, 12)))
    rows = random.integers(0, count, count)
    for indices in (np.arange(count), rows):
        expected = frechet_distance(feature_statistics(features[indices]), wanted)
        assert FrechetTo(features, wanted).distance(indices) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_needs_pictures(random):
    refused(lambda: feature_statistics(np.zeros((1, 3)), "RESULTS"), "RESULTS", "1 picture", "2 at least")
    with pytest.warns(UserWarning, match="2047 pictures"):
        feature_statistics(random.normal(0, 1, (2047, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feature_statistics(random.normal(0, 1, (2048, 2)))


def test_contest_score():
    whole, terms = contest_score(0.8, style=0.5, fid=30, aesthetic=0.6)
    assert whole == pytest.approx(0.8 * (0.2 * 0.6 + 0.3 * 0.75 + 0.5 * 0.7))
    assert set(terms) == {"aesthetic", "style", "fid"} and "without" not in score_formula(terms)
    assert contest_score(0.8, style=0.5, fid=500, aesthetic=0.6)[0] == pytest.approx(0.8 * (0.12 + 0.225))
    part, terms = contest_score(0.8, style=0.5, fid=30)
    assert part == pytest.approx(0.8 * (0.3 * 0.75 + 0.5 * 0.7) / 0.8) and terms == ("style", "fid")
    assert "without aesthetic" in score_formula(terms)
    assert contest_score(0.8) == (None, ())


def test_intervals_are_those_of_the_mean(random):
    values = random.normal(3, 2, 400)
    indices = resamples(400, 1000)
    assert (indices == resamples(400, 1000)).all() and (indices != resamples(400, 1000, 1)).any()
    found = figure(values.mean(), values[indices].mean(1))
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert figure(1.5, [np.nan]) == Figure(1.5)
