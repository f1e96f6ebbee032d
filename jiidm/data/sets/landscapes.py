"""Landscape photos with label maps in the contest's 29 classes, alone or with the Stanford Background Dataset's.

The folder holds `imgs/NAME.jpg`, `labels/NAME.png`, the lists `train.txt` and `val.txt` (a name a line), and
`origins.tsv` (name, origin, "hand" or "network": who made the label map).
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jiidm.data.folders import (
    BY_HAND,
    TrainingFolder,
    folder_written_whole,
    write_test_tasks,
    write_training_folder,
)
from jiidm.data.labels import CLASSES, read_label_map
from jiidm.data.pictures import photo_size
from jiidm.data.sets.pairs import read_pair
from jiidm.data.sets.stanford import fill_no_class, read_stanford, split_names
from jiidm.system.errors import InputError
from jiidm.system.files import read_text

_MAKERS = ("hand", "network")


class Counts(NamedTuple):
    """What `write_landscapes` wrote: photos of train/ and val/, those labelled by hand; masks of test/.

    `enlarged` of them all are smaller than the pictures were to be.
    """

    train: int
    train_by_hand: int
    val: int
    val_by_hand: int
    test: int
    enlarged: int


def read_origins(source):
    """Reads `origins.tsv` of the folder `source`.

    Returns:
        {name: True where its label map was made by hand, False where by a network}.

    Raises:
        InputError: the file is missing or not text, or a line is not "name, origin, hand or network".
    """
    path = Path(source) / "origins.tsv"
    lines = read_text(path, "name, origin and maker of each label map").splitlines()
    by_hand = {}
    for number, line in enumerate(lines[1:], 2):
        columns = line.split("\t")
        if len(columns) != 3 or columns[2] not in _MAKERS:
            raise InputError(f"{path}: line {number} is {line!r}; expected name, origin, and hand or network, between "
                             f"tabs")
        by_hand[columns[0]] = columns[2] == "hand"
    return by_hand


def read_landscapes(source, split, width, height):
    """Yields the photos of one split of the landscapes, cropped centrally to width : height and resized.

    Args:
        source: the folder.
        split: "train" or "val".
        width, height: size of what is yielded, in pixels.

    Yields:
        (name, photo H x W x 3 uint8, labels H x W uint8 with NO_CLASS where unknown).

    Raises:
        InputError: a file is missing or broken, or photo and label map differ in size.
    """
    source = Path(source)
    for name in split_names(source / f"{split}.txt"):
        yield name, *read_pair(source / "imgs" / f"{name}.jpg", source / "labels" / f"{name}.png",
                               lambda path: read_label_map(path, len(CLASSES), allow_no_class=True), width, height)


def write_landscapes(source, destination, width, height, stanford=None, seed=0):
    """Writes `train/`, `val/` and `test/` into one new folder; no photo of val/ is in train/.

    `train/` and `val/` are training folders with a further file `by_hand.txt`, the names of the hand-made label maps.
    `test/` is a test folder: the hand-made maps of the validation list, and as style references other photos of `val/`.

    Args:
        source: folder of the landscapes.
        destination: folder to write; it appears complete or not at all.
        width, height: size of the pictures, in pixels.
        stanford: folder of the Stanford Background Dataset, whose training list joins `train/`; None leaves it out.
        seed: of the choice of style references.

    Returns:
        The `Counts`.

    Raises:
        InputError: a file is missing or broken, a name is in both lists or in both sets, a name is not in origins.tsv,
            no validation map was made by hand, or `destination` is in use.
    """
    by_hand = dict(read_origins(source))
    lists = {split: split_names(Path(source) / f"{split}.txt") for split in ("train", "val")}
    added = split_names(Path(stanford) / "train.txt") if stanford else []
    _check_names(source, lists, by_hand, added)
    train = lists["train"] + added
    by_hand.update(dict.fromkeys(added, True))
    marked = [name for name in lists["val"] if by_hand[name]]
    if not marked or len(lists["val"]) < 2:
        raise InputError(f"{Path(source) / 'val.txt'}: no validation photo with a hand-made label map and another one "
                         f"beside it; the test folder needs both")
    with folder_written_whole(destination) as folder:
        write_training_folder(folder / "val", read_landscapes(source, "val", width, height))
        write_training_folder(folder / "train", _all_training(source, stanford, width, height))
        for split, names in (("train", train), ("val", lists["val"])):
            text = "".join(f"{name}\n" for name in sorted(names) if by_hand[name])
            (folder / split / BY_HAND).write_text(text, "utf-8")
        validation = TrainingFolder(folder / "val")
        styles = _other_photos(sorted(marked), validation, seed)
        write_test_tasks(folder / "test", (
            (name, fill_no_class(validation.labels(name), name), style) for name, style in styles.items()))
    photos = [Path(source) / "imgs" / f"{name}.jpg" for name in lists["train"] + lists["val"]]
    photos += [Path(stanford) / "images" / f"{name}.jpg" for name in added]
    sizes = [photo_size(path) for path in photos]
    return Counts(len(train), sum(by_hand[name] for name in train), len(lists["val"]), len(marked), len(marked),
                  sum(size[0] < width or size[1] < height for size in sizes))


def _all_training(source, stanford, width, height):
    """Yields the training photos of both sets."""
    yield from read_landscapes(source, "train", width, height)
    if stanford:
        yield from read_stanford(stanford, "train", width, height)


def _check_names(source, lists, by_hand, stanford):
    """Raises InputError where a name is in two lists or its label map's maker is unknown."""
    seen = set()
    for where, names in ((f"{source}/val.txt", lists["val"]), (f"{source}/train.txt", lists["train"]),
                         ("the Stanford Background Dataset's train.txt", stanford)):
        for name in names:
            if name in seen:
                raise InputError(f"{where}: {name} is there twice or in another list too; keep one of the two")
            seen.add(name)
    for name in lists["val"] + lists["train"]:
        if name not in by_hand:
            raise InputError(f"{source}/origins.tsv: no line for {name}; add it, with hand or network")


def _other_photos(names, folder, seed):
    """Returns {name: file name of a style photo} from a `TrainingFolder`: a shuffle by `seed`, never a name's own."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(folder))
    photos = [folder.names[i] for i in order]
    chosen = {}
    for place, name in enumerate(names):
        photo = photos[place % len(photos)]
        if photo == name:  # its neighbour in the shuffle, who is then used twice
            photo = photos[(place + 1) % len(photos)]
        chosen[name] = folder.photo_path(photo).name
    return chosen
