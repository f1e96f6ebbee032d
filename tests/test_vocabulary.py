"""What weights know of classes, and label maps read for them: by themselves, in inference and in training."""
import dataclasses
import json
import warnings

import numpy as np
import pytest
from helpers import TINY, refused, run_main, write_random_weights
from PIL import Image

from jiidm import Generator
from jiidm.checkpoint import load_checkpoint, save_checkpoint
from jiidm.config import AutoencoderTrainingConfig, InferenceConfig, RoundConfig, UNetTrainingConfig
from jiidm.data.classes import CONTEST, load_table, table_of
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.data.labels import CLASSES, NO_CLASS, colorize
from jiidm.data.vocabulary import Seen, Vocabulary, count_classes, numbered, vocabulary_of
from jiidm.training.classes import reader_of_training, with_classes

SKY, TREE, GRASS, SEA, WATER, HILL, MOUNTAIN = map(
    CLASSES.index, ("sky", "tree", "grass", "sea", "water", "hill", "mountain"))
SEEN = "sky", "tree", "road", "grass", "water", "building", "mountain", "other"
EIGHT = Vocabulary(CONTEST, known=SEEN)
CONFIG = dataclasses.replace(TINY, inference=InferenceConfig((RoundConfig(2.0, "ddim20", 3),)))
COLORED = "contest", "ade20k", "cityscapes", "gaugan"
OWN = """
classes:
- {number: 10, name: heaven, color: "#0000ff"}
- {number: 20, name: lawn, color: "#00ff00", nearest: [forest]}
- {number: 30, name: forest, color: "#006000", nearest: [lawn]}
- {number: 31, name: shrub, color: "#008040", becomes: forest}
- {number: 40, name: frame, color: "#000000", ignore: true}
"""


def landscape(top=SKY, bottom=GRASS, height=48, width=64):
    labels = np.full((height, width), top, np.uint8)
    labels[height // 2:] = bottom
    return labels


def in_colors(labels, name):
    """Returns a label map of the contest's classes in the colours of another table."""
    colors = {c.becomes: c.color for c in reversed(load_table(name).classes) if c.color}
    return np.array([colors.get(each, (0, 0, 0)) for each in CLASSES], np.uint8)[labels]


@pytest.fixture
def own_table(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path / "own.yaml"


# ---------------------------------------------------------------------------------------------------- what weights say

def test_classes_are_counted_and_come_back_from_metadata():
    maps = [landscape(), landscape(TREE, NO_CLASS), landscape(SKY, SKY)]
    counted = count_classes(maps, CONTEST, ignore=[GRASS])
    assert counted.seen.maps == 3 and counted.seen_names == ("sky", "tree")
    assert counted.seen.in_maps[SKY] == 2 and counted.seen.pixels[SKY] == pytest.approx(0.75)
    again = vocabulary_of(json.loads(json.dumps(counted.as_dict())), 29, "weights")
    assert again == counted and again.table.name == "contest"
    mine = Vocabulary(table_of(["a", "b"], [(1, 2, 3), None], [["b"], []]))
    again = vocabulary_of(json.loads(json.dumps(mine.as_dict())), 2, "weights")
    assert again.table.classes == mine.table.classes and again.seen is None and again.seen_names == ("a", "b")


def test_weights_without_metadata_have_the_contests_classes_or_numbers():
    assert vocabulary_of(None, 29, "weights") == numbered(29) and numbered(29).names == CLASSES
    assert numbered(3).names == ("0", "1", "2") and len({c.color for c in numbered(255).table.classes}) == 255


@pytest.mark.parametrize("change, words", [
    (lambda d: d["classes"].pop(), "28 classes, the network has 29"), (lambda d: d.pop("seen"), "cannot be read"),
    (lambda d: d["classes"][0].pop("color"), "cannot be read"), (lambda d: d["seen"].update(pixels=[1.0]), "29"),
    (lambda d: d["classes"][1].update(name="mountain"), "mountain twice"),
    (lambda d: d["classes"][1].update(color="blue"), "#rrggbb"), (lambda d: d.update(classes=3), "cannot be read"),
])
def test_metadata_that_name_no_classes_are_refused(change, words):
    data = json.loads(json.dumps(count_classes([landscape()], CONTEST).as_dict()))
    change(data)
    refused(lambda: vocabulary_of(data, 29, "unet.safetensors"), "unet.safetensors", words)


def test_the_substitute_is_the_nearest_class_that_was_seen():
    found = EIGHT.substitutes()
    assert found["sea"] == "water" and found["hill"] == "mountain" and found["plant"] == "tree"
    assert "sky" not in found and set(found) == set(CLASSES) - set(SEEN) - {"wall"} | {"wall"}
    few = Vocabulary(CONTEST, Seen(1, (0.0,) * 29, tuple(int(c in ("lake", "sky")) for c in CLASSES)))
    assert few.substitutes()["sea"] == "lake" and "hill" not in few.substitutes()
    other = dataclasses.replace(CONTEST, classes=(dataclasses.replace(CONTEST.classes[SEA], nearest=("sky",)),))
    assert few.substitutes(other)["sea"] == "sky" and few.substitutes(other)["water"] == "lake"


# ------------------------------------------------------------------------------------------------------- label maps

@pytest.mark.parametrize("name", COLORED)
def test_colours_are_recognised_by_the_table_that_has_them(name):
    labels = landscape()
    assert (EIGHT.reader().read(in_colors(labels, name)) == labels).all()
    palette = Image.fromarray(in_colors(labels, name)).quantize(8)
    assert (EIGHT.reader().read(palette) == labels).all()


def test_colours_of_several_tables_are_told(tmp_path):
    (tmp_path / "own.yaml").write_text('classes: [{number: 0, name: wall, color: "#787878"}]')
    grey = np.full((4, 4, 3), 0x78, np.uint8)
    assert (EIGHT.reader().read(grey) == CLASSES.index("wall")).all()
    city = np.full((4, 4, 3), (70, 130, 180), np.uint8)
    city[0] = 128, 64, 128
    mine = Vocabulary(table_of(["grass", "tree"], [(70, 130, 180), (128, 64, 128)]))  # the weights' own come first
    assert mine.reader().read(city)[:, 0].tolist() == [1, 0, 0, 0]
    black = np.zeros((4, 4, 3), np.uint8)
    refused(lambda: EIGHT.reader().read(black, "map"), "map: nothing in it but", "--classes")
    assert (EIGHT.reader("ade20k").read(black) == NO_CLASS).all()
    assert (EIGHT.reader().read(np.zeros((4, 4, 4), np.uint8)) == NO_CLASS).all()  # transparent


def test_a_table_of_the_users_and_a_grey_palette(tmp_path, own_table):
    labels = np.array([[10, 31, 40, 255]])
    reader = reader_of_training(29, own_table)
    assert reader.vocabulary.names == ("heaven", "lawn", "forest")
    assert reader.read(labels).tolist() == [[0, 2, NO_CLASS, NO_CLASS]]
    refused(lambda: EIGHT.reader(own_table).read(labels, "map"), "map: heaven at x=0, y=0 becomes heaven", "29 classes")
    grey = Image.fromarray(landscape())
    grey.putpalette(bytes(range(256)) * 3)
    assert (EIGHT.reader().read(grey) == landscape()).all()


def test_what_no_table_has_is_refused_or_snapped(tmp_path):
    labels = landscape(MOUNTAIN, SKY)
    picture = colorize(labels)
    picture[23:25] = (picture[0, 0].astype(int) + picture[-1, 0]) // 2
    refused(lambda: EIGHT.reader().read(picture, "map"),
            "map: 128 pixels (4.2 %)", "contest lacks", "x=0, y=23", "--snap")
    with pytest.warns(UserWarning, match=r"^map: 128 pixels \(4.2 %\).*contest"):
        assert set(np.unique(EIGHT.reader(snap=True).read(picture, "map"))) == {MOUNTAIN, SKY}
    refused(lambda: EIGHT.reader().read(np.full((4, 4, 3), (200, 30, 120), np.uint8), "map"),
            "map: 16 pixels (100.0 %)", "no table has", " of ade20k", "--classes")
    refused(lambda: EIGHT.reader("ade"), "ade: no such table", "ade20k-train")
    refused(lambda: EIGHT.reader().read(np.full((2, 2), 300, np.uint16), "map"), "map: label 300")
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "wide.png")
    refused(lambda: EIGHT.reader().read(tmp_path / "wide.png"), "wide.png", "16-bit", "bits: 16")


def test_unseen_classes_are_named_once():
    vocabulary = Vocabulary(CONTEST, known=SEEN)
    with pytest.warns(UserWarning) as told:
        for bottom in (SEA, HILL, SEA):
            assert (vocabulary.reader().read(landscape(SKY, bottom)) == landscape(SKY, bottom)).all()
    assert len(told) == 2 and "sea" in str(told[0].message) and "sea as water" in str(told[0].message)
    assert "hill as mountain" in str(told[1].message) and "sea" not in str(told[1].message)
    fresh = Vocabulary(CONTEST, known=SEEN)
    with pytest.warns(UserWarning, match="sea; drawn: sea as water"):
        assert (fresh.reader(nearest_class=True).read(landscape(SKY, SEA)) == landscape(SKY, WATER)).all()


# -------------------------------------------------------------------------------------------------------- inference

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights that have seen the eight classes."""
    folder = tmp_path_factory.mktemp("weights") / "weights"
    write_random_weights(folder, CONFIG, [1])
    seen = count_classes([np.array([[CLASSES.index(name) for name in SEEN]], np.uint8)], CONTEST)
    unet = load_checkpoint(folder / "unet-1.safetensors")
    save_checkpoint(unet.path, "unet", unet.tensors, unet.config, unet.step, classes=seen.as_dict())
    return folder


@pytest.fixture(scope="module")
def generator(weights):
    return Generator.from_checkpoint(weights, "cpu")


def drawn(generator, mask, **options):
    style = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (48, 1, 3))
    return np.asarray(generator.infer(mask, style, names=[""], **options))


def test_a_map_means_the_same_in_every_form(generator, tmp_path):
    labels = landscape(SKY, TREE)
    expected = drawn(generator, labels)
    grey, palette, shuffled = Image.fromarray(labels), Image.fromarray(labels), Image.fromarray(colorize(labels))
    palette.putpalette(CONTEST.palette.tobytes())
    forms = {"grey": grey, "palette": palette, "editor": shuffled.quantize(8), "rgba": shuffled.convert("RGBA"),
             **{name: Image.fromarray(in_colors(labels, name)) for name in COLORED}}
    for name, image in forms.items():
        image.save(tmp_path / f"{name}.png")
        for form in (image, tmp_path / f"{name}.png", str(tmp_path / f"{name}.png")):
            assert (drawn(generator, form) == expected).all(), name
    ade, table = np.vectorize(lambda c: {SKY: 3, TREE: 5}[c])(labels), load_table("ade20k")
    for form, classes in ((labels.astype(np.int64), "auto"), (np.asarray(forms["gaugan"]), "auto"), (ade, "ade20k"),
                          (ade, table), (in_colors(labels, "ade20k"), "ade20k-train")):
        assert (drawn(generator, form, classes=classes) == expected).all()
    assert (drawn(generator, ade) != expected).any()


def test_unpainted_pixels_are_filled_in(generator):
    labels = landscape(SKY, TREE)
    labels[:, 20:40] = NO_CLASS
    picture = drawn(generator, labels)
    assert picture.shape == (48, 64, 3)
    assert (picture != drawn(generator, landscape(SKY, TREE))).any()
    assert (picture == drawn(generator, np.dstack([colorize(landscape(SKY, TREE)),
                                                   np.where(labels == NO_CLASS, 0, 255)]).astype(np.uint8))).all()
    empty = drawn(generator, np.full((48, 64), NO_CLASS))
    assert (empty == drawn(generator, landscape(SKY, TREE), recipe={"rounds": [
        {"guidance": 0.0, "respacing": "ddim20", "start": 3}]})).all()  # the prediction without a label map
    style = np.zeros((48, 64, 3), np.uint8)
    two = generator.infer([labels, landscape(SKY, TREE)], [style, style], names=["", ""])
    assert (np.asarray(two[0]) == np.asarray(generator.infer(labels, style, names=[""]))).all()


def test_unseen_classes_have_a_warning_and_a_substitute(weights):
    generator = Generator.from_checkpoint(weights, "cpu")
    assert generator.vocabulary.seen_names == tuple(c for c in CLASSES if c in SEEN)
    with pytest.warns(UserWarning, match="never seen sea; drawn: sea as water") as told:
        found = drawn(generator, landscape(SKY, SEA), nearest_class=True)
        assert (drawn(generator, landscape(SKY, SEA)) != found).any()
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (found == drawn(generator, landscape(SKY, WATER))).all()


def test_the_packages_weights_have_seen_landscapes():
    seen = Generator.from_checkpoint().vocabulary.seen_names
    assert {*SEEN, "sea", "rock", "sand", "river", "field", "waterfall"} <= set(seen) and "ship" not in seen


def test_a_class_of_hardly_any_map_is_not_seen():
    table = table_of(["sky", "sea", "pier"])
    vocabulary = Vocabulary(table, Seen(1000, (0.5, 0.4, 0.0), (900, 5, 4)))
    assert vocabulary.seen_names == ("sky", "sea")
    assert Vocabulary(table, Seen(10, (0.5, 0.4, 0.0), (9, 1, 0))).seen_names == ("sky", "sea")


def test_the_commands_read_maps_by_tables(weights, tmp_path):
    photos = [("style", np.full((48, 64, 3), 90, np.uint8), landscape())]
    write_training_folder(tmp_path / "train", photos)
    write_test_folder(tmp_path / "test", [("a", landscape(SKY, TREE))], TrainingFolder(tmp_path / "train"))
    options = ("--input_path", tmp_path / "test", "--img_path", tmp_path / "train", "--checkpoint", weights,
               "--width", 64, "--height", 48, "--device", "cpu")
    assert run_main("infer", *options, "--output_path", tmp_path / "numbers").returncode == 0
    colors = in_colors(landscape(SKY, TREE), "gaugan")
    Image.fromarray(colors).save(tmp_path / "test" / "labels" / "a.png")
    done = run_main("infer", *options, "--output_path", tmp_path / "colors", "--classes", "gaugan",
                    "--overview", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "numbers" / "a.jpg").read_bytes() == (tmp_path / "colors" / "a.jpg").read_bytes()
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert {CONTEST.classes[c].color for c in (SKY, TREE)} <= {tuple(color) for color in np.unique(sheet, axis=0)}
    colors[23:25] = (colors[0].astype(int) + colors[-1]) // 2
    Image.fromarray(colors).save(tmp_path / "a.png")
    draw = ("draw", tmp_path / "a.png", tmp_path / "train" / "imgs" / "style.jpg", "-o", tmp_path / "drawn.png",
            "--checkpoint", weights, "--device", "cpu")
    refusal = run_main(*draw)
    assert refusal.returncode == 2 and "--snap" in refusal.stderr and not (tmp_path / "drawn.png").exists()
    with pytest.warns(UserWarning, match=r"a.png: 128 pixels \(4.2 %\) of colours that gaugan lacks"):
        assert run_main(*draw, "--snap", "--classes", "gaugan").returncode == 0
    assert warnings.formatwarning("text", UserWarning, "file", 1) == "warning: text\n"
    unknown = run_main(*draw, "--classes", "gogan")
    assert unknown.returncode == 2 and "gogan: no such table" in unknown.stderr
    unknown = run_main("infer", *options, "--output_path", tmp_path / "none", "--classes", "gogan")
    assert unknown.returncode == 2 and "gogan: no such table" in unknown.stderr


# --------------------------------------------------------------------------------------------------------- training

def test_a_training_of_any_classes_says_them_in_its_weights(tmp_path, own_table):
    from jiidm.training.stages import Stages

    maps = [(f"{i}", np.full((48, 64, 3), 40 * i, np.uint8), None) for i in range(3)]
    (tmp_path / "data" / "imgs").mkdir(parents=True), (tmp_path / "data" / "labels").mkdir()
    numbers = [landscape(10, 31), landscape(10, 20), landscape(40, 20)]
    lut = np.zeros((256, 3), np.uint8)
    for c in load_table(own_table).classes:
        lut[c.number] = c.color
    for (name, photo, _), labels in zip(maps, numbers, strict=True):
        Image.fromarray(photo).save(tmp_path / "data" / "imgs" / f"{name}.png")
        Image.fromarray(lut[labels]).save(tmp_path / "data" / "labels" / f"{name}.png")
    config = dataclasses.replace(
        CONFIG, train_autoencoder=AutoencoderTrainingConfig(
            steps=1, batch=2, crop=32, discriminator_start=2, discriminator_channels=8, discriminator_layers=1,
            quantize_from=0, sheet_every=0),
        train_unet=UNetTrainingConfig(steps=1, batch=3, keep_at=(1,), sheet_every=1))
    reader = reader_of_training(29, own_table)
    config = with_classes(config, "unet", reader)
    assert config.unet.num_classes == 3
    stages = Stages(config, tmp_path / "data", tmp_path / "run", reader=reader)
    stages.autoencoder(), stages.latents(), stages.unet(), stages.export()
    generator = Generator.from_checkpoint(tmp_path / "run" / "weights", "cpu")
    assert generator.vocabulary.names == ("heaven", "lawn", "forest")
    assert generator.vocabulary.table.classes[2].color == (0, 0x60, 0)
    assert generator.vocabulary.seen == Seen(3, (0.4, 0.4, 0.2), (2, 2, 1))
    kept = load_checkpoint(tmp_path / "run" / "unet-0000001.safetensors")
    save_checkpoint(kept.path, "unet", kept.tensors, kept.config, 1)  # as an older version wrote it
    stages.export()
    assert Generator.from_checkpoint(tmp_path / "run" / "weights", "cpu").vocabulary == generator.vocabulary
    other = Stages(config, tmp_path / "data", tmp_path / "run", reader=reader_of_training(3, "auto"), resume=True)
    refused(other.unet, "run the latents stage again")  # label maps were read by a table
    expected = drawn(generator, landscape(0, 1))
    assert (drawn(generator, lut[landscape(10, 20)]) == expected).all()
    assert (drawn(generator, landscape(10, 20), classes=own_table) == expected).all()
    refused(lambda: drawn(generator, in_colors(landscape(), "ade20k")), "sky", "none of the weights' 3 classes", "lawn")
    done = run_main("data", "check", tmp_path / "data", "--classes", own_table, "--width", 64, "--height", 48)
    assert done.returncode == 0 and "| 2 forest | 16.667 | 1 |" in done.stdout, done.stdout
