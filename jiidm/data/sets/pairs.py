"""Pairs of photo and label map in the folders of a data set: matched by name, read by a table, written for training."""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from jiidm.data.classes import CONTEST, ClassTable
from jiidm.data.colors import hex_of
from jiidm.data.folders import folder_written_whole, write_training_folder
from jiidm.data.labels import NO_CLASS, check_size, fit_labels, resize_labels
from jiidm.data.loader import Loader
from jiidm.data.pictures import fit_photo, read_photo, resize_photo
from jiidm.system.errors import InputError
from jiidm.system.rng import rng_for

Fit = Literal["crop", "stretch"]
CLASSES_FILE = "classes.yaml"
_SHOWN = 3  # names in a message


class Pair(NamedTuple):
    """A photo and its label map, by the name that both have."""

    name: str
    photo: Path
    map: Path


class Written(NamedTuple):
    """How many pairs of a split were written, and how many were left out since too few pixels have a class."""

    written: int
    left_out: int


@dataclass(frozen=True)
class Conversion:
    """What becomes of the pairs of a data set.

    Args:
        table: the `ClassTable` that says what the maps' numbers or colours are.
        width, height: size of the pictures, in pixels.
        keep: names of the classes that are kept; pixels of others become `NO_CLASS`. None: all.
        min_known: a pair is left out where fewer of its pixels have a class, 0..1.
        fit: "crop" (centrally, to the size's aspect) or "stretch" (the whole picture; its aspect changes).
        snap: give stray colours of colour-coded maps the nearest class among those around them.
    """

    table: ClassTable
    width: int = 256
    height: int = 192
    keep: tuple[str, ...] | None = None
    min_known: float = 0.5
    fit: Fit = "crop"
    snap: bool = False

    @property
    def classes(self) -> ClassTable:
        """The classes of what is written: the contest's if all classes become one of them, else the table's own."""
        contest = all(c.ignore or c.becomes in CONTEST.names for c in self.table.classes)
        return CONTEST if contest else self.table.target_table()

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Returns the photo, height x width x 3, and the labels, height x width, of a pair, both uint8.

        Raises:
            InputError: a file is missing or broken, a value or a colour is not in the table, or the sizes differ.
        """
        names = self.classes.names
        photo, labels = read_pair(pair.photo, pair.map, lambda path: self.table.read(path, names, snap=self.snap),
                                  self.width, self.height, self.fit)
        if self.keep is not None:
            labels[~np.isin(labels, [names.index(name) for name in self.keep])] = NO_CLASS
        return photo, labels


def check_conversion(conversion: Conversion) -> None:
    """Raises InputError for a class to keep that is none, and for a share beyond 0..1."""
    names = conversion.classes.names
    for name in conversion.keep or ():
        if name not in names:
            raise InputError(f"--keep {name}: no class of the maps to write; expected some of {', '.join(names)}")
    if not 0 <= conversion.min_known <= 1:
        raise InputError(f"--min-known {conversion.min_known:g}: a share from 0 to 1 was expected")


def read_pair(photo: Path, labels: Path, read_labels: Callable[[Path], np.ndarray], width: int, height: int,
              fit: Fit = "crop") -> tuple[np.ndarray, np.ndarray]:
    """Reads a photo and its label map and fits both to width x height.

    Args:
        photo, labels: the files.
        read_labels: reads the label map, H x W uint8.
        width, height: in pixels.
        fit: as in `Conversion`.

    Raises:
        InputError: a file is missing or broken, or the sizes differ.
    """
    picture, values = read_photo(photo), read_labels(labels)
    check_size(values, picture.shape[1::-1], labels, photo)
    if fit == "stretch":
        return resize_photo(picture, width, height), resize_labels(values, width, height)
    return fit_photo(picture, width, height), fit_labels(values, width, height)


def match_pairs(photos: Iterable[Path], maps: Iterable[Path], photo_suffix: str = "",
                map_suffix: str = "") -> list[Pair]:
    """Matches photos and label maps by their names without suffixes.

    Args:
        photos, maps: the files.
        photo_suffix, map_suffix: what follows the common name, such as "_leftImg8bit".

    Returns:
        The pairs, sorted by name.

    Raises:
        InputError: files without a partner, or two of one name; it names the first few and says how many there are.
    """
    by_photo, by_map = _by_name(photos, photo_suffix), _by_name(maps, map_suffix)
    lonely = [(by_photo[name], "label map") for name in sorted(by_photo.keys() - by_map.keys())]
    lonely += [(by_map[name], "photo") for name in sorted(by_map.keys() - by_photo.keys())]
    if lonely:
        path, partner = lonely[0]
        others = ", ".join(other.name for other, _ in lonely[1:_SHOWN])
        more = f" (and {len(lonely) - 1} more: {others}{', ...' if len(lonely) > _SHOWN else ''})" if others else ""
        raise InputError(f"{path}: no {partner} of its name{more}; add what is missing or remove these files")
    return [Pair(name, by_photo[name], by_map[name]) for name in sorted(by_photo)]


def _by_name(paths, suffix):
    """{name without suffix: path}; raises InputError where two have one name."""
    found = {}
    for path in paths:
        name = path.stem.removesuffix(suffix)
        if name in found:
            raise InputError(f"{path}: the name of {found[name]} too; keep one of the two")
        found[name] = path
    return found


def split_pairs(pairs: list[Pair], share: float, seed: int = 0) -> dict[str, list[Pair]]:
    """Splits pairs at random into "train" and, if `share` is more than 0, "val" with that share, at least one pair.

    Raises InputError for a share that leaves no training photo, and where two pairs have one name.
    """
    twice = {pair.name: pair for pair in pairs}
    if len(twice) < len(pairs):
        name = next(pair.name for pair in pairs if twice[pair.name] is not pair)
        raise InputError(f"{twice[name].photo}: {name} is in another split too; keep one of the two")
    if not share:
        return {"train": pairs}
    count = max(1, round(share * len(pairs)))
    if not 0 < share < 1 or count >= len(pairs):
        raise InputError(f"--val-share {share:g}: expected a share from 0 to less than 1 that leaves training photos; "
                         f"there are {len(pairs)} photos")
    chosen = set(rng_for(seed, "validation").permutation(len(pairs))[:count].tolist())
    return {"train": [pair for place, pair in enumerate(pairs) if place not in chosen],
            "val": [pairs[place] for place in sorted(chosen)]}


def write_sets(destination: str | Path, splits: dict[str, list[Pair]], conversion: Conversion) -> dict[str, Written]:
    """Writes a training folder for each split into one new folder, complete or not at all.

    Where its maps count in other classes than the contest's, `classes.yaml` is their table.

    Args:
        destination: the folder; it must not exist or be empty.
        splits: the pairs by split; its name is that of the folder.
        conversion: what becomes of them.

    Returns:
        A `Written` for each split.

    Raises:
        InputError: a file cannot be read, no pair of a split has enough known pixels, or `destination` is in use.
    """
    check_conversion(conversion)
    counts = {}
    with folder_written_whole(destination) as folder:
        for split, pairs in splits.items():
            written = write_training_folder(folder / split, _known_enough(pairs, conversion, split))
            if not written:
                raise InputError(f"{pairs[0].map}: neither it nor another map of {split} has a class in at least "
                                 f"{100 * conversion.min_known:g} % of its pixels; lower --min-known, keep more "
                                 f"classes, or check the table {conversion.table.name}")
            counts[split] = Written(written, len(pairs) - written)
        if conversion.classes is not CONTEST:
            (folder / CLASSES_FILE).write_text(_yaml_of(conversion.classes), "utf-8")
    return counts


def _yaml_of(table):
    """A table of numbers, names and colours as YAML."""
    classes = [{"number": c.number, "name": c.name, "color": hex_of(c.color)} for c in table.classes]
    return yaml.safe_dump({"title": f"written by the table {table.name}", "classes": classes}, sort_keys=False,
                          allow_unicode=True)


def _known_enough(pairs, conversion, title) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, photo, labels) of the pairs with enough known pixels; they are read ahead, in threads."""
    with Loader(lambda place: conversion.read(pairs[place]), 0, len(pairs)) as read:
        for pair, (photo, labels) in zip(tqdm(pairs, title, unit="pair", mininterval=1), read, strict=True):
            if (labels != NO_CLASS).mean() >= conversion.min_known:
                yield pair.name, photo, labels
