"""Colours of classes: which class a colour means, exactly, or for strays by the classes around them."""
import cv2
import numpy as np

STRAY = -1
_CODES = 1 << 24
# A JPEG changes flat areas by a few levels. A pixel this near (Euclidean, RGB levels) to a class is one of it where its
# eight neighbours are too; on an edge it may as well be a mixture of two others.
_NEAR = 12
_RADII = 2, 8  # of the windows in which a stray looks for classes, in pixels; 8 is a block of a JPEG


def codes_of(colors: np.ndarray) -> np.ndarray:
    """Returns one int32 for each colour (... x 3 uint8 RGB)."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def hex_of(color) -> str:
    """Returns a colour (three numbers, 0..255) as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def different(codes: np.ndarray) -> np.ndarray:
    """Returns the different codes, sorted; quicker than `np.unique` for large pictures."""
    seen = np.zeros(_CODES, bool)
    seen[codes] = True
    return np.flatnonzero(seen).astype(np.int32)


def exact_places(codes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Returns for each code its place in a palette (N x 3 uint8 RGB), or `STRAY`; int16, of the codes' shape."""
    known = codes_of(palette)
    order = np.argsort(known)
    at = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    return np.where(known[order][at] == codes, order[at], STRAY).astype(np.int16)


def nearest_places(codes: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each of N codes the place of the nearest colour in a palette, and the squared distance to it."""
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)
    place, least = np.zeros(len(codes), np.int16), np.full(len(codes), np.iinfo(np.int32).max, np.int32)
    for k, color in enumerate(palette.astype(np.int32)):
        distance = ((colors - color) ** 2).sum(1)
        closer = distance < least
        place[closer], least[closer] = k, distance[closer]
    return place, least


def near_share(codes: np.ndarray, palette: np.ndarray) -> float:
    """Returns which share of some codes are near a colour of a palette, 0 to 1; of at most 10 000 of them."""
    some = codes.ravel()[:: max(1, codes.size // 10_000)]
    return float((nearest_places(some, palette)[1] <= _NEAR**2).mean())


def snap_strays(codes: np.ndarray, palette: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Gives each stray colour the nearest class among those in its neighbourhood.

    The mixture of two classes on a smoothed edge may have the colour of a third one, which a search through the whole
    palette would find there.

    Args:
        codes: H x W, of a picture.
        palette: N x 3 uint8 RGB.
        exact: H x W, the place of each pixel's colour in the palette, or `STRAY`.

    Returns:
        H x W int16, places in the palette; all `STRAY` where nothing is near any class.
    """
    places = np.where(exact == STRAY, _solid_places(codes, palette), exact)
    known = places != STRAY
    if not known.any():
        return places
    for radius in _RADII:
        _choose_among_neighbours(codes, palette, places, known, radius)
    if (places == STRAY).any():
        _, zones = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5,
                                                   labelType=cv2.DIST_LABEL_PIXEL)
        of_zone = np.zeros(zones.max() + 1, np.int16)
        of_zone[zones[known]] = places[known]
        places = np.where(places == STRAY, of_zone[zones], places)
    return places


def _solid_places(codes, palette):
    """The place of the nearest colour, where it is near and the same for all eight neighbours; else `STRAY`."""
    found = different(codes)
    place, distance = nearest_places(found, palette)
    table = np.full(_CODES, STRAY, np.int16)
    table[found] = np.where(distance <= _NEAR**2, place, STRAY)
    places = table[codes]
    window = np.ones((3, 3), np.uint8)
    solid = cv2.erode(places, window) == cv2.dilate(places, window)
    return np.where(solid, places, STRAY)


def _choose_among_neighbours(codes, palette, places, known, radius):
    """Gives strays the class with the nearest colour among the known pixels within `radius`; changes `places`."""
    rows, columns = np.nonzero(places == STRAY)
    strays = codes[rows, columns]
    colors = np.stack([strays >> 16, strays >> 8 & 255, strays & 255], 1)
    least = np.full(len(strays), np.iinfo(np.int32).max, np.int32)
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    for k in np.unique(places[known]):
        around = cv2.dilate((known & (places == k)).astype(np.uint8), window)[rows, columns] > 0
        distance = ((colors - palette[k].astype(np.int32)) ** 2).sum(1)
        closer = around & (distance < least)
        places[rows[closer], columns[closer]] = k
        least[closer] = distance[closer]
