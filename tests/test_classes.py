"""Tables of classes, and label maps read by them."""
import cv2
import numpy as np
import pytest
from helpers import refused
from PIL import Image

from jiidm.data.classes import CONTEST, MAX_CLASSES, TABLES, load_table, table_of
from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE, colorize
from jiidm.data.reading import read_by
from jiidm.data.stored import read_stored

SIZES = {"contest": 29, "ade20k": 151, "ade20k-train": 150, "coco-stuff": 182, "coco-stuff-train": 171,
         "cityscapes": 34, "cityscapes-train": 19, "stanford": 8, "siftflow": 34, "gaugan": 33}
TABLE = """
target: contest
classes:
- {number: 3, name: meadow, color: "#40c040", becomes: grass}
- {number: 7, name: sky, color: [90, 90, 250]}
- {number: 9, name: lorry, ignore: true}
"""


def write(tmp_path, text, name="mine.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def bands(*labels, side=24):
    """Returns a label map of bands of these labels."""
    return np.repeat(np.array(labels, np.uint8), side)[:, None].repeat(2 * side, 1)


# --------------------------------------------------------------------------------------------------------- the tables

def test_shipped_tables_are_whole():
    assert {name: len(load_table(name)) for name in TABLES} == SIZES
    for name in TABLES:
        table = load_table(name)
        colors = [c.color for c in table.classes if c.color]
        assert len({c.number for c in table.classes}) == len(set(table.names)) == len(table)
        assert len(set(colors)) == len(colors)
        assert all(c.ignore == (c.becomes is None) for c in table.classes)
        assert {c.becomes for c in table.classes} - {None} <= set(CLASSES)
        assert table.target == (None if name == "contest" else "contest")
    assert load_table("contest").names == CLASSES and (load_table("contest").palette == PALETTE).all()


@pytest.mark.parametrize("name, number, source, becomes", [
    ("ade20k", 1, "wall", "wall"), ("ade20k", 150, "flag", "other"), ("ade20k", 0, "unlabelled", None),
    ("ade20k-train", 2, "sky", "sky"), ("ade20k-train", 149, "flag", "other"), ("ade20k-train", 7, "bed", None),
    ("coco-stuff", 0, "person", "person"), ("coco-stuff", 156, "sky-other", "sky"), ("coco-stuff", 168, "tree", "tree"),
    ("coco-stuff", 181, "wood", "other"), ("coco-stuff-train", 170, "wood", "other"),
    ("coco-stuff-train", 145, "sky-other", "sky"), ("cityscapes", 7, "road", "road"), ("cityscapes", 23, "sky", "sky"),
    ("cityscapes-train", 10, "sky", "sky"), ("siftflow", 33, "window", "building"), ("gaugan", 156, "sky-other", "sky"),
    ("stanford", 7, "foreground object", "other"),
])
def test_numbers_of_the_data_sets(name, number, source, becomes):
    table = load_table(name)
    found = next(c for c in table.classes if c.number == number)
    assert (found.name, found.becomes) == (source, becomes)
    assert table.lookup(CLASSES)[number] == (CLASSES.index(becomes) if becomes else NO_CLASS)


def test_trained_numbers_name_the_same_classes_and_colours():
    full, train = load_table("ade20k").classes[1:], load_table("ade20k-train").classes
    assert all((a.number - 1, *a_rest(a)) == (b.number, *a_rest(b)) for a, b in zip(full, train, strict=True))
    for name in ("cityscapes", "coco-stuff"):
        whole = {c.name: a_rest(c) for c in load_table(name).classes}
        assert all(whole[c.name] == a_rest(c) for c in load_table(f"{name}-train").classes)
    coco = {c.number: c.name for c in load_table("coco-stuff").classes}
    assert all(coco[c.number] == c.name for c in load_table("gaugan").classes)


def a_rest(c):
    return c.name, c.color, c.becomes, c.ignore


def test_a_table_of_ones_own(tmp_path):
    table = load_table(write(tmp_path, TABLE))
    assert table.names == ("meadow", "sky", "lorry") and [c.ignore for c in table.classes] == [False, False, True]
    assert table.classes[0].color == (64, 192, 64) and table.classes[1].becomes == "sky"
    labels = np.array([[3, 7, 9, 255]])
    grass, sky = CLASSES.index("grass"), CLASSES.index("sky")
    assert table.read(labels).tolist() == [[grass, sky, NO_CLASS, NO_CLASS]]
    assert table.read(labels, ("sky", "grass")).tolist() == [[1, 0, NO_CLASS, NO_CLASS]]
    assert table.lookup(CLASSES).shape == (256,) and table.lookup(CLASSES).dtype == np.uint8
    own = load_table(write(tmp_path, "classes: [{number: 4, name: hat}, {number: 2, name: coat}]"))
    assert own.read(np.array([[2, 4]])).tolist() == [[1, 0]]


def test_16_bits_where_the_table_says_so(tmp_path):
    numbers = np.array([[300, 65535, 300]], np.uint16)
    Image.fromarray(numbers).save(tmp_path / "wide.png")
    text = "bits: 16\nclasses: [{number: 300, name: sky}, {number: 65535, name: tree}]"
    table = load_table(write(tmp_path, text))
    assert table.lookup(CLASSES).shape == (65536,)
    assert table.read(tmp_path / "wide.png", CLASSES).tolist() == [[1, 5, 1]]
    assert table.read(numbers, CLASSES).tolist() == [[1, 5, 1]]
    refused(lambda: CONTEST.read(tmp_path / "wide.png"), "wide.png", "16-bit", "bits: 16")
    refused(lambda: load_table(write(tmp_path, text.replace("bits: 16", "bits: 8"))), "300", "0..255", "16 bits")


@pytest.mark.parametrize("text, words", [
    (TABLE.replace("[90, 90, 250]", '"#40c040"'), ("both meadow and sky", "#40c040")),
    (TABLE.replace("number: 7", "number: 3"), ("both meadow and sky", "number 3")),
    (TABLE.replace("name: sky", "name: meadow, becomes: sky"), ("meadow twice",)),
    (TABLE.replace("becomes: grass", "becomes: lawn"), ("classes[0] (meadow)", "'lawn'", "grass", "ignore")),
    (TABLE.replace("name: sky", "name: heaven"), ("classes[1] (heaven)", "'heaven'", "ignore")),
    (TABLE.replace("ignore: true", "ignore: true, becomes: sky"), ("classes[2] (lorry)", "becomes instead")),
    (TABLE.replace("number: 7", "number: seven"), ("number 'seven'", "0..255")),
    (TABLE.replace("[90, 90, 250]", "[90, 90, 250"), ("YAML",)),
    (TABLE.replace("[90, 90, 250]", "[90, 90, 256]"), ("#rrggbb",)),
    (TABLE.replace("target: contest", "target: ours"), ("target 'ours'", "ade20k")),
    (TABLE.replace("target", "goal"), ("unknown key 'goal'", "target")), ("classes: []", ("no classes",)),
    ("[]", ("expected the keys",)), ("title: x", ("no classes",)), ("classes: 4", ("a list of classes",)),
    ("classes: [{name: sky}]", ("classes[0]", "no number")), (TABLE + "bits: 12", ("bits 12", "8 or 16")),
    (TABLE.replace("ignore: true", "nearest: sky, becomes: sky"), ("nearest 'sky'", "a list")),
])
def test_bad_tables_are_refused(tmp_path, text, words):
    refused(lambda: load_table(write(tmp_path, text)), "mine.yaml", *words)


def test_unknown_tables_are_refused_with_the_known_names(tmp_path):
    refused(lambda: load_table("ade"), "ade: no such table", *TABLES)
    refused(lambda: load_table(tmp_path / "absent.yaml"), "absent.yaml", "cannot be read")


def test_a_table_of_names_has_colours_of_its_own():
    table = table_of([*CLASSES[3:5], *map(str, range(MAX_CLASSES - 2))])
    assert table.classes[0].color == CONTEST.classes[3].color and table.classes[0].nearest == ("water", "lake")
    assert len({c.color for c in table.classes}) == len(table) == MAX_CLASSES
    refused(lambda: table_of([*map(str, range(256))]), "256", "255")
    refused(lambda: table_of(["a", "a"]), "twice")


# -------------------------------------------------------------------------------------------------------- label maps

@pytest.mark.parametrize("name", ["contest", "ade20k", "cityscapes", "gaugan"])
def test_numbers_palettes_and_colours_mean_the_same(tmp_path, name):
    table = load_table(name)
    chosen = [c for c in table.classes if c.color][::3]
    numbers = bands(*(c.number for c in chosen), side=3)
    expected = table.read(numbers)
    assert set(np.unique(expected)) == {CLASSES.index(c.becomes) if c.becomes else NO_CLASS for c in chosen}
    lut = np.zeros((256, 3), np.uint8)
    for c in chosen:
        lut[c.number] = c.color
    colors = lut[numbers]
    shuffled = Image.fromarray(colors).quantize(256, dither=Image.Dither.NONE)  # an editor's palette, in its own order
    palette = Image.fromarray(numbers)
    palette.putpalette(lut.tobytes())
    grey = Image.fromarray(numbers)
    grey.putpalette(bytes(range(256)) * 3)  # means nothing
    opaque = np.dstack([colors, np.full_like(numbers, 255)])
    for place, image in enumerate([Image.fromarray(colors), Image.fromarray(opaque), shuffled, palette, grey]):
        image.save(tmp_path / f"{place}.png")
        assert (table.read(image) == expected).all() and (table.read(tmp_path / f"{place}.png") == expected).all()
    assert (table.read(colors) == expected).all() and (table.read(numbers.astype(np.int64)) == expected).all()


def test_wrong_numbers_and_lacking_classes_are_named():
    ade = load_table("ade20k")
    refused(lambda: ade.read(np.array([[2, 151, -4]]), name="map"),
            "map: label -4 (1 pixel), 151 (1 pixel), first at x=1, y=0", "ade20k", "0..150")
    refused(lambda: load_table("cityscapes").read(np.array([[60000]]), name="map"), "60000", "0..33")
    refused(lambda: ade.read(np.array([[3, 22]]), ("sky",), name="map"), "map: water at x=1, y=0 becomes water", "sky")
    assert ade.read(np.array([[3]]), ("sky",)).tolist() == [[0]]
    refused(lambda: ade.lookup(("sky",)), "ade20k: wall becomes wall", "1 classes sky")
    refused(lambda: load_table("siftflow").read(np.zeros((2, 2, 3), np.uint8)), "siftflow", "no colours")


def test_transparent_pixels_have_no_class(tmp_path):
    picture = np.dstack([colorize(bands(1, 5)), np.full((48, 48), 255, np.uint8)])
    picture[:4, :, 3] = 0
    labels = CONTEST.read(picture)
    assert (labels[:4] == NO_CLASS).all() and (labels[4:] == bands(1, 5)[4:]).all()
    numbers = Image.merge("LA", [Image.fromarray(bands(1, 5)), Image.fromarray(picture[..., 3])])
    numbers.save(tmp_path / "numbers.png")
    assert (CONTEST.read(tmp_path / "numbers.png") == labels).all()
    picture[6, 7, 3] = 99
    refused(lambda: CONTEST.read(picture), "1 half-transparent", "x=7, y=6")
    numbers.putpixel((7, 6), (1, 99))
    refused(lambda: CONTEST.read(numbers), "1 half-transparent", "x=7, y=6")
    assert CONTEST.read(picture, snap=True)[6, 7] == 1


# ------------------------------------------------------------------------------------------------------------- strays

def test_smoothed_edges_are_refused_or_get_a_class_beside_them():
    first, second, between = map(CLASSES.index, ("mountain", "sky", "river"))
    labels = bands(first, second)
    picture = colorize(labels)
    mixed = (0.5 * PALETTE[first] + 0.5 * PALETTE[second]).astype(np.uint8)
    picture[23:25] = mixed
    everywhere = np.abs(PALETTE.astype(int) - mixed).sum(1).argmin()
    assert everywhere == between  # a search through all classes would draw a river there
    refused(lambda: CONTEST.read(picture, name="map"), "map: 96 pixels (4.2 %)", "x=0, y=23", "--snap", "contest")
    snapped, count = read_by(CONTEST, read_stored(picture), CLASSES, True)
    assert count == 96 and set(np.unique(snapped)) == {first, second}
    assert (snapped[:23] == first).all() and (snapped[25:] == second).all() and between not in snapped


@pytest.mark.parametrize("quality", [75, 95])
def test_jpegs_are_refused_or_mended(tmp_path, quality):
    labels = bands(1, 5, 12)
    labels[:, 20:30] = CLASSES.index("path")
    Image.fromarray(colorize(labels)).save(tmp_path / "map.jpg", quality=quality)
    refused(lambda: CONTEST.read(tmp_path / "map.jpg"), "map.jpg", "JPEG", "--snap")
    assert (CONTEST.read(tmp_path / "map.jpg", snap=True) != labels).mean() < 0.01
    Image.fromarray(labels).save(tmp_path / "numbers.jpg", quality=100)
    refused(lambda: CONTEST.read(tmp_path / "numbers.jpg", snap=True), "numbers.jpg", "JPEG")


def test_smoothed_maps_of_many_classes_come_back():
    rng = np.random.default_rng(0)
    labels = cv2.resize(rng.integers(0, 29, (4, 5)).astype(np.uint8), (100, 80), interpolation=cv2.INTER_NEAREST)
    smooth = cv2.resize(np.repeat(np.repeat(colorize(labels), 3, 0), 3, 1)[1:], (100, 80), interpolation=cv2.INTER_AREA)
    snapped = CONTEST.read(smooth, snap=True)
    assert (snapped != labels).mean() < 0.02


def test_colours_of_no_class_name_the_three_nearest():
    refused(lambda: CONTEST.read(np.full((3, 4, 3), (150, 190, 190), np.uint8), name="map"),
            "map: 12 pixels (100.0 %)", "#96bebe at x=0, y=0", "sky #94c7ec of contest", "--classes")
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    refused(lambda: CONTEST.read(photo, snap=True), "1600 pixels", "the nearest are")
