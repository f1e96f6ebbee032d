"""Colour transfer: the release's numbers, flat pictures, any sizes."""
import cv2
import numpy as np
import pytest
from helpers import ROOT, reference, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jiidm.data.labels import CLASSES
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.metrics import style_correlation
from jiidm.inference.color_transfer import METHODS, reinhard, transfer_color, transport

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


@given(PHOTOS)
def test_transport_of_itself_changes_nothing(photo):
    assert np.array_equal(transport(photo, photo), photo)


@given(color=st.tuples(*[st.integers(0, 255)] * 3), style=PHOTOS)
def test_transport_of_a_flat_picture_is_the_references_mean(color, style):
    result = transport(np.full((6, 7, 3), color, np.uint8), style)
    assert np.abs(result - style.mean((0, 1))).max() <= 0.5 + 1e-6


def test_transport_gives_a_ramp_the_references_ramp():
    """Both lie on a line of RGB, on which the map of one distribution to the other is known: x -> x / 2 + 100. A ramp
    is linear in itself, so that the filter leaves such a change as it is, borders apart."""
    ramp = np.repeat(np.tile(np.arange(200, dtype=np.uint8), (150, 1))[..., None], 3, 2)
    half = np.repeat(np.tile(np.arange(100, 200, dtype=np.uint8), (30, 1))[..., None], 3, 2)
    change = np.abs(transport(ramp, half).astype(float) - (ramp / 2 + 100))[:, 10:-10]
    assert change.max() < 2


def test_transport_meets_joint_colors_that_single_channels_miss():
    """Blue and yellow halves against red and cyan ones: each channel alone has one histogram, so that matching them
    changes nothing."""
    source, style = (np.zeros((40, 60, 3), np.uint8) for _ in range(2))
    source[:20], source[20:] = (0, 0, 255), (255, 255, 0)
    style[:, :30], style[:, 30:] = (255, 0, 0), (0, 255, 255)
    assert np.array_equal(transfer_color(source, style, "histogram"), source)
    result = transport(source, style).reshape(-1, 3).astype(int)
    wanted = np.array([(255, 0, 0), (0, 255, 255)])
    nearest = np.abs(result[:, None] - wanted).max(2).min(1)
    assert np.mean(nearest < 30) > 0.8 and abs(np.mean(result[:, 0] > 127) - 0.5) < 0.1


@pytest.mark.parametrize("names", [("autumn", "storm"), ("storm", "summer_night"), ("forest_path", "autumn")])
def test_transport_is_nearer_in_style_and_gentler_than_histograms(names):
    photos = ROOT / "examples" / "train" / "imgs"
    source, style = (fit_photo(read_photo(photos / f"{name}.jpg"), 192, 144) for name in names)

    def edges(picture):
        grey = picture.astype(float).mean(2)
        return np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])

    found = {}
    for method in METHODS:
        result = transfer_color(source, style, method)
        found[method] = (style_correlation(result, style),
                         np.corrcoef(edges(source), edges(result))[0, 1])
    assert found["transport"][0] > found["histogram"][0] > style_correlation(source, style)
    assert found["transport"][1] > found["histogram"][1]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "transport"])
@given(source=PHOTOS, style=PHOTOS, share=st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]))
def test_a_share_lies_between_the_picture_and_the_whole_transfer(method, source, style, share):
    whole = transfer_color(source, style, method).astype(float)
    expected = (1 - share) * source + share * whole
    assert np.abs(transfer_color(source, style, method, share) - expected).max() <= 0.5 + 1e-9


@given(source=PHOTOS, style=PHOTOS)
def test_no_share_and_the_whole_of_transport(source, style):
    assert np.array_equal(transfer_color(source, style, "transport", 0.0), source)
    assert np.array_equal(transfer_color(source, style, "transport", 1.0), transport(source, style))


@given(source=PHOTOS, style=PHOTOS, share=st.sampled_from([1e-6, 0.1, 0.5, 0.99]))
def test_a_share_of_transport_of_any_pictures(source, style, share):
    before = source.copy(), style.copy()
    result = transfer_color(source, style, "transport", share)
    assert result.shape == source.shape and result.dtype == np.uint8 and not np.shares_memory(result, source)
    assert np.array_equal(source, before[0]) and np.array_equal(style, before[1])


@pytest.mark.parametrize("names", [("autumn", "storm"), ("storm", "summer_night"), ("forest_path", "autumn")])
def test_a_share_of_transport_is_nearer_in_style_than_a_mean_of_pictures_that_changes_as_much(names):
    photos = ROOT / "examples" / "train" / "imgs"
    source, style = (fit_photo(read_photo(photos / f"{name}.jpg"), 192, 144) for name in names)
    found, whole = (transport(source, style, share) - source.astype(float) for share in (0.4, 1.0))
    blend = source + whole * np.abs(found).mean() / np.abs(whole).mean()
    of_blend, of_share = (style_correlation(np.rint(x).astype(np.uint8), style)
                          for x in (blend, source + found))
    assert of_share > of_blend + 0.02


def test_a_far_reference_gets_less_of_the_share():
    """The farther a flat reference, the smaller the part of the way to it that the same share moves a picture."""
    random = np.random.default_rng(0)
    source = random.integers(90, 110, (30, 40, 3), np.uint8)
    parts = []
    for level in (110, 120, 135):
        result = transport(source, np.full((30, 40, 3), level, np.uint8), 0.5)
        parts.append((result.mean() - source.mean()) / (level - source.mean()))
    assert parts[0] > parts[1] > parts[2] > 0


def test_unknown_method():
    photo = np.zeros((2, 2, 3), np.uint8)
    refused(lambda: transfer_color(photo, photo, "magic"), "'magic'", *METHODS)


# ---- by class

def halves(top, bottom, height=40, width=60, spread=6):
    """A picture of two noisy halves around two colours, and its label map of the classes 1 (sky) and 2 (water)."""
    rng = np.random.default_rng(0)
    labels = np.full((height, width), 1, np.uint8)
    labels[height // 2:] = 2
    picture = np.where((labels == 1)[..., None], top, bottom) + rng.integers(-spread, spread + 1, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("method", METHODS)
def test_by_class_each_region_takes_the_colors_of_its_own_class(method):
    source, labels = halves((130, 130, 130), (120, 120, 120))
    style, style_labels = halves((40, 60, 200), (210, 60, 40))
    turned, turned_labels = style[::-1], style_labels[::-1]  # the style's sky is below
    result = transfer_color(source, turned, method, 1.0, labels, turned_labels)
    inner = np.zeros_like(labels, bool)
    inner[5:15], inner[25:35] = True, True
    for label, color in ((1, (40, 60, 200)), (2, (210, 60, 40))):
        assert np.abs(result[inner & (labels == label)].mean(0) - color).max() < 8, label
    assert np.abs(result.astype(int) - transfer_color(source, turned, method)).mean() > 20


def test_by_class_seams_are_smooth():
    """A flat source has no edge at the seam: the change from one region to the other takes several rows."""
    source = np.full((72, 96, 3), 128, np.uint8)
    _, labels = halves(0, 0, 72, 96)
    style, style_labels = halves((40, 40, 40), (200, 200, 200), spread=0)
    result = transfer_color(source, style, "transport", 1.0, labels, style_labels).astype(int)
    steps = np.abs(np.diff(result[:, 48, 0]))
    assert result[0, 48, 0] == 40 and result[-1, 48, 0] == 200 and 0 < steps.max() < 80


@pytest.mark.parametrize("missing", ["class", "region too small", "no class"])
def test_by_class_what_the_style_lacks_changes_as_the_whole_picture_does(missing):
    source, labels = halves((90, 100, 110), (60, 160, 60))
    style, style_labels = halves((40, 60, 200), (210, 60, 40))
    if missing == "no class":
        labels[:] = 255
    else:
        style_labels[:] = 5
        if missing == "region too small":
            style_labels[:2, :2] = 1
    result = transfer_color(source, style, "transport", 0.4, labels, style_labels)
    assert np.array_equal(result, transfer_color(source, style, "transport", 0.4))


def test_by_class_takes_a_near_class_where_the_class_itself_is_missing():
    source, labels = halves((120, 120, 120), (130, 130, 130))
    style, style_labels = halves((40, 60, 200), (210, 60, 40))
    expected = transfer_color(source, style, "reinhard", 1.0, labels, style_labels)
    labels[labels == 2] = CLASSES.index("lake")
    assert np.array_equal(transfer_color(source, style, "reinhard", 1.0, labels, style_labels), expected)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(*[st.integers(1, 20)] * 4))
def test_by_class_any_pictures(method, seed, sizes):
    rng = np.random.default_rng(seed)
    source, style = (rng.integers(0, 256, (*size, 3), np.uint8) for size in (sizes[:2], sizes[2:]))
    maps = [rng.choice(np.array([0, 1, 2, 28, 255], np.uint8), size) for size in (sizes[:2], sizes[2:])]
    result = transfer_color(source, style, method, 0.5, *maps)
    assert result.shape == source.shape and result.dtype == np.uint8
