"""Tables of classes: the numbers, names and colours of a label map, and the class that each of them becomes.

    title: My drawings
    target: contest                 # the table that `becomes` speaks of; without it: the weights' own classes
    classes:
    - {number: 1, name: meadow, color: "#40c040", becomes: grass}
    - {number: 2, name: lorry, color: [200, 0, 0], ignore: true}

A class without `becomes` and `ignore` becomes the class of its own name. `bits: 16` reads 16-bit maps. `nearest` lists
what may stand in for a class that weights have not seen, the best first. docs/classes.md has the whole format.
"""
from __future__ import annotations

import colorsys
import functools
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jiidm.data.colors import hex_of
from jiidm.data.reading import read_by
from jiidm.data.stored import NO_CLASS, Source, read_stored
from jiidm.system.errors import InputError

Color = tuple[int, int, int]

MAX_CLASSES = 255

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_FOLDER = Path(__file__).parent / "tables"
TABLES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
_KEYS = ("title", "target", "bits", "classes")
_CLASS_KEYS = ("number", "name", "color", "becomes", "ignore", "nearest")


@dataclass(frozen=True)
class TableClass:
    """One class of a table.

    Args:
        number: its value in a label map.
        name: its name.
        color: RGB, 0..255; None where the class has none of its own.
        becomes: the name of the class that it turns into; None where it is ignored.
        ignore: whether its pixels have no class (255).
        nearest: names of classes that may stand in for it, the best first.
    """

    number: int
    name: str
    color: Color | None = None
    becomes: str | None = None
    ignore: bool = False
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """A table of classes. `load_table` makes one of a YAML file, `table_of` one of names and colours.

    Args:
        name: what messages call it: the name of a shipped table, or a path.
        classes: its classes in their order.
        title: its name in words.
        bits: of a stored value, 8 or 16; 16-bit maps are read by a table of 16 bits alone.
        target: the shipped table that `becomes` speaks of; None: the names of the weights.
    """

    name: str
    classes: tuple[TableClass, ...]
    title: str = ""
    bits: int = 8
    target: str | None = None

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in their order."""
        return tuple(c.name for c in self.classes)

    @property
    def palette(self) -> np.ndarray:
        """The colours, len x 3 uint8 RGB; black where a class has none."""
        return np.array([c.color or (0, 0, 0) for c in self.classes], np.uint8).reshape(-1, 3)

    def targets(self, target_names: Sequence[str]) -> np.ndarray:
        """Returns what each class becomes: its place in `target_names`, `NO_CLASS`, or -1 where they lack it."""
        places = {name: place for place, name in enumerate(target_names)}
        return np.array([NO_CLASS if c.ignore else places.get(c.becomes, -1) for c in self.classes], np.int16)

    def lookup(self, target_names: Sequence[str]) -> np.ndarray:
        """Returns what each stored value becomes.

        Args:
            target_names: the names of the classes that the result counts in, at most 255.

        Returns:
            2**bits uint8, so 256 or 65536, to be indexed with a label map: the place in `target_names`, or
            `NO_CLASS` for a class that is ignored and for a number that the table does not list.

        Raises:
            InputError: a class becomes one that `target_names` lacks.
        """
        targets = self.targets(target_names)
        if (targets < 0).any():
            lacking = self.classes[int(np.argmax(targets < 0))]
            raise InputError(f"{self.name}: {lacking.name} becomes {lacking.becomes}, which is none of the "
                             f"{len(target_names)} classes {', '.join(target_names)}; name one of these or ignore it")
        found = np.full(2**self.bits, NO_CLASS, np.uint8)
        found[[c.number for c in self.classes]] = targets
        return found

    def target_table(self) -> ClassTable:
        """Returns the table that `becomes` speaks of: the target, else the classes that this one's become."""
        if self.target:
            return load_table(self.target)
        kept = {}
        for c in self.classes:  # of those that become one class, the one of its name lends its colour
            if not c.ignore and (c.becomes not in kept or c.name == c.becomes):
                kept[c.becomes] = c
        return table_of(list(kept), [c.color for c in kept.values()], [c.nearest for c in kept.values()], self.name)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the classes that this table's classes become."""
        return self.target_table().names

    def read(self, source: Source, target_names: Sequence[str] | None = None, name: str | None = None,
             snap: bool = False) -> np.ndarray:
        """Reads a label map of this table's numbers or colours.

        Args:
            source: the path of a picture, a PIL image, or an array: H x W integers or H x W x 3 (or 4) uint8. A
                palette picture is read by its colours where the table has all that it uses, else by its indices.
            target_names: the names of the classes that the result counts in. None: `self.target_names`.
            name: what errors call the source. None: the path.
            snap: give stray colours (smoothed edges, a JPEG) the nearest class among those around them.

        Returns:
            H x W uint8: places in `target_names`, `NO_CLASS` for what is ignored, transparent or 255.

        Raises:
            InputError: a number or a colour that the table lacks, a class that `target_names` lacks, half-transparent
                pixels, 16 bits without `bits: 16`, a broken file. It names the place of the first wrong pixel.
        """
        return read_by(self, read_stored(source, name), target_names or self.target_names, snap)[0]


def table_of(names: Sequence[str], colors: Sequence[Color | None] = (), nearest: Sequence[Sequence[str]] = (),
             name: str = "classes") -> ClassTable:
    """Returns the table of classes that are numbered from 0, each of which becomes itself.

    Args:
        names: 1 to 255 names.
        colors: RGB of each class. Where one is missing, the contest's for its name, else one far from the others.
        nearest: for each class what may stand in for it. Where that is missing or empty, as the contest's table says.
        name: what messages call the table.

    Raises:
        InputError: a name twice, a colour twice, or no or too many names.
    """
    known = {c.name: c for c in CONTEST.classes}
    given = dict(zip(names, colors, strict=False))
    taken = {color for color in given.values() if color}
    free = _spread_colors(taken | {c.color for c in CONTEST.classes})
    classes = []
    for number, (each, others) in enumerate(zip(names, [*nearest, *[()] * (len(names) - len(nearest))], strict=True)):
        alike = known.get(each)
        color = given.get(each) or (alike.color if alike and alike.color not in taken else next(free))
        classes.append(TableClass(number, each, color, each, nearest=tuple(others or (alike.nearest if alike else ()))))
    table = ClassTable(name, tuple(classes))
    _check_table(table)
    if len(table) > MAX_CLASSES:
        raise InputError(f"{name}: {len(table)} classes; at most {MAX_CLASSES} are possible")
    return table


def load_table(name: str | os.PathLike) -> ClassTable:
    """Loads a table of classes.

    Args:
        name: one of `TABLES`, or the path of a YAML file.

    Returns:
        The `ClassTable`.

    Raises:
        InputError: no such table, or a file that is none: the message names the class and what was expected.
    """
    text = os.fspath(name)
    if text in TABLES:
        return _shipped(text)
    if not text.endswith((".yaml", ".yml")) and not os.path.exists(text):
        raise InputError(f"{text}: no such table of classes; expected a YAML file or one of {', '.join(TABLES)}")
    return _read_table(Path(text), text)


@functools.cache
def colored_tables() -> tuple[ClassTable, ...]:
    """Returns the shipped tables whose classes have colours."""
    return tuple(table for table in map(load_table, TABLES) if any(c.color for c in table.classes))


@functools.cache
def _shipped(name):
    return _read_table(_FOLDER / f"{name}.yaml", name)


def _read_table(path, name):
    """The table of a YAML file."""
    try:
        data = yaml.load(path.read_text("utf-8"), _LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); "
                         f"a table of classes was expected") from error
    _check_keys(data, _KEYS, ("classes",), name)
    bits = data.get("bits", 8)
    if bits not in (8, 16):
        raise InputError(f"{name}: bits {bits!r}: expected 8 or 16")
    target = data.get("target")
    if target is not None and (target not in TABLES or target == name):
        raise InputError(f"{name}: target {target!r}: expected one of {', '.join(TABLES)}")
    if not isinstance(data["classes"], list):
        raise InputError(f"{name}: classes: expected a list of classes, found {data['classes']!r}")
    names = _shipped(target).names if target else None
    classes = tuple(_read_class(entry, bits, names, f"{name}: classes[{place}]")
                    for place, entry in enumerate(data["classes"]))
    table = ClassTable(name, classes, str(data.get("title", "")), bits, target)
    _check_table(table)
    return table


def _read_class(entry, bits, targets, where):
    """One class of a file; `targets` are the names that it may become (None: any)."""
    _check_keys(entry, _CLASS_KEYS, ("number", "name"), where)
    number, name, ignore = entry["number"], entry["name"], entry.get("ignore", False)
    where = f"{where} ({name})"
    if type(number) is not int or not 0 <= number < 2**bits:
        raise InputError(f"{where}: number {number!r}: expected 0..{2**bits - 1}, or 16 bits")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: name {name!r}: expected a text")
    if type(ignore) is not bool or ignore and "becomes" in entry:
        raise InputError(f"{where}: ignore {ignore!r}: expected true, or false, or becomes instead of it")
    becomes = None if ignore else entry.get("becomes", name)
    if not ignore and targets is not None and becomes not in targets:
        raise InputError(f"{where}: becomes {becomes!r}, expected one of {', '.join(targets)}, or ignore: true")
    nearest = entry.get("nearest", [])
    if not isinstance(nearest, list) or not all(isinstance(other, str) for other in nearest):
        raise InputError(f"{where}: nearest {nearest!r}: expected a list of names")
    return TableClass(number, name, read_color(entry.get("color"), where), becomes, ignore, tuple(nearest))


def read_color(color: Any, where: str) -> Color | None:
    """Returns the RGB of "#rrggbb" or of a list of three numbers, None of None; raises InputError for anything else."""
    if color is None:
        return None
    if isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        return tuple(bytes.fromhex(color[1:]))
    if isinstance(color, list) and len(color) == 3 and all(type(v) is int and 0 <= v < 256 for v in color):
        return tuple(color)
    raise InputError(f'{where}: color {color!r}: expected "#rrggbb" (with the quotes) or [R, G, B] of 0..255')


def _check_keys(data, known, needed, where):
    """Raises InputError unless `data` is a dict of known keys that has the needed ones."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected the keys {', '.join(known)}, found {data!r}")
    for key in data:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; known here: {', '.join(known)}")
    for key in needed:
        if key not in data:
            raise InputError(f"{where}: no {key}; it needs {' and '.join(needed)}")


def _check_table(table):
    """Raises InputError where there is no class, or where two have one number, name or colour."""
    if not table.classes:
        raise InputError(f"{table.name}: no classes; at least one was expected")
    for what in ("number", "name", "color"):
        first = {}
        for c in table.classes:
            value = getattr(c, what)
            other = first.setdefault(value, c)
            if value is not None and other is not c:
                shown = hex_of(value) if what == "color" else value
                both = "" if what == "name" else f"both {other.name} and {c.name} have "
                raise InputError(f"{table.name}: {both}{what} {shown}{' twice' if what == 'name' else ''}; "
                                 f"give each class its own")


def _spread_colors(taken):
    """Colours without end that are far from each other: hues by the golden ratio, at changing lightness."""
    for place in itertools.count():
        lightness, saturation = (0.35, 0.5, 0.65, 0.8)[place % 4], (0.75, 0.45)[place // 4 % 2]
        color = tuple(round(255 * v) for v in colorsys.hls_to_rgb(place * 0.618034 % 1, lightness, saturation))
        if color not in taken:
            taken.add(color)
            yield color


CONTEST = load_table("contest")
