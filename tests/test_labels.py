"""Label maps: what is read, what is refused and in which words, resizing, one-hot, colours."""
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE, colorize, read_label_map, resize_labels
from jiidm.system.errors import InputError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
LABELS = arrays(np.uint8, SIZES, elements=st.integers(0, 28))


def grey_png(path, bits, rows, width):
    """Writes a grey PNG of `bits` a pixel, by hand, since Pillow writes 1, 8 and 16 only; `rows` are packed bytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b""))
    return path


def message(path_or_array, **options):
    """The text of the InputError that reading raises; one line."""
    with pytest.raises(InputError) as caught:
        read_label_map(path_or_array, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_palette_are_those_of_the_contest():
    assert len(CLASSES) == len(set(CLASSES)) == 29
    assert [CLASSES.index(name) for name in ("mountain", "sky", "tree", "road", "other")] == [0, 1, 5, 23, 28]
    assert PALETTE.shape == (29, 3) and PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 29


@given(LABELS)
def test_png_image_and_array_give_the_same_labels(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "mask.png"
    Image.fromarray(labels).save(path)
    for source in (path, str(path), Image.open(path), Image.fromarray(labels), labels, labels.astype(np.int64)):
        read = read_label_map(source)
        assert read.dtype == np.uint8 and np.array_equal(read, labels)
        assert not np.shares_memory(read, labels)


def test_palette_png_gives_its_indices(tmp_path):
    labels = np.array([[0, 5], [28, 1]], np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putpalette([200 - value for value in range(128)] * 6)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_label_map(tmp_path / "mask.png"), labels)


@pytest.mark.parametrize("bits, row, expected", [
    (1, b"\x50", [0, 1, 0, 1]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15]),
])
def test_png_of_few_bits_gives_its_stored_values(tmp_path, bits, row, expected):
    assert read_label_map(grey_png(tmp_path / "mask.png", bits, [row], 4)).tolist() == [expected]


def test_one_pixel_is_a_label_map(tmp_path):
    Image.fromarray(np.array([[7]], np.uint8)).save(tmp_path / "mask.png")
    assert read_label_map(tmp_path / "mask.png").tolist() == [[7]]


def test_no_class_only_where_allowed():
    labels = np.array([[1, NO_CLASS]], np.uint8)
    assert read_label_map(labels, allow_no_class=True).tolist() == [[1, NO_CLASS]]
    assert "label 255 (1 pixel), first at x=1, y=0" in message(labels)


def test_label_out_of_range_names_file_values_and_place(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[2, 3], labels[3, 0] = 77, 29
    Image.fromarray(labels).save(tmp_path / "mask.png")
    text = message(tmp_path / "mask.png")
    assert text.startswith(f"{tmp_path / 'mask.png'}: label 29 (1 pixel), 77 (1 pixel), first at x=3, y=2")
    assert "0..28" in text
    assert "label -1 " in message(np.array([[-1]]), name="given") and "given" in message(np.array([[-1]]), name="given")
    assert "30 (1 pixel), 31 (1 pixel), 32 (1 pixel), 33 (1 pixel), 34 (1 pixel), ..., " in message(
        np.arange(30, 60)[None])
    assert "0..7" in message(np.array([[8]]), num_classes=8)


@pytest.mark.parametrize("array, words", [
    (np.zeros((2, 2)), "float64"), (np.zeros((2, 2), bool), "bool"), (np.zeros((2, 2, 3)), "(2, 2, 3)"),
    (np.zeros((0, 5), np.uint8), "(0, 5)"), (np.zeros(5, np.uint8), "(5,)"), (None, "()"),
])
def test_arrays_that_are_no_label_map(array, words):
    assert words in message(array)


def test_pictures_that_are_no_label_map(tmp_path):
    grey = Image.fromarray(np.zeros((4, 4), np.uint8))
    for mode, name, words in (("RGB", "a.png", "colour"), ("RGBA", "b.png", "colour"), ("LA", "c.png", "transparent"),
                              ("I;16", "d.png", "16-bit"), ("F", "e.tiff", "not a picture in a known format"),
                              ("L", "f.jpg", "JPEG")):
        image = Image.fromarray(np.zeros((4, 4), np.uint16)) if mode == "I;16" else grey.convert(mode)
        if "A" in mode:
            image.putpixel((1, 1), (0,) * len(mode))
        image.save(tmp_path / name)
        assert words in message(tmp_path / name) and name in message(tmp_path / name)
    assert "mode F" in message(grey.convert("F"))


def test_missing_broken_and_foreign_files(tmp_path):
    assert "no such file" in message(tmp_path / "absent.png")
    assert "a folder" in message(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    assert "not a picture" in message(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    assert "not a picture" in message(tmp_path / "empty.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 29, (64, 64), np.uint8)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for length in (20, 40, len(data) // 2):
        (tmp_path / "cut.png").write_bytes(data[:length])
        assert "cut.png" in message(tmp_path / "cut.png")


@given(LABELS, SIZES)
def test_resizing_takes_the_pixel_under_each_centre(labels, size):
    height, width = size
    resized = resize_labels(labels, width, height)
    assert resized.shape == (height, width) and resized.dtype == np.uint8
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        source = labels[(2 * y + 1) * labels.shape[0] // (2 * height), (2 * x + 1) * labels.shape[1] // (2 * width)]
        assert resized[y, x] == source


@given(LABELS, st.integers(1, 4))
def test_resizing_by_a_whole_factor_repeats_and_comes_back(labels, factor):
    height, width = labels.shape
    larger = resize_labels(labels, width * factor, height * factor)
    assert np.array_equal(larger, labels.repeat(factor, 0).repeat(factor, 1))
    assert np.array_equal(resize_labels(larger, width, height), labels)
    assert np.array_equal(resize_labels(labels[::-1, ::-1], 2 * width, height)[::-1, ::-1],
                          resize_labels(labels, 2 * width, height))


@given(LABELS)
def test_colours_tell_the_labels(labels):
    colors = colorize(labels)
    assert colors.shape == (*labels.shape, 3) and colors.dtype == np.uint8
    distance = np.abs(colors[:, :, None].astype(int) - PALETTE).sum(-1)
    assert np.array_equal(distance.argmin(-1), labels) and distance.min(-1).max() == 0


def test_no_class_is_black():
    assert colorize(np.array([[NO_CLASS, 28]], np.uint8)).tolist() == [[[0, 0, 0], PALETTE[28].tolist()]]
