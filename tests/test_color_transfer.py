"""Colour transfer: the release's numbers, flat pictures, any sizes."""
import cv2
import numpy as np
import pytest
from helpers import reference, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jiidm.inference.color_transfer import METHODS, reinhard, transfer_color

PHOTOS = arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


def lab(picture):
    return cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).reshape(-1, 3)


def test_parity():
    expected = reference("color_transfer")
    result = reinhard(expected["source"], expected["reference"])
    assert np.abs(result.astype(int) - expected["result"]).max() <= 1


@pytest.mark.parametrize("method", METHODS)
@given(source=PHOTOS, style=PHOTOS)
def test_any_pictures(method, source, style):
    """Sizes down to one pixel, flat channels: a picture of the source's size, both given ones untouched."""
    before = source.copy(), style.copy()
    result = transfer_color(source, style, method)
    assert result.shape == source.shape and result.dtype == np.uint8
    assert not np.shares_memory(result, source) and not np.shares_memory(result, style)
    assert np.array_equal(source, before[0]) and np.array_equal(style, before[1])


@pytest.mark.parametrize("method", METHODS)
def test_views_are_as_good_as_copies(method):
    random = np.random.default_rng(0)
    source, style = random.integers(0, 256, (2, 20, 30, 3), np.uint8)
    view = source[::-1, ::2, ::-1]
    assert np.array_equal(transfer_color(view, style, method), transfer_color(view.copy(), style, method))


@given(color=st.tuples(*[st.integers(0, 255)] * 3), style_color=st.tuples(*[st.integers(0, 255)] * 3))
def test_single_color_becomes_the_other(color, style_color):
    """Nothing is divided by the deviation 0; what is left is the rounding of 8-bit LAB."""
    source, style = (np.full((4, 5, 3), c, np.uint8) for c in (color, style_color))
    rounded = cv2.cvtColor(cv2.cvtColor(style, cv2.COLOR_RGB2LAB), cv2.COLOR_LAB2RGB)
    assert np.array_equal(reinhard(source, style), rounded)


def test_flat_picture_becomes_the_mean():
    style = reference("color_transfer")["reference"]
    result = reinhard(np.full((8, 8, 3), 77, np.uint8), style)
    assert (result == result[0, 0]).all()
    assert np.abs(lab(result)[0] - lab(style).mean(0)).max() < 2


def test_one_flat_channel():
    """Grey pictures have no spread in A and B: these take the mean, L its statistics."""
    grey = np.repeat(np.random.default_rng(0).integers(60, 190, (16, 16, 1), np.uint8), 3, axis=2)
    style = reference("color_transfer")["reference"]
    result = lab(reinhard(grey, style)).astype(float)
    assert np.abs(result.mean(0) - lab(style).mean(0)).max() < 4


@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(*[st.integers(8, 24)] * 4))
def test_statistics_become_the_references(seed, sizes):
    """Colours far from the borders of RGB, so that nothing is clipped."""
    random = np.random.default_rng(seed)
    source = random.integers(0, 256, (*sizes[:2], 3), np.uint8)
    style = (np.full(3, 128) + random.integers(-20, 21, 3) + random.integers(-12, 13, (*sizes[2:], 3))).astype(np.uint8)
    result, wanted = lab(reinhard(source, style)), lab(style)
    assert np.abs(result.mean(0) - wanted.mean(0)).max() < 1.5
    assert np.abs(result.std(0) - wanted.std(0)).max() < 1.5


@given(source=PHOTOS, style=PHOTOS)
def test_histogram_stays_within_the_references_values(source, style):
    result = transfer_color(source, style, "histogram")
    assert (result.min((0, 1)) >= style.min((0, 1))).all() and (result.max((0, 1)) <= style.max((0, 1))).all()


@given(PHOTOS)
def test_histogram_of_itself_changes_nothing(photo):
    assert np.array_equal(transfer_color(photo, photo, "histogram"), photo)


def test_unknown_method():
    photo = np.zeros((2, 2, 3), np.uint8)
    refused(lambda: transfer_color(photo, photo, "magic"), "'magic'", *METHODS)
