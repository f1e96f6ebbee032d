"""What weights know of classes: their names and colours, and how often the training saw each; label maps read for them.

The metadata of weights hold it under the key `classes`:

    {"classes": [{"name": "sky", "color": "#94c7ec", "nearest": []}, ...],
     "seen": {"maps": 715, "pixels": [0.21, ...], "in_maps": [640, ...]}}
"""
from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jiidm.data.classes import CONTEST, ClassTable, colored_tables, load_table, read_color, table_of
from jiidm.data.colors import STRAY, codes_of, different, exact_places, hex_of, near_share
from jiidm.data.labels import check_values
from jiidm.data.reading import LEAST_MATCH, check_numbers, colored, means_colors, read_by, stray_message
from jiidm.data.stored import NO_CLASS, Source, Stored, read_stored
from jiidm.system.errors import InputError

_LEAST_SEEN = 0.005  # of the label maps: what a training met less often has no effect


class Seen(NamedTuple):
    """How often a training saw each class.

    Attributes:
        maps: label maps of the training.
        pixels: each class's share of their labelled pixels, 0..1.
        in_maps: how many of the maps have it.
    """

    maps: int
    pixels: tuple[float, ...]
    in_maps: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The classes of weights.

    Args:
        table: names and colours; a label is a place in it.
        seen: how often the training saw each. None: nobody counted.
        known: the names of the classes that the training saw, where nobody counted. None: all of them.
        warned: the unseen classes that a warning has named.
    """

    table: ClassTable
    seen: Seen | None = None
    known: tuple[str, ...] | None = None
    warned: set[str] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the labels."""
        return self.table.names

    @property
    def seen_names(self) -> tuple[str, ...]:
        """The names of the classes that the training has seen in at least one of 200 label maps."""
        if self.seen is None:
            return self.names if self.known is None else self.known
        least = max(1, _LEAST_SEEN * self.seen.maps)
        return tuple(name for name, count in zip(self.names, self.seen.in_maps, strict=True) if count >= least)

    def as_dict(self) -> dict[str, Any]:
        """Returns what the metadata of weights hold of it, for JSON."""
        classes = [{"name": c.name, "color": c.color and hex_of(c.color), "nearest": list(c.nearest)}
                   for c in self.table.classes]
        return {"classes": classes, "seen": self.seen and self.seen._asdict()}

    def substitutes(self, table: ClassTable | None = None) -> dict[str, str]:
        """Returns what stands in for each unseen class: the first of its `nearest` that was seen; those without are
        left out.

        Args:
            table: its `nearest` comes before that of the weights' own table.
        """
        nearest = {c.name: c.nearest for c in self.table.classes}
        nearest |= {c.becomes: c.nearest for c in (table.classes if table else ()) if c.becomes and c.nearest}
        found = {}
        for name in set(self.names) - set(self.seen_names):
            stand_in = next((other for other in nearest[name] if other in self.seen_names), None)
            if stand_in:
                found[name] = stand_in
        return found

    def reader(self, classes: str | ClassTable | Any = "auto", snap: bool = False,
               nearest_class: bool = False) -> LabelReader:
        """Returns the `LabelReader` for these weights; arguments as there."""
        return LabelReader(self, classes, snap, nearest_class)


def numbered(num_classes: int) -> Vocabulary:
    """Returns the vocabulary of weights that say nothing of their classes: the contest's where there are 29 of them,
    else numbers for names."""
    return Vocabulary(CONTEST if num_classes == len(CONTEST) else table_of([str(n) for n in range(num_classes)]))


def vocabulary_of(data: Any, num_classes: int, where: object) -> Vocabulary:
    """Reads the vocabulary of weights.

    Args:
        data: what the metadata hold, as from `Vocabulary.as_dict`. None: `numbered`.
        num_classes: labels of the network.
        where: what errors call the weights.

    Raises:
        InputError: it is none, or of another number of classes.
    """
    if data is None:
        return numbered(num_classes)
    try:
        names = [str(entry["name"]) for entry in data["classes"]]
        table = table_of(names, [read_color(entry["color"], str(where)) for entry in data["classes"]],
                         [[str(other) for other in entry["nearest"]] for entry in data["classes"]], f"{where}, classes")
        seen = data["seen"] and Seen(int(data["seen"]["maps"]), tuple(map(float, data["seen"]["pixels"])),
                                     tuple(map(int, data["seen"]["in_maps"])))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: its metadata's classes cannot be read ({error!r}); save it again") from error
    if {len(names), *((len(seen.pixels), len(seen.in_maps)) if seen else ())} != {num_classes}:
        raise InputError(f"{where}: its metadata names {len(names)} classes, the network has {num_classes}; save it "
                         f"again")
    is_contest = [(c.name, c.color) for c in table.classes] == [(c.name, c.color) for c in CONTEST.classes]
    return Vocabulary(dataclasses.replace(CONTEST, classes=table.classes) if is_contest else table, seen)


def count_classes(maps: Iterable[np.ndarray], table: ClassTable, ignore: Iterable[int] = ()) -> Vocabulary:
    """Counts the classes of a training.

    Args:
        maps: label maps, H x W uint8 each; `NO_CLASS` is not counted.
        table: of the labels.
        ignore: labels that the training leaves out.

    Returns:
        The `Vocabulary` of weights of this training.
    """
    pixels, in_maps, count = np.zeros(len(table), np.int64), np.zeros(len(table), np.int64), 0
    left_out = [*ignore]
    for labels in maps:
        found = np.bincount(labels[labels != NO_CLASS].ravel(), minlength=len(table))
        found[left_out] = 0
        pixels, in_maps, count = pixels + found, in_maps + (found > 0), count + 1
    shares = np.round(pixels / max(1, pixels.sum()), 6)
    return Vocabulary(table, Seen(count, tuple(shares.tolist()), tuple(in_maps.tolist())))


# ------------------------------------------------------------------------------------------------------------- reading

class Reading(NamedTuple):
    """A label map that was read.

    Attributes:
        labels: H x W uint8, places in the weights' table or `NO_CLASS`.
        how: "indices", or the name of the table.
        snapped: pixels of stray colours that got a class.
    """

    labels: np.ndarray
    how: str
    snapped: int


class LabelReader:
    """Reads label maps as labels of weights.

    Args:
        vocabulary: of the weights.
        classes: the table of the label maps: a name of `TABLES`, the path of a YAML file, or a `ClassTable`. "auto":
            numbers are the weights' labels, and colours are of the one table that has all of them.
        snap: give stray colours the nearest class among those around them; a warning says how many.
        nearest_class: draw a class that the weights have not seen as the one that stands in for it.

    Raises:
        InputError: no such table.
    """

    def __init__(self, vocabulary: Vocabulary, classes: Any = "auto", snap: bool = False, nearest_class: bool = False):
        self.vocabulary, self.snap = vocabulary, snap
        self.table = classes if isinstance(classes, ClassTable) else None if classes == "auto" else load_table(classes)
        self._substitutes = vocabulary.substitutes(self.table)
        self._stand_ins = np.arange(256, dtype=np.uint8)
        self._nearest = nearest_class
        if nearest_class:
            for name, other in self._substitutes.items():
                self._stand_ins[vocabulary.names.index(name)] = vocabulary.names.index(other)

    def read(self, source: Source, name: str | None = None) -> np.ndarray:
        """Reads a label map, warns of stray colours that got a class and of classes that the weights have not seen.

        Args:
            source: the path of a picture, a PIL image, or an array: H x W integers or H x W x 3 (or 4) uint8.
            name: what messages call it. None: the path.

        Returns:
            H x W uint8, labels of the weights; `NO_CLASS` where there is none.

        Raises:
            InputError: whatever cannot be read, with the place of the first wrong pixel.
        """
        stored = read_stored(source, name)
        found = self.read_stored(stored)
        if found.snapped:
            warnings.warn(f"{stored.name}: {found.snapped} pixels ({100 * found.snapped / found.labels.size:.1f} %) of "
                          f"colours that {found.how} lacks got the nearest class around them", stacklevel=2)
        self._warn_of_unseen(found.labels, stored.name)
        return self._stand_ins[found.labels]

    def read_stored(self, stored: Stored) -> Reading:
        """Reads pixels; raises InputError. It neither warns nor replaces classes."""
        table, numbers = self.table, stored.numbers
        if table is None:
            table = self._recognise(stored)
            if table is None:
                return Reading(self._plain_labels(stored), "indices", 0)
            stored = dataclasses.replace(stored, numbers=None)  # its colours are what counts
        labels, snapped = read_by(table, stored, self.vocabulary.names, self.snap)
        return Reading(labels, "indices" if numbers is not None and (labels == numbers).all() else table.name, snapped)

    def _plain_labels(self, stored):
        """Numbers that are the weights' labels; raises InputError where they are not."""
        check_numbers(stored)
        numbers = stored.numbers if stored.alpha is None else np.where(stored.alpha, stored.numbers, NO_CLASS)
        check_values(numbers, len(self.vocabulary), stored.name, allow_no_class=True)
        return numbers.astype(np.uint8)

    def _recognise(self, stored):
        """The table whose colours a label map has; None where its numbers are labels."""
        if stored.colors is None:
            return None
        own = self.vocabulary.table
        tables = [own, *(table for table in colored_tables() if table.name != own.name)]
        codes = codes_of(stored.colors)
        painted = codes.ravel() if stored.alpha is None else codes[stored.alpha > 0]
        if not painted.size:
            return own
        found = different(painted)
        fitting = [table for table in tables if means_colors(found, table)]
        if not fitting:
            plain = stored.numbers is not None and (not self.snap or stored.numbers.max() < len(self.vocabulary))
            return None if plain else self._nearest_table(stored, codes, painted, tables)
        if fitting[0] is not tables[0] and len({self._meaning(table, found) for table in fitting}) > 1:
            raise InputError(f"{stored.name}: its colours mean different classes in the tables "
                             f"{', '.join(table.name for table in fitting)}; choose one with --classes (classes=...)")
        return fitting[0]

    def _meaning(self, table, codes):
        """What each of the colours becomes by a table, as bytes to compare."""
        palette, places = colored(table)
        return table.targets(self.vocabulary.names)[places[exact_places(codes, palette)]].tobytes()

    def _nearest_table(self, stored, codes, painted, tables):
        """The table to give stray colours to; raises InputError where they are not to be given, or no table is near."""
        shares = [near_share(painted, colored(table)[0]) for table in tables]
        best = int(np.argmax(shares))
        if self.snap and shares[best] >= LEAST_MATCH:
            return tables[best]
        stray = exact_places(codes, colored(tables[best])[0]) == STRAY
        stray &= stored.alpha is None or stored.alpha > 0
        if not stray.any():
            raise InputError(f"{stored.name}: nothing in it but what the table {tables[best].name} ignores; paint it, "
                             f"or say with --classes what its colours mean")
        raise InputError(stray_message(stored, codes, stray, [tables[best], *tables[:best], *tables[best + 1:]]))

    def _warn_of_unseen(self, labels, name):
        """Warns of the classes that the weights have not seen, of each once."""
        counts = np.bincount(labels.ravel(), minlength=256)[:len(self.vocabulary)]
        told = {*self.vocabulary.seen_names, *self.vocabulary.warned}
        unseen = [c for c, count in zip(self.vocabulary.names, counts, strict=True) if count and c not in told]
        if not unseen:
            return
        self.vocabulary.warned.update(unseen)
        drawn = [f"{c} as {self._substitutes[c]}" for c in unseen if c in self._substitutes]
        text = f"{name}: the weights have never seen {', '.join(unseen)}"
        if self._nearest and drawn:
            text += f"; drawn: {', '.join(drawn)}"
        elif drawn:
            text += f", which have no effect; --nearest-class (nearest_class=True) draws {', '.join(drawn)}"
        else:
            text += ", which have no effect"
        warnings.warn(text, stacklevel=3)
