"""Label maps of class numbers: read, check, resize and colour them. The contest's 29 classes are the usual ones."""
import os

import numpy as np
from PIL import Image

from jiidm.data.classes import CONTEST, ClassTable
from jiidm.data.pictures import centre_crop
from jiidm.data.stored import NO_CLASS, list_values, read_stored
from jiidm.system.errors import InputError

CLASSES = CONTEST.names
PALETTE = CONTEST.palette  # 29 x 3 uint8, RGB

# Names that people give to one and the same thing in a photo: a lake's shore looks like a sea's, a hill is a low
# mountain.
NEAR_CLASSES = (
    ("water", "sea", "river", "lake"), ("mountain", "hill", "rock"), ("grass", "field"), ("tree", "plant"),
    ("road", "path"), ("earth", "land", "sand"), ("building", "house"),
)


def read_label_map(source: str | os.PathLike | Image.Image | np.ndarray, num_classes: int = 29, name: str | None = None,
                   allow_no_class: bool = False) -> np.ndarray:
    """Reads a label map and checks each of its values.

    Args:
        source: the path of a PNG, a PIL image, or an H x W integer array. A PNG is grey of 1 to 8 bits or has a
            palette; the palette's indices are the labels then.
        num_classes: labels are 0..num_classes-1.
        name: what errors call the source. None: the path.
        allow_no_class: allow NO_CLASS (255) too.

    Returns:
        H x W uint8, a new array.

    Raises:
        InputError: a broken or lossy file, colour, 16 bits, floats, no pixels, or a value out of range.
    """
    stored = read_stored(source, name)
    if stored.lossy:
        raise InputError(f"{stored.name}: a JPEG; its compression alters labels; save the label map as a grey PNG")
    if stored.numbers is None or stored.alpha is not None or stored.bits > 8:
        kind = "16-bit" if stored.bits > 8 else "colour or transparent"
        raise InputError(f"{stored.name}: a {kind} picture; a label map is an 8-bit grey PNG whose values are the "
                         f"classes; convert it")
    check_values(stored.numbers, num_classes, stored.name, allow_no_class)
    return stored.numbers.astype(np.uint8)


def check_values(labels: np.ndarray, num_classes: int, name: object, allow_no_class: bool = False) -> None:
    """Checks that labels are classes.

    Args:
        labels: H x W integers.
        num_classes: labels are 0..num_classes-1.
        name: what the error calls them.
        allow_no_class: allow NO_CLASS (255) too.

    Raises:
        InputError: names the wrong values, how many pixels have each, and the first place.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if allow_no_class:
        wrong &= labels != NO_CLASS
    if wrong.any():
        also = f" or {NO_CLASS} (no class)" if allow_no_class else ""
        raise InputError(f"{name}: label {list_values(labels, wrong)}; expected 0..{num_classes - 1}{also}; "
                         f"map the values to the {num_classes} classes, or name their table with --classes")


def check_size(labels: np.ndarray, photo_size: tuple[int, int], name: object, photo: object = "") -> None:
    """Checks that labels have their photo's size.

    Args:
        labels: H x W.
        photo_size: (width, height).
        name: what the error calls the labels.
        photo: what the error calls the photo.

    Raises:
        InputError: the sizes differ.
    """
    if labels.shape[::-1] != tuple(photo_size):
        raise InputError(f"{name}: {labels.shape[1]}x{labels.shape[0]}, but its photo {photo}{' ' if photo else ''}is "
                         f"{photo_size[0]}x{photo_size[1]}; the two must have one size")


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes H x W labels to height x width by nearest neighbour with aligned pixel centres.

    Row i of the result is row floor((i + 1/2) * H / height) of the source; columns likewise. The arithmetic is in
    integers, so that no rounding error decides a tie.
    """
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return labels[rows[:, None], columns]


def colorize(labels: np.ndarray, table: ClassTable = CONTEST) -> np.ndarray:
    """Colours labels.

    Args:
        labels: H x W uint8.
        table: the classes; labels are places in it.

    Returns:
        H x W x 3 uint8 RGB, each pixel in its class's colour; black where it has none.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[:len(table)] = table.palette
    return colors[labels]


def fit_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crops H x W labels as `fit_photo` crops a photo of that size, and resizes them to height x width."""
    return resize_labels(centre_crop(labels, width, height), width, height)
