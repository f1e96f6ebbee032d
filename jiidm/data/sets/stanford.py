"""The Stanford Background Dataset (Gould, Fulton, Koller, ICCV 2009) in the contest's classes and layout."""
from pathlib import Path

import cv2
import numpy as np

from jiidm.data.labels import CLASSES, NO_CLASS, fit_labels, read_label_map
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.system.errors import InputError

# The contest's name for each of the dataset's classes 0..7: its "foreground object" is the contest's "other".
STANFORD_CLASSES = ("sky", "tree", "road", "grass", "water", "building", "mountain", "other")

_TO_CONTEST = np.full(256, NO_CLASS, np.uint8)
_TO_CONTEST[:len(STANFORD_CLASSES)] = [CLASSES.index(name) for name in STANFORD_CLASSES]


def read_stanford(source, split, width, height):
    """Yields (name, photo height x width x 3 uint8, labels height x width uint8) of the split "train" or "val".

    `source` holds `images/NAME.jpg`, `labels/NAME.png` and `train.txt`, `val.txt` with a name a line. Photo and labels
    are cropped centrally to width : height, upright photos too. Labels are the contest's; unknown stays NO_CLASS (255).
    Raises InputError for a missing or broken file, an unknown label, and labels that are not of the photo's size.
    """
    source = Path(source)
    names = split_names(source / f"{split}.txt")
    for name in names:
        photo = read_photo(source / "images" / f"{name}.jpg")
        path = source / "labels" / f"{name}.png"
        labels = read_label_map(path, len(STANFORD_CLASSES), allow_no_class=True)
        if labels.shape != photo.shape[:2]:
            raise InputError(f"{path}: {labels.shape[1]}x{labels.shape[0]}, but its photo is "
                             f"{photo.shape[1]}x{photo.shape[0]}; the two must have one size")
        yield name, fit_photo(photo, width, height), fit_labels(_TO_CONTEST[labels], width, height)


def split_names(path):
    """Returns the names in a split's text file; raises InputError where it is missing, unreadable or empty."""
    try:
        names = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: cannot be read ({reason}); "
                         f"the folder of the Stanford Background Dataset was expected") from error
    if not names:
        raise InputError(f"{path}: empty; a name of an image on each line was expected")
    return names


def fill_no_class(labels, name="label map"):
    """Returns H x W labels in which each NO_CLASS pixel has the label of the nearest labelled one; the contest's test
    masks have no 255.

    "Nearest" is OpenCV's 5x5 approximation of the Euclidean distance. Raises InputError where no pixel has a label.
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
