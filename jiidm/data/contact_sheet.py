"""A contact sheet of a training folder: photos, each with its coloured label map beside it."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jiidm.data.labels import colorize, fit_labels
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.data.vocabulary import LabelReader
from jiidm.system.errors import InputError

_PAIRS, _COLUMNS, _WIDTH, _HEIGHT, _GAP, _TITLE = 48, 4, 160, 120, 6, 16


def contact_sheet(pairs: list[tuple[Path, Path]], reader: LabelReader) -> Image.Image:
    """Draws at most 48 pairs, evenly spread, cropped to 4:3, with their names. Pixels without a class are black.

    Args:
        pairs: (photo, label map) each; those that cannot be read are left out.
        reader: of the label maps.

    Raises:
        InputError: no pair can be read.
    """
    tiles = []
    for place in np.unique(np.linspace(0, len(pairs) - 1, min(_PAIRS, len(pairs))).astype(int)):
        photo, labels = pairs[place]
        try:
            shown = (fit_photo(read_photo(photo), _WIDTH, _HEIGHT),
                     colorize(fit_labels(reader.read(labels), _WIDTH, _HEIGHT), reader.vocabulary.table))
        except InputError:
            continue  # the report names it
        tiles.append((photo.stem, np.concatenate(shown, 1)))
    if not tiles:
        raise InputError("contact sheet: no photo with a label map can be read; mend what the report names")
    across, down = 2 * _WIDTH + _GAP, _HEIGHT + _TITLE + _GAP
    sheet = Image.new("RGB", (_GAP + across * min(_COLUMNS, len(tiles)), _GAP + down * -(-len(tiles) // _COLUMNS)),
                      (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (name, tile) in enumerate(tiles):
        left, top = _GAP + across * (number % _COLUMNS), _GAP + down * (number // _COLUMNS)
        sheet.paste(Image.fromarray(tile), (left, top))
        draw.text((left, top + _HEIGHT + 1), name[:48], (0, 0, 0), font)
    return sheet
