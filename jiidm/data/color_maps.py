"""Colour-coded label maps: pictures in which each class has a colour, read by the tables that people use."""
import numpy as np

from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE
from jiidm.data.sets.stanford import fill_no_class
from jiidm.system.errors import InputError

# Colours of other data sets, for the classes that this one has too.
_ADE20K = {
    "wall": (120, 120, 120), "building": (180, 120, 120), "sky": (6, 230, 230), "tree": (4, 200, 3),
    "road": (140, 140, 140), "grass": (4, 250, 7), "person": (150, 5, 61), "earth": (120, 120, 70),
    "mountain": (143, 255, 140), "plant": (204, 255, 4), "water": (61, 230, 250), "house": (255, 9, 224),
    "sea": (9, 7, 230), "field": (112, 9, 255), "fence": (255, 184, 6), "rock": (255, 41, 10),
    "railing": (255, 61, 6), "sand": (160, 150, 20), "path": (255, 31, 0), "river": (11, 200, 200),
    "bridge": (255, 82, 0), "hill": (255, 102, 0),
}
_CITYSCAPES = {
    "road": (128, 64, 128), "path": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "tree": (107, 142, 35), "grass": (152, 251, 152), "sky": (70, 130, 180),
    "person": (220, 20, 60), "other": (0, 0, 142),
}
COLOR_TABLES = {
    "jiidm": dict(zip(CLASSES, map(tuple, PALETTE.tolist()), strict=True)),
    "ADE20K": _ADE20K,
    "Cityscapes": _CITYSCAPES,
}
_LEAST_MATCH = 0.5  # of the pixels; a photo matches next to none


def read_color_map(picture, name="label map"):
    """Reads a colour-coded label map by the table of `COLOR_TABLES` that fits most of its pixels.

    Args:
        picture: H x W x 3 uint8 RGB.
        name: what errors call the picture.

    Returns:
        The labels, H x W uint8, and the name of the table. A pixel of another colour, such as on a smoothed edge, has
        the label of the nearest pixel that fits.

    Raises:
        InputError: fewer than half of the pixels have a colour of one table.
    """
    codes = _codes(picture.astype(np.uint32))
    best, best_match, best_table = None, -1.0, ""
    for table, colors in COLOR_TABLES.items():
        labels = np.full(codes.shape, NO_CLASS, np.uint8)
        for label, color in colors.items():
            labels[codes == _codes(np.array(color, np.uint32))] = CLASSES.index(label)
        match = float((labels != NO_CLASS).mean())
        if match > best_match:
            best, best_match, best_table = labels, match, table
    if best_match < _LEAST_MATCH:
        raise InputError(
            f"{name}: {100 * best_match:.0f} % of its pixels have a colour of {best_table}, the nearest known table; "
            f"expected the colours of {', '.join(COLOR_TABLES)}, or a grey or palette PNG of class numbers"
        )
    return fill_no_class(best, name), best_table


def _codes(rgb):
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
