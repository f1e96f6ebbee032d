"""Reading a label map by a table of classes: by its numbers, its palette or its colours."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jiidm.data.colors import STRAY, codes_of, different, exact_places, hex_of, near_share, nearest_places, snap_strays
from jiidm.data.stored import NO_CLASS, Stored, first_place, list_values
from jiidm.system.errors import InputError

if TYPE_CHECKING:
    from jiidm.data.classes import ClassTable

LEAST_MATCH = 0.5  # of the pixels must be near a table's colours to be read by it; of a photo next to none are


def read_by(table: ClassTable, stored: Stored, target_names: Sequence[str],
            snap: bool = False) -> tuple[np.ndarray, int]:
    """Reads a label map by a table; arguments and errors as `ClassTable.read`.

    Returns:
        The labels, H x W uint8, and how many pixels `snap` gave a class.
    """
    codes = None if stored.colors is None else codes_of(stored.colors)
    palette = colored(table)[0]
    if stored.numbers is None or codes is not None and means_colors(different(codes), table):
        if not len(palette):
            raise InputError(f"{stored.name}: a colour picture, but the table {table.name} has no colours; "
                             f"give a label map of its numbers, or a table that has")
        places, strays = _color_places(table, stored, codes, snap)
    else:
        places, strays = _number_places(table, stored), 0
    return _become(table, stored, places, target_names), strays


def check_numbers(stored: Stored, bits: int = 8) -> None:
    """Raises InputError where the numbers of a picture cannot be labels: JPEG, more than `bits`, half transparent."""
    if stored.lossy:
        raise InputError(f"{stored.name}: a JPEG; its compression alters labels; save the label map as a grey PNG")
    if stored.bits > bits:
        raise InputError(f"{stored.name}: a 16-bit picture, {bits} bits were expected; convert it, or give "
                         f"a table with bits: 16 (--classes)")
    _refuse_half_transparent(stored)


def colored(table: ClassTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns the colours of a table, N x 3 uint8 RGB, and the places of their classes; some have none."""
    places = [place for place, c in enumerate(table.classes) if c.color is not None]
    return table.palette[places], np.array(places, np.int16)


def means_colors(codes: np.ndarray, table: ClassTable) -> bool:
    """Whether colours are a table's: it has all of them, and not only for what it ignores."""
    palette, places = colored(table)
    if not len(palette):
        return False
    found = exact_places(codes, palette)
    return bool((found != STRAY).all()) and not all(table.classes[places[f]].ignore for f in found)


def _number_places(table, stored):
    """The place in the table of each pixel's number, H x W int16; `len(table)` for 255 without a class."""
    check_numbers(stored, table.bits)
    places = np.full(2**table.bits, STRAY, np.int16)
    if table.bits == 8:
        places[NO_CLASS] = len(table)
    places[[c.number for c in table.classes]] = np.arange(len(table))
    numbers = stored.numbers
    wrong = (numbers < 0) | (numbers >= len(places))
    found = places[np.where(wrong, 0, numbers)]
    wrong |= found == STRAY
    if stored.alpha is not None:
        wrong &= stored.alpha > 0
        found[stored.alpha == 0] = len(table)
    if wrong.any():
        raise InputError(f"{stored.name}: label {list_values(numbers, wrong)}; expected the numbers of the table "
                         f"{table.name}, {_ranges(c.number for c in table.classes)}; add them to it")
    return found


def _color_places(table, stored, codes, snap):
    """The place in the table of each pixel's colour, as `_number_places`, and how many colours were strays."""
    palette, of_color = colored(table)
    exact = exact_places(codes, palette)
    stray = exact == STRAY
    if not snap:
        _refuse_half_transparent(stored)
    if stored.alpha is not None:
        stray = (stray | (stored.alpha < 255)) & (stored.alpha > 0)
        exact[stored.alpha < 255] = STRAY
    found, count = exact, int(stray.sum())
    if count:
        if not snap or near_share(codes, palette) < LEAST_MATCH:
            raise InputError(stray_message(stored, codes, stray, [table]))
        found = snap_strays(codes, palette, exact)
    places = of_color[found]
    if stored.alpha is not None:
        places[stored.alpha == 0] = len(table)
    return places, count


def _become(table, stored, places, target_names):
    """What the classes at `places` become, H x W uint8; raises InputError where `target_names` lack one."""
    becomes = np.append(table.targets(target_names), NO_CLASS)
    labels = becomes[places]
    lacking = labels < 0
    if lacking.any():
        c = table.classes[places[first_place(lacking)]]
        y, x = first_place(lacking)
        raise InputError(
            f"{stored.name}: {c.name} at x={x}, y={y} becomes {c.becomes} by the table {table.name}, which is none of "
            f"the weights' {len(target_names)} classes: {', '.join(target_names)}"
        )
    return labels.astype(np.uint8)


def stray_message(stored: Stored, codes: np.ndarray, stray: np.ndarray, tables: Sequence[ClassTable]) -> str:
    """Returns what to say of colours that the tables lack: how many pixels, where, and what is near.

    Args:
        stored: the label map.
        codes: H x W, its colours.
        stray: H x W, which colours the first table lacks.
        tables: the tables that were tried, the best first.
    """
    y, x = first_place(stray)
    count, code = int(stray.sum()), codes[y, x]
    text = f"{stored.name}: {count} {'pixels' if count > 1 else 'pixel'} ({100 * count / stray.size:.1f} %)"
    first = f"first {hex_of((code >> 16, code >> 8 & 255, code & 255))} at x={x}, y={y}"
    if near_share(codes, colored(tables[0])[0]) >= LEAST_MATCH:
        return (f"{text} of colours that the table {tables[0].name} lacks, {first}; smoothed edges and JPEGs have "
                f"such; export without smoothing as PNG, or give them the class beside them with --snap (snap=True)")
    lack = "no table has" if len(tables) > 1 else f"the table {tables[0].name} lacks"
    return (f"{text} of colours that {lack}, {first}; the nearest are {', '.join(_nearest_classes(code, tables))}; "
            f"give a table of your colours with --classes")


def _nearest_classes(code, tables):
    """The three classes with the nearest colours, as "sky #94c7ec of contest"."""
    found = []
    for table in tables:
        palette, places = colored(table)
        for color, place in zip(palette, places, strict=True):
            distance = int(nearest_places(np.array([code]), color[None])[1][0])
            found.append((distance, f"{table.classes[place].name} {hex_of(color)} of {table.name}"))
    return [text for _, text in sorted(found)[:3]]


def _refuse_half_transparent(stored):
    if stored.alpha is None:
        return
    half = (stored.alpha > 0) & (stored.alpha < 255)
    if half.any():
        y, x = first_place(half)
        raise InputError(f"{stored.name}: {half.sum()} half-transparent pixels, the first at x={x}, y={y}; a "
                         f"pixel has a class or, fully transparent, none; export it without smoothing")


def _ranges(numbers):
    """"0..28" or "0..10, 12..90" of numbers."""
    numbers, parts = sorted(numbers), []
    for _, run in itertools.groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        run = [number for _, number in run]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return ", ".join(parts[:5]) + (", ..." if len(parts) > 5 else "")
