"""The Stanford Background Dataset (Gould, Fulton, Koller, ICCV 2009) in the contest's classes and layout."""
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from jiidm.data.classes import load_table
from jiidm.data.labels import NO_CLASS
from jiidm.data.sets.pairs import read_pair
from jiidm.system.errors import InputError
from jiidm.system.files import read_text


def read_stanford(source: str | Path, split: str, width: int,
                  height: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the pairs of a split, cropped centrally to width x height, in the contest's classes.

    Args:
        source: folder with `images/NAME.jpg`, `labels/NAME.png`, and `train.txt` and `val.txt` with a name a line.
        split: "train" or "val".
        width, height: of the pictures, in pixels.

    Yields:
        (name, photo height x width x 3 uint8, labels height x width uint8); unknown stays NO_CLASS (255).

    Raises:
        InputError: a missing or broken file, an unknown label, or labels of another size than the photo's.
    """
    source = Path(source)
    names, table = split_names(source / f"{split}.txt"), load_table("stanford")
    for name in names:
        yield name, *read_pair(source / "images" / f"{name}.jpg", source / "labels" / f"{name}.png",
                               table.read, width, height)


def split_names(path):
    """The names in a split's text file; raises InputError where it is missing, unreadable or empty."""
    names = read_text(path, "a name of an image on each line").split()
    if not names:
        raise InputError(f"{path}: empty; a name of an image on each line was expected")
    return names


def fill_no_class(labels: np.ndarray, name: str = "label map") -> np.ndarray:
    """Gives each pixel without a class the label of the nearest pixel that has one.

    The contest's test masks have no NO_CLASS. The distance is OpenCV's 5x5 approximation of the Euclidean one.

    Args:
        labels: H x W uint8.
        name: what the error calls them.

    Returns:
        H x W uint8, a new array.

    Raises:
        InputError: no pixel has a class.
    """
    unknown = labels == NO_CLASS
    if unknown.all():
        raise InputError(f"{name}: no pixel has a class; leave this label map out")
    if not unknown.any():
        return labels.copy()
    _, zones = cv2.distanceTransformWithLabels(unknown.astype(np.uint8), cv2.DIST_L2, 5,
                                               labelType=cv2.DIST_LABEL_PIXEL)
    label_of_zone = np.zeros(zones.max() + 1, np.uint8)
    label_of_zone[zones[~unknown]] = labels[~unknown]
    return label_of_zone[zones]
