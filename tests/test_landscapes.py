"""The landscapes' conversion: three folders at one size, validation apart, hand-made label maps marked."""
import json

import numpy as np
import pytest
from helpers import refused, run_main
from PIL import Image

from jiidm.data import folders
from jiidm.data.check import check_folder
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES, NO_CLASS, fit_labels, read_label_map
from jiidm.data.sets.landscapes import read_landscapes, write_landscapes

SIZE = 32, 24
TRAIN, VAL = ("sift_a", "sift_b", "yosemite_c"), ("sift_d", "sift_e", "monet_f")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def landscapes(tmp_path):
    """Six square photos, one of them small, in the landscapes' layout."""
    path = tmp_path / "landscapes"
    for index, name in enumerate(TRAIN + VAL):
        side = 20 if name == "sift_b" else 40
        labels = ((np.arange(side * side).reshape(side, side) // 7 + index) % 29).astype(np.uint8)
        if name != "sift_a":
            labels[side // 2, :] = NO_CLASS
        save(path / "labels" / f"{name}.png", labels)
        save(path / "imgs" / f"{name}.jpg", np.full((side, side, 3), 20 + 30 * index, np.uint8))
    (path / "train.txt").write_text("\n".join(TRAIN))
    (path / "val.txt").write_text("\n".join(VAL))
    makers = {name: "hand" if name.startswith("sift") else "network" for name in TRAIN + VAL}
    lines = [f"{name}\t{name.split('_')[0]}\t{maker}" for name, maker in makers.items()]
    (path / "origins.tsv").write_text("\n".join(["name\torigin\tlabels", *lines]) + "\n")
    return path


@pytest.fixture
def stanford(tmp_path):
    """Two photos in Stanford's layout."""
    path = tmp_path / "stanford"
    for name, split in (("1", "train"), ("2", "val")):
        save(path / "labels" / f"{name}.png", np.full((30, 40), 7, np.uint8))
        save(path / "images" / f"{name}.jpg", np.full((30, 40, 3), 99, np.uint8))
        (path / f"{split}.txt").write_text(f"{name}\n")
    return path


def test_three_folders_at_one_size(landscapes, stanford, tmp_path):
    counts = write_landscapes(landscapes, tmp_path / "out", *SIZE, stanford)
    assert tuple(counts) == (4, 3, 3, 2, 2, 1)
    train, val = TrainingFolder(tmp_path / "out" / "train"), TrainingFolder(tmp_path / "out" / "val")
    assert train.names == ["1", *sorted(TRAIN)] and val.names == sorted(VAL)
    assert not set(train.names) & set(val.names)
    for folder in (train, val):
        assert all(folder.photo(name).shape == (24, 32, 3) for name in folder.names)
        assert not check_folder(folder.path, 29, *SIZE).faults
    assert (train.path / "by_hand.txt").read_text().split() == ["1", "sift_a", "sift_b"]
    assert (val.path / "by_hand.txt").read_text().split() == ["sift_d", "sift_e"]
    source = read_label_map(landscapes / "labels" / "sift_a.png")
    assert np.array_equal(train.labels("sift_a"), fit_labels(source, *SIZE))
    assert (train.labels("1") == CLASSES.index("other")).all()


def test_masks_are_hand_made_and_styles_are_others(landscapes, tmp_path):
    write_landscapes(landscapes, tmp_path / "out", *SIZE, seed=3)
    test = folders.TestFolder(tmp_path / "out" / "test", tmp_path / "out" / "val")
    assert [item.name for item in test.items] == ["sift_d.png", "sift_e.png"] and not test.problems
    assert all(item.reference.stem != item.mask.stem for item in test.items)
    assert all((read_label_map(item.mask) < 29).all() for item in test.items)  # the contest's masks know no 255


@pytest.mark.parametrize("seed", range(8))
def test_no_mask_has_its_own_photo(landscapes, tmp_path, seed):
    write_landscapes(landscapes, tmp_path / "out", *SIZE, seed=seed)
    references = json.loads((tmp_path / "out" / "test" / "label_to_img.json").read_text())
    assert all(mask.split(".")[0] != photo.split(".")[0] for mask, photo in references.items())


def test_faults_are_named_and_nothing_is_left(landscapes, stanford, tmp_path):
    def write():
        write_landscapes(landscapes, tmp_path / "out", *SIZE, stanford)

    def fault(file, text, *words):
        before = (landscapes / file).read_text()
        (landscapes / file).write_text(text)
        refused(write, *words)
        (landscapes / file).write_text(before)
        assert not (tmp_path / "out").exists()

    origins = (landscapes / "origins.tsv").read_text()
    fault("val.txt", "sift_d\nsift_a\n", "train.txt", "sift_a", "another list")
    fault("train.txt", "1\n", "Stanford", "1 is there twice")
    fault("train.txt", "sift_a\nnone\n", "origins.tsv", "none")
    fault("val.txt", "monet_f\n", "val.txt", "hand-made")
    fault("val.txt", "", "val.txt", "empty")
    fault("origins.tsv", origins.replace("hand", "foot", 1), "origins.tsv", "line 2", "foot")
    (landscapes / "imgs" / "sift_b.jpg").unlink()
    refused(write, "sift_b.jpg", "no such file")
    save(landscapes / "labels" / "sift_a.png", np.zeros((40, 38), np.uint8))
    refused(lambda: list(read_landscapes(landscapes, "train", *SIZE)), "sift_a.png: 38x40", "40x40")
    (landscapes / "origins.tsv").unlink()
    refused(write, "origins.tsv", "cannot be read")


def test_command(landscapes, stanford, tmp_path):
    done = run_main("data", "landscapes", landscapes, tmp_path / "out", "--stanford", stanford, "--width", 32,
                    "--height", 24)
    assert done.returncode == 0, done.stderr
    assert "train 4 photos (3 labelled by hand), val 3 (2), test 2 masks" in done.stdout
    assert "1 photos are smaller than 32x24" in done.stdout
    again = run_main("data", "landscapes", landscapes, tmp_path / "out")
    assert again.returncode == 2 and "not an empty folder" in again.stderr
