"""Public data sets and plain folders become training folders: real layouts, made-up pictures."""
import numpy as np
import pytest
from helpers import refused, run_main
from PIL import Image

from jiidm.data.check import check_folder
from jiidm.data.classes import load_table
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE
from jiidm.data.sets.pairs import Conversion, Pair, match_pairs, split_pairs

SKY, TREE, ROAD, SEA, PERSON, PATH = (CLASSES.index(n) for n in ("sky", "tree", "road", "sea", "person", "path"))
SIZE = "--width", 32, "--height", 24


def save(path, array, size=(40, 30)):
    """Writes a picture of horizontal stripes, one for each value (a number or a colour) of `array`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.asarray(array, np.uint8)[np.arange(size[1]) * len(array) // size[1]]
    Image.fromarray(np.repeat(stripes[:, None], size[0], 1)).save(path)


def photo(path, size=(40, 30)):
    save(path, [[200, 220, 255], [30, 90, 40]], size)


def number(table, name):
    """The number of a class in a shipped table."""
    return next(c.number for c in load_table(table).classes if c.name == name)


def ade20k(path, table="ade20k"):
    for split, name in (("training", "ADE_train_00000001"), ("training", "ADE_train_00000002"),
                        ("validation", "ADE_val_00000001")):
        photo(path / "images" / split / f"{name}.jpg")
        save(path / "annotations" / split / f"{name}.png", [number(table, "sky"), number(table, "tree")])
    save(path / "annotations/training/ADE_train_00000002.png", [number(table, "sky"), *[number(table, "bed")] * 2])
    (path / "objectInfo150.txt").write_text("Idx")


def coco(path, table):
    for split, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        photo(path / "images" / split / f"{name}.jpg")
        for each, suffix in (("coco-stuff", ""), ("coco-stuff-train", "_labelTrainIds")):
            values = [number(each, "sky-other"), number(each, "tree"), 255]
            save(path / "annotations" / split / f"{name}{suffix}.png", values)


def cityscapes(path, table):
    for split, city, name in (("train", "aachen", "aachen_000000_000019"), ("train", "ulm", "ulm_000001_000019"),
                              ("val", "munster", "munster_000000_000019"), ("test", "bonn", "bonn_000000_000019")):
        photo(path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        for each, kind in (("cityscapes", "labelIds"), ("cityscapes-train", "labelTrainIds")):
            values = [number(each, "sky"), number(each, "vegetation"), number(each, "road")]
            save(path / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", values)
        photo(path / "gtFine" / split / city / f"{name}_gtFine_color.png")


@pytest.mark.parametrize("name, build, table, names, classes", [
    ("ade20k", ade20k, "ade20k", ["ADE_train_00000001"], [SKY, TREE]),
    ("coco-stuff", coco, "coco-stuff", ["000000000009"], [SKY, TREE, NO_CLASS]),
    ("coco-stuff", coco, "coco-stuff-train", ["000000000009"], [SKY, TREE, NO_CLASS]),
    ("cityscapes", cityscapes, "cityscapes", ["aachen_000000_000019", "ulm_000001_000019"], [SKY, TREE, ROAD]),
    ("cityscapes", cityscapes, "cityscapes-train", ["aachen_000000_000019", "ulm_000001_000019"], [SKY, TREE, ROAD]),
])
def test_a_public_set_becomes_a_training_and_a_validation_folder(tmp_path, name, build, table, names, classes):
    build(tmp_path / "set", table)
    done = run_main("data", name, tmp_path / "set", tmp_path / "out", "--classes", table, *SIZE)
    assert done.returncode == 0, done.stderr
    train, val = TrainingFolder(tmp_path / "out/train"), TrainingFolder(tmp_path / "out/val")
    assert train.names == names and len(val) == 1
    for folder in (train, val):
        labels = folder.labels(folder.names[0])
        assert labels.shape == (24, 32) and list(dict.fromkeys(labels[:, 0].tolist())) == classes
        assert folder.photo(folder.names[0]).shape == (24, 32, 3) and not check_folder(folder.path, 29, 32, 24).faults
    assert f"train {len(names)} photos, val 1 photos" in done.stdout and f"the table {table}" in done.stdout
    assert ("1 photos are left out" in done.stdout) == (name == "ade20k")  # a third of its map has a class
    assert not [path for path in (tmp_path / "out").iterdir() if path.name not in ("train", "val")]


def plain(path, colors=False):
    for index in range(6):
        photo(path / "photos" / f"p{index}.jpg")
        values = [SKY, TREE, PERSON]
        save(path / "maps" / f"p{index}_mask.png", PALETTE[values] if colors else values)
    return path / "photos", path / "maps", ("--map-suffix", "_mask", "--maps", path / "maps")


@pytest.mark.parametrize("colors", [False, True])
def test_plain_folders(tmp_path, colors):
    photos, _, options = plain(tmp_path, colors)
    done = run_main("data", "folder", photos, tmp_path / "out", *options, "--val-share", 0.34, *SIZE, "--seed", 3)
    assert done.returncode == 0, done.stderr
    train, val = (TrainingFolder(tmp_path / "out" / split).names for split in ("train", "val"))
    assert len(train) == 4 and len(val) == 2 and sorted(train + val) == [f"p{i}" for i in range(6)]
    again = run_main("data", "folder", photos, tmp_path / "again", *options, "--val-share", 0.34, *SIZE, "--seed", 3)
    assert again.returncode == 0 and TrainingFolder(tmp_path / "again/val").names == val


def test_classes_that_are_not_kept_have_none_and_too_few_known_pixels_leave_a_photo_out(tmp_path):
    photos, maps, options = plain(tmp_path)
    save(maps / "p0_mask.png", [PERSON, PERSON, SKY])
    done = run_main("data", "folder", photos, tmp_path / "out", *options, "--keep", "sky,tree", "--min-known", 0.6,
                    "--val-share", 0, *SIZE)
    assert done.returncode == 0, done.stderr
    train = TrainingFolder(tmp_path / "out/train")
    assert train.names == ["p1", "p2", "p3", "p4", "p5"] and "1 photos are left out" in done.stdout
    assert not (tmp_path / "out/val").exists()
    assert np.unique(train.labels("p1")).tolist() == [SKY, TREE, NO_CLASS]


def test_crop_keeps_the_aspect_and_stretch_the_whole_picture(tmp_path):
    save(tmp_path / "map.png", [SKY, TREE, ROAD, ROAD, TREE, SKY], (20, 60))
    photo(tmp_path / "photo.png", (20, 60))
    pair = Pair("x", tmp_path / "photo.png", tmp_path / "map.png")
    _, cropped = Conversion(load_table("contest"), 20, 20).read(pair)
    picture, whole = Conversion(load_table("contest"), 20, 20, fit="stretch").read(pair)
    assert np.unique(cropped).tolist() == [ROAD] and cropped.shape == (20, 20)
    assert list(dict.fromkeys(whole[:10, 0].tolist())) == [SKY, TREE, ROAD] and picture.shape == (20, 20, 3)


def test_a_table_of_other_classes_keeps_its_own(tmp_path):
    photos, maps, options = plain(tmp_path)
    table = tmp_path / "mine.yaml"
    table.write_text("classes:\n" + "".join(f"- {{number: {n}, name: {name}}}\n" for n, name in (
        (SKY, "cloud"), (TREE, "wood"), (PERSON, "people"))))
    done = run_main("data", "folder", photos, tmp_path / "out", *options, "--classes", table, "--val-share", 0, *SIZE)
    assert done.returncode == 0, done.stderr
    assert "the table's 3 classes" in done.stdout and f"--classes {tmp_path / 'out' / 'classes.yaml'}" in done.stdout
    written = load_table(tmp_path / "out/classes.yaml")
    assert written.names == ("cloud", "wood", "people") and [c.number for c in written.classes] == [0, 1, 2]
    assert np.unique(TrainingFolder(tmp_path / "out/train").labels("p1")).tolist() == [0, 1, 2]


def test_names_that_do_not_match_are_listed(tmp_path):
    photos, maps, options = plain(tmp_path)
    for index in range(4):
        (maps / f"p{index}_mask.png").rename(maps / f"q{index}_mask.png")
    done = run_main("data", "folder", photos, tmp_path / "out", *options, *SIZE)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    line, = done.stderr.splitlines()
    assert "p0.jpg: no label map of its name (and 7 more: p1.jpg, p2.jpg, ...)" in line
    refused(lambda: match_pairs([tmp_path / "a.jpg", tmp_path / "b" / "a.png"], []), "a.png", "the name of", "a.jpg")
    refused(lambda: match_pairs([], [tmp_path / "a.png"]), "a.png: no photo of its name;")


def test_mistakes_are_told_in_one_line_and_nothing_is_left(tmp_path):
    photos, maps, options = plain(tmp_path)

    def fails(*arguments, command="folder", source=photos):
        more = () if command != "folder" else options
        done = run_main("data", command, source, tmp_path / "out", *more, *SIZE, *arguments)
        assert done.returncode == 2 and not (tmp_path / "out").exists()
        line, = [line for line in done.stderr.splitlines() if line.startswith("error")]
        return line

    assert "--keep clouds" in fails("--keep", "sky,clouds") and "mountain" in fails("--keep", "sky,clouds")
    assert "--min-known 2" in fails("--min-known", 2)
    assert "--val-share 1" in fails("--val-share", 1) and "6 photos" in fails("--val-share", 0.99)
    assert "no such table" in fails("--classes", "none") and "ade20k" in fails("--classes", "none")
    assert "lower --min-known" in fails("--keep", "sea", "--min-known", 0.1)
    assert "_mask.png: label 14 " in fails("--classes", "stanford")
    save(maps / "p3_mask.png", [SKY], (30, 30))
    assert "p3_mask.png: 30x30, but its photo" in fails()
    assert "images/training: no such folder" in fails(command="ade20k", source=tmp_path)
    assert "train2017: no such folder" in fails(command="coco-stuff", source=tmp_path)
    assert "leftImg8bit/train: no such folder" in fails(command="cityscapes", source=tmp_path)
    assert "none: no such folder" in fails(command="ade20k", source=tmp_path / "none")
    pair = Pair("a", tmp_path / "a.jpg", tmp_path / "a.png")
    refused(lambda: split_pairs([pair, pair._replace(photo=tmp_path / "b" / "a.jpg")], 0.5), "in another split")
