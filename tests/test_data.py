"""Photos, the contest's folders, Stanford's conversion, drawn landscapes and `jiidm data`."""
import hashlib
import json
import os
import struct
import zlib

import numpy as np
import pytest
from helpers import ROOT, refused, resident_bytes, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from jiidm.data import folders, pictures
from jiidm.data.drawn import scenes
from jiidm.data.labels import NO_CLASS, fit_labels, read_label_map
from jiidm.data.sets import stanford
from jiidm.system.errors import InputError

PHOTOS = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


def save(path, array, **options):
    """Saves an array as a picture, its folder made; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def make_training_folder(path, names=("a", "b", "c"), size=(24, 32)):
    """Writes a small training folder; returns its path."""
    for index, name in enumerate(names):
        save(path / "imgs" / f"{name}.jpg", np.full((*size, 3), 40 * index, np.uint8))
        save(path / "labels" / f"{name}.png", np.full(size, index, np.uint8))
    return path


def make_test_folder(path, references, masks=("m1.png", "m2.png")):
    """Writes a test folder with the JSON value `references`; returns its path."""
    for mask in masks:
        save(path / "any_name" / mask, np.ones((24, 32), np.uint8))
    (path / "label_to_img.json").write_text(json.dumps(references))
    return path


# ------------------------------------------------------------------------------------------------------------ photos

@given(PHOTOS)
def test_photo_from_file_image_and_array_is_one(tmp_path_factory, photo):
    path = save(tmp_path_factory.mktemp("photo") / "photo.png", photo)
    for source in (path, str(path), Image.fromarray(photo), photo):
        read = pictures.read_photo(source)
        assert np.array_equal(read, photo) and read.dtype == np.uint8 and not np.shares_memory(read, photo)


def test_photo_modes_become_rgb(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    triple = np.repeat(grey[..., None], 3, 2)
    image = Image.fromarray(grey)
    for mode, name in (("L", "l.png"), ("P", "p.png"), ("LA", "la.png"), ("RGBA", "rgba.png")):
        image.convert(mode).save(tmp_path / name)
        assert np.array_equal(pictures.read_photo(tmp_path / name), triple), mode
    save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(pictures.read_photo(tmp_path / "deep.png"), triple)
    assert np.array_equal(pictures.read_photo(grey.astype(np.uint16) * 257), triple)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = pictures.read_photo(tmp_path / "cmyk.jpg").astype(int)
    assert (red[..., 0] > 240).all() and (red[..., 1:] < 15).all()


def test_transparency_is_laid_on_white():
    array = np.zeros((1, 3, 4), np.uint8)
    array[0, :, 3] = 0, 255, 127
    assert pictures.read_photo(array)[0, :, 0].tolist() == [255, 0, 128]
    assert pictures.read_photo(Image.fromarray(array))[0, :, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    upright[8:, :16] = 90
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
              8: np.rot90(upright, 3)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.jpg", np.ascontiguousarray(stored), quality=95, exif=exif)
    read = pictures.read_photo(path).astype(int)
    assert read.shape == upright.shape and np.abs(read - upright).mean() < 3
    assert pictures.photo_size(path) == (32, 16)


def test_photos_that_cannot_be_read(tmp_path):
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole.jpg", rng.integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    for length in (10, 200, len(whole) // 2, len(whole) - 300):
        (tmp_path / "cut.jpg").write_bytes(whole[:length])
        refused(lambda: pictures.read_photo(tmp_path / "cut.jpg"), "cut.jpg")
    refused(lambda: pictures.read_photo(tmp_path / "absent.jpg"), "absent.jpg", "no such file")
    refused(lambda: pictures.read_photo(tmp_path), "a folder")
    refused(lambda: pictures.read_photo(np.zeros((4, 4, 3))), "float64")
    refused(lambda: pictures.read_photo(np.zeros((4, 4, 2), np.uint8), name="mine"), "mine", "(4, 4, 2)")
    refused(lambda: pictures.read_photo(np.zeros((0, 4, 3), np.uint8)), "(0, 4, 3)")
    refused(lambda: pictures.read_photo(Image.new("F", (2, 2))), "floats")
    refused(lambda: pictures.read_photo(Image.new("I", (2, 2), 70000)), "70000")


def bomb(width, height):
    """A PNG of 70 bytes whose header claims width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_large_pictures_are_refused_by_their_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(200_000, 100_000))
    before = resident_bytes()
    for read in (pictures.read_photo, read_label_map, pictures.photo_size):
        refused(lambda read=read: read(path), "bomb.png: 200000x100000 are 20000 megapixels, expected at most 200")
    assert resident_bytes() - before < 10 << 20
    save(path, np.zeros((30, 40, 3), np.uint8))
    refused(lambda: pictures.open_image(path, 1199), "40x30", "0.001199")
    assert pictures.open_image(path, 1200).size == (40, 30)
    path.write_bytes(bomb(16_320, 12_240))  # what phones take; the file is cut off, not too large
    refused(lambda: pictures.open_image(path), "broken picture")
    assert Image.MAX_IMAGE_PIXELS == 2**28 // 3


def test_only_known_formats_reach_their_parsers(tmp_path):
    for suffix in ("webp", "bmp"):
        assert pictures.read_photo(save(tmp_path / f"a.{suffix}", np.zeros((4, 5, 3), np.uint8))).shape == (4, 5, 3)
    (tmp_path / "a.jpg").write_bytes(b"SIMPLE  =                    T".ljust(2880))  # FITS, whatever the name says
    for name in ("tiff", "gif", "ppm", "tga"):
        refused(lambda name=name: pictures.read_photo(save(tmp_path / f"a.{name}", np.zeros((4, 5, 3), np.uint8))),
                f"a.{name}: not a picture in a known format; expected PNG, JPEG, WEBP, BMP")
    refused(lambda: pictures.read_photo(tmp_path / "a.jpg"), "not a picture in a known format")


@given(PHOTOS, st.integers(1, 40), st.integers(1, 40))
def test_fitting_gives_the_size_and_keeps_a_flat_colour(photo, width, height):
    assert pictures.fit_photo(photo, width, height).shape == (height, width, 3)
    flat = np.broadcast_to(photo[:1, :1], photo.shape).copy()
    assert (pictures.fit_photo(flat, width, height) == photo[0, 0]).all()
    labels = photo[..., 0]
    fitted = fit_labels(labels, width, height)
    assert fitted.shape == (height, width) and set(np.unique(fitted)) <= set(np.unique(labels))


def test_photo_and_labels_are_cropped_alike():
    labels = np.zeros((90, 60), np.uint8)
    labels[40:55, 20:50] = 1
    photo = np.repeat(labels[..., None] * 255, 3, 2)
    small, small_labels = pictures.fit_photo(photo, 32, 24), fit_labels(labels, 32, 24)
    assert ((small[..., 0] > 127) == (small_labels == 1)).mean() > .97
    assert pictures.fit_photo(photo, 60, 45).tolist() == photo[22:67].tolist()


# ----------------------------------------------------------------------------------------------------------- folders

def test_training_folder(tmp_path):
    training = folders.TrainingFolder(make_training_folder(tmp_path, ("b", "a", "c.d")))
    (tmp_path / "imgs" / ".hidden.jpg").touch()
    (tmp_path / "imgs" / "notes.txt").touch()
    assert training.names == ["a", "b", "c.d"] and len(training) == 3
    assert training.photo("a").shape == (24, 32, 3) and (training.labels("a") == 1).all()
    assert folders.TrainingFolder(tmp_path).names == training.names
    save(tmp_path / "labels" / "a.png", np.full((24, 32), NO_CLASS, np.uint8))
    assert (training.labels("a") == NO_CLASS).all()


def test_training_folders_that_are_refused(tmp_path):
    refused(lambda: folders.TrainingFolder(tmp_path / "absent"), "absent", "no such folder")
    (tmp_path / "empty" / "imgs").mkdir(parents=True)
    refused(lambda: folders.TrainingFolder(tmp_path / "empty"), "imgs", "no .jpg file")
    path = make_training_folder(tmp_path / "train")
    save(path / "labels" / "b.png", np.zeros((24, 30), np.uint8))
    refused(lambda: folders.TrainingFolder(path).labels("b"), "b.png: 30x24", "b.jpg is 32x24")
    save(path / "labels" / "b.png", np.full((24, 32), 30, np.uint8))
    refused(lambda: folders.TrainingFolder(path).labels("b"), "b.png: label 30")
    (path / "labels" / "b.png").unlink()
    refused(lambda: folders.TrainingFolder(path), "b.jpg", "labels/b.png is missing")
    (path / "imgs" / "b.jpg").unlink()
    (path / "imgs" / "a.jpg").unlink()
    refused(lambda: folders.TrainingFolder(path), "a.png", "imgs/a.jpg is missing")
    save(path / "imgs" / "a.jpg", np.zeros((24, 32, 3), np.uint8))
    save(path / "imgs" / "a.png", np.zeros((24, 32, 3), np.uint8))
    refused(lambda: folders.TrainingFolder(path), "a.png", "a.jpg")


def test_test_folder_lists_items_and_problems(tmp_path):
    train = make_training_folder(tmp_path / "train")
    path = make_test_folder(tmp_path / "test", {"m2.png": "b.jpg", "m1.png": "a.jpg"})
    (path / ".ipynb_checkpoints").mkdir()
    for photos in (train, train / "imgs"):
        found = folders.TestFolder(path, photos)
        assert [tuple(item) for item in found.items] == [
            ("m2.png", path / "any_name" / "m2.png", train / "imgs" / "b.jpg"),
            ("m1.png", path / "any_name" / "m1.png", train / "imgs" / "a.jpg")]
        assert found.problems == [] and len(found) == 2
    make_test_folder(path, {"m1.png": "a.jpg", "m2.png": "z.jpg", "m9.png": "a.jpg", "m4.png": "../imgs/a.jpg"},
                ("m1.png", "m2.png", "m3.png", "m4.png"))
    found = folders.TestFolder(path, train)
    assert [item.name for item in found.items] == ["m1.png"]
    assert [problem.split(":")[0] for problem in found.problems] == ["m2.png", "m9.png", "m4.png", "m3.png"]
    assert "z.jpg" in found.problems[0] and "no such label map" in found.problems[1]


def test_test_folder_may_hold_the_photos_too(tmp_path):
    path = make_test_folder(tmp_path, {"m1.png": "a.png"})
    save(path / "imgs" / "a.png", np.zeros((24, 32, 3), np.uint8))
    assert folders.TestFolder(path, path).items[0].reference == path / "imgs" / "a.png"


@pytest.mark.parametrize("text, words", [
    ("{", "not JSON"), ("[1, 2]", "type list"), ("{}", "an empty object"), ('{"m1.png": 3}', "m1.png is of type int"),
    ('{"m1.png": {"x": "y"}}', "m1.png is of type dict"), ('{"m1.png": "a.jpg", "m1.png": "b.jpg"}', "m1.png twice"),
    ("\xff\xfe", "not JSON"), ("", "not JSON"), ("[" * 100000, "not JSON"),
])
def test_json_that_is_refused(tmp_path, text, words):
    path = make_test_folder(tmp_path / "test", {"m1.png": "a.jpg"})
    (path / "label_to_img.json").write_bytes(text.encode("latin-1"))
    refused(lambda: folders.TestFolder(path, make_training_folder(tmp_path / "train")), "label_to_img.json", words)


def test_test_folders_that_are_refused(tmp_path):
    train = make_training_folder(tmp_path / "train")
    path = make_test_folder(tmp_path / "test", {"m1.png": "a.jpg"})
    refused(lambda: folders.TestFolder(tmp_path / "absent", train), "absent", "no such folder")
    refused(lambda: folders.TestFolder(path, tmp_path / "nowhere"), "nowhere", "no such folder")
    save(path / "second" / "m.png", np.zeros((2, 2), np.uint8))
    refused(lambda: folders.TestFolder(path, train), "exactly one folder", "any_name, second")
    for mask in path.glob("*/*.png"):
        mask.unlink()
    refused(lambda: folders.TestFolder(path, train), "found none")
    make_test_folder(path, {"m1.png": "z.jpg"})
    refused(lambda: folders.TestFolder(path, train), "no label map has its reference", "z.jpg")
    (path / "label_to_img.json").unlink()
    refused(lambda: folders.TestFolder(path, train), "label_to_img.json", "cannot be read")


def test_written_folders_are_whole_or_absent(tmp_path):
    photo, labels = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.uint8)

    def broken():
        yield "a", photo, labels
        raise InputError("the second is broken")

    refused(lambda: folders.write_training_folder(tmp_path / "out", broken()), "the second is broken")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    assert folders.write_training_folder(tmp_path / "out", [("a", photo, labels)]) == 1
    assert folders.TrainingFolder(tmp_path / "out").names == ["a"]
    refused(lambda: folders.write_training_folder(tmp_path / "out", []), "out", "not an empty folder")


def test_references_are_shuffled_by_the_seed_and_used_evenly(tmp_path):
    training = folders.TrainingFolder(make_training_folder(tmp_path / "train", [f"p{index}" for index in range(10)]))
    masks = [(f"m{index:02d}", np.zeros((24, 32), np.uint8)) for index in range(20)]
    chosen = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        folders.write_test_folder(tmp_path / name, masks, training, seed)
        chosen.append(folders.read_references(tmp_path / name / "label_to_img.json"))
        assert folders.TestFolder(tmp_path / name, tmp_path / "train").problems == []
    assert chosen[0] == chosen[1] != chosen[2]
    assert sorted(list(chosen[0].values())[:10]) == sorted(path.name for path in (tmp_path / "train/imgs").iterdir())


# ---------------------------------------------------------------------------------------------------------- stanford

@pytest.fixture
def stanford_folder(tmp_path):
    """A dataset of three photos, one of them upright, in Stanford's layout."""
    path = tmp_path / "stanford"
    for name, (height, width) in (("1", (24, 32)), ("2", (40, 24)), ("3", (24, 40))):
        labels = (np.arange(height * width, dtype=np.uint8).reshape(height, width) // 3) % 8
        labels[:2, :5] = labels[height // 2, :] = NO_CLASS
        save(path / "labels" / f"{name}.png", labels)
        save(path / "images" / f"{name}.jpg", np.full((height, width, 3), 99, np.uint8))
    (path / "train.txt").write_text("1\n2\n")
    (path / "val.txt").write_text("3\n")
    return path


def test_stanford_classes_become_the_contests(stanford_folder):
    examples = {name: rest for name, *rest in stanford.read_stanford(stanford_folder, "train", 32, 24)}
    assert list(examples) == ["1", "2"]
    source = read_label_map(stanford_folder / "labels" / "1.png", 8, allow_no_class=True)
    table = {0: 1, 1: 5, 2: 23, 3: 12, 4: 2, 5: 11, 6: 0, 7: 28, 255: 255}
    assert np.array_equal(examples["1"][1], np.vectorize(table.get)(source))
    assert all(photo.shape == (24, 32, 3) and labels.shape == (24, 32) for photo, labels in examples.values())


def test_stanford_faults_are_named(stanford_folder):
    def read(split="train"):
        return lambda: list(stanford.read_stanford(stanford_folder, split, 32, 24))

    save(stanford_folder / "labels" / "1.png", np.full((24, 32), 9, np.uint8))
    refused(read(), "1.png", "label 9")
    save(stanford_folder / "labels" / "1.png", np.zeros((24, 30), np.uint8))
    refused(read(), "1.png: 30x24", "32x24")
    (stanford_folder / "images" / "3.jpg").unlink()
    refused(read("val"), "3.jpg", "no such file")
    (stanford_folder / "val.txt").write_text("")
    refused(read("val"), "val.txt", "empty")
    (stanford_folder / "val.txt").unlink()
    refused(read("val"), "val.txt", "cannot be read")


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.sampled_from([0, 5, 28, 255])))
def test_filling_keeps_labels_and_takes_near_ones(labels):
    if (labels == NO_CLASS).all():
        refused(lambda: stanford.fill_no_class(labels, "mine"), "mine")
        return
    filled = stanford.fill_no_class(labels)
    known = labels != NO_CLASS
    assert np.array_equal(filled[known], labels[known]) and filled.max() < 29
    ys, xs = np.nonzero(known)
    for y, x in np.argwhere(~known):
        distances = np.hypot(ys - y, xs - x)
        nearby = labels[ys, xs][distances <= distances.min() * 1.06 + 1e-9]
        assert filled[y, x] in nearby


# --------------------------------------------------------------------------------------------------------- synthetic

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 ** 63), st.integers(16, 90), st.integers(16, 90))
def test_landscapes_have_size_type_and_labels_in_range(seed, width, height):
    photo, labels = scenes.draw_landscape(seed, width, height)
    assert photo.shape == (height, width, 3) and labels.shape == (height, width)
    assert photo.dtype == labels.dtype == np.uint8 and labels.max() < 29
    assert len(np.unique(labels)) > 1 and photo.std() > 2


def test_landscapes_come_from_the_seed_alone():
    """The hash was the same with numpy 1.26 and 2.4, with and without AVX2: a change means other pictures."""
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    digest = hashlib.sha256()
    for index in range(30):
        for array in scenes.draw_landscape((5, index), 64, 48):
            digest.update(array.tobytes())
    assert np.array_equal(before, np.random.get_state()[1])
    assert digest.hexdigest() == "f2a89d9c7aaa83712bfb91de492a88e5f308d9a081ac5027f0ca46e7b7e1fab3"


def test_landscapes_use_every_class_and_differ():
    used, photos = set(), set()
    for index in range(160):
        photo, labels = scenes.draw_landscape((0, index), 96, 72)
        used |= set(np.unique(labels).tolist())
        photos.add(photo.tobytes())
    assert used == set(range(29)) and len(photos) == 160


def test_a_landscape_too_small_is_refused():
    refused(lambda: scenes.draw_landscape(0, 15, 40), "15x40", "16x16")


# -------------------------------------------------------------------------------------------------------------- tool

def prepare(*arguments):
    """Runs `jiidm data`; returns (exit code, stdout, stderr)."""
    done = run_main("data", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_prepare_stanford(stanford_folder, tmp_path):
    assert prepare("stanford", stanford_folder, tmp_path / "train")[0] == 0
    training = folders.TrainingFolder(tmp_path / "train")
    assert training.names == ["1", "2"] and training.photo("2").shape == (144, 192, 3)
    assert NO_CLASS in training.labels("1")
    code, out, _ = prepare("stanford", stanford_folder, tmp_path / "test", "--split", "val", "--width", 40,
                           "--height", 30, "--test", "--references", tmp_path / "train")
    assert code == 0 and "1 masks" in out
    item, = folders.TestFolder(tmp_path / "test", tmp_path / "train").items
    assert read_label_map(item.mask).shape == (30, 40)


def test_prepare_synthetic(tmp_path):
    small = ("--width", 32, "--height", 24)
    assert prepare("synthetic", tmp_path / "train", "--count", 3, *small)[0] == 0
    assert prepare("synthetic", tmp_path / "again", "--count", 3, *small)[0] == 0
    training = folders.TrainingFolder(tmp_path / "train")
    assert len(training) == 3
    for file in sorted((tmp_path / "train").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "train")).read_bytes()
    assert prepare("synthetic", tmp_path / "test", "--count", 4, "--seed", 1, "--test", "--references",
                   tmp_path / "train", *small)[0] == 0
    assert len(folders.TestFolder(tmp_path / "test", tmp_path / "train")) == 4


def test_prepare_refuses_bad_input_and_leaves_nothing(stanford_folder, tmp_path):
    save(stanford_folder / "labels" / "2.png", np.full((40, 24), 99, np.uint8))
    before = sorted(os.listdir(tmp_path))
    for arguments, words in (
            (("stanford", stanford_folder, tmp_path / "out"), "2.png: label 99"),
            (("stanford", tmp_path / "nowhere", tmp_path / "out"), "train.txt"),
            (("stanford", stanford_folder, tmp_path / "out", "--test"), "--references"),
            (("stanford", stanford_folder, tmp_path / "out", "--references", tmp_path), "--test"),
            (("stanford", stanford_folder, stanford_folder), "not an empty folder"),
            (("synthetic", tmp_path / "out", "--count", 0), "--count 0"),
            (("synthetic", tmp_path / "out", "--width", 8), "--width 8"),
            (("synthetic", tmp_path / "out", "--seed", -1), "--seed -1"),
            (("synthetic", tmp_path / "out", "--test", "--references", tmp_path / "none"), "no such folder"),
            (("synthetic", stanford_folder / "train.txt" / "out", "--count", 1), "cannot write"),
            (("synthetic", tmp_path / "out", "--count", "many"), "many")):
        code, out, err = prepare(*arguments)
        assert code == 2 and words in err and not out, (arguments, err)
        assert sorted(os.listdir(tmp_path)) == before


# ---------------------------------------------------------------------------------------------------------- examples

def test_examples_are_a_test_folder():
    found = folders.TestFolder(ROOT / "examples" / "test", ROOT / "examples" / "train")
    assert found.problems == [] and len(found) == 12
    readme = (ROOT / "examples" / "README.md").read_text("utf-8")
    for item in found.items:
        labels = read_label_map(item.mask)
        assert labels.shape == (384, 512)
        assert set(np.unique(labels)) <= set(range(29)) - {18, 26}  # the default weights know neither pier nor ship
        assert pictures.read_photo(item.reference).shape == (384, 512, 3)
        assert f"`{item.reference.name}`" in readme
