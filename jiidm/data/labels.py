"""Label maps: the contest's 29 classes and their colours; read, check, resize and colour label maps."""
import os

import numpy as np
from PIL import Image

from jiidm.data.pictures import centre_crop, open_image
from jiidm.system.errors import InputError

CLASSES = (
    "mountain", "sky", "water", "sea", "rock", "tree", "earth", "hill", "river", "sand",
    "land", "building", "grass", "plant", "person", "boat", "waterfall", "wall", "pier", "path",
    "lake", "bridge", "field", "road", "railing", "fence", "ship", "house", "other",
)

# 29 x 3 uint8, RGB: near what the eye expects of a class, and no two alike.
PALETTE = np.array([
    (122, 117, 133), (148, 199, 236), (64, 136, 178), (28, 88, 140), (101, 92, 84),
    (38, 92, 50), (133, 96, 62), (133, 150, 88), (92, 165, 200), (234, 212, 156),
    (176, 140, 96), (196, 112, 92), (120, 176, 68), (72, 142, 84), (244, 116, 152),
    (206, 62, 56), (206, 236, 246), (168, 152, 140), (116, 72, 40), (212, 184, 132),
    (44, 116, 132), (148, 96, 128), (216, 198, 80), (84, 84, 92), (196, 200, 208),
    (160, 104, 52), (120, 32, 64), (228, 148, 72), (178, 88, 196),
], np.uint8)

# Names that people give to one and the same thing in a photo: a lake's shore looks like a sea's, a hill is a low
# mountain.
NEAR_CLASSES = (
    ("water", "sea", "river", "lake"), ("mountain", "hill", "rock"), ("grass", "field"), ("tree", "plant"),
    ("road", "path"), ("earth", "land", "sand"), ("building", "house"),
)

# The value of a pixel without a class. Its one-hot column is zero, and metrics leave it out.
NO_CLASS = 255

# Pillow stretches grey PNGs of 2 and 4 bits to 0..255; these factors bring the stored values back.
_STRETCHED = {"L;2": 85, "L;4": 17}


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
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        image = open_image(source)
    else:
        name = name or "label map"
        image = source
    labels = _stored_values(image, name) if isinstance(image, Image.Image) else np.asarray(image)
    if labels.ndim != 2 or labels.size == 0:
        raise InputError(f"{name}: an array of shape {labels.shape}; a label map is height x width, one class a pixel")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: values of type {labels.dtype}; a label map holds integers 0..{num_classes - 1}")
    check_values(labels, num_classes, name, allow_no_class)
    return labels.astype(np.uint8)


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
        found = list(zip(*np.unique(labels[wrong], return_counts=True), strict=True))
        shown = ", ".join(f"{value} ({count} {'pixels' if count > 1 else 'pixel'})" for value, count in found[:5])
        more = ", ..." if len(found) > 5 else ""
        y, x = (int(place) for place in np.unravel_index(wrong.argmax(), wrong.shape))
        also = f" or {NO_CLASS} (no class)" if allow_no_class else ""
        raise InputError(f"{name}: label {shown}{more}, first at x={x}, y={y}; "
                         f"expected 0..{num_classes - 1}{also}; map the values to the {num_classes} classes")


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


def _stored_values(image: Image.Image, name: str) -> np.ndarray:
    """The stored values of a one-channel PIL image, H x W uint8; raises InputError for any other image."""
    if image.format in ("JPEG", "MPO"):
        raise InputError(f"{name}: a JPEG; its compression alters labels; save the label map as an 8-bit grey PNG")
    if image.mode not in ("1", "L", "P"):
        kind = "16-bit or float" if image.mode[0] in "IF" else "colour or transparent"
        raise InputError(f"{name}: a {kind} picture (mode {image.mode}); a label map is an 8-bit grey PNG whose "
                         f"values are the classes; convert it")
    # only an image from a file knows its raw mode
    raw_mode = image.info.get("raw_mode") or (image.tile[0][3] if getattr(image, "tile", None) else None)
    return np.array(image).astype(np.uint8) // (_STRETCHED.get(raw_mode, 1) if isinstance(raw_mode, str) else 1)


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes H x W labels to height x width by nearest neighbour with aligned pixel centres.

    Row i of the result is row floor((i + 1/2) * H / height) of the source; columns likewise. The arithmetic is in
    integers, so that no rounding error decides a tie.
    """
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return labels[rows[:, None], columns]


def colorize(labels: np.ndarray) -> np.ndarray:
    """Colours H x W uint8 labels: returns H x W x 3 uint8 RGB, each pixel in its class's colour, NO_CLASS black.

    Classes from 29 on use the colours of PALETTE again, from its start.
    """
    colors = PALETTE[np.arange(256) % len(PALETTE)]
    colors[NO_CLASS] = 0
    return colors[labels]


def fit_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crops H x W labels as `fit_photo` crops a photo of that size, and resizes them to height x width."""
    return resize_labels(centre_crop(labels, width, height), width, height)
