"""What a generator is given, read, checked and fitted: label maps, style photos and names."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm.data.labels import CLASSES, fit_labels, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.system.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """A batch at a network's size.

    `masks` is N, H, W uint8; `labels` the masks at their own sizes; `styles` N, H, W, 3 uint8; `style_labels` N, H, W
    uint8, or None; `names` what each picture's noise is drawn for; `sizes` the width and height of each result (None:
    as drawn); `single` whether one mask was given, not a list.
    """

    masks: np.ndarray
    labels: list[np.ndarray]
    styles: np.ndarray
    style_labels: np.ndarray | None
    names: list[str]
    sizes: list[tuple[int, int] | None]
    single: bool

    def masks_at(self, width: int, height: int) -> np.ndarray:
        """The masks at another size: N, height, width uint8."""
        return np.stack([resize_labels(label, width, height) for label in self.labels])

    def finish(self, pictures: list[Image.Image]) -> Image.Image | list[Image.Image]:
        """The pictures at their sizes: a list, or the only one where one mask was given."""
        resized = [picture if size in (None, picture.size) else picture.resize(size, Image.Resampling.LANCZOS)
                   for picture, size in zip(pictures, self.sizes, strict=True)]
        return resized[0] if self.single else resized


def prepare_inputs(mask, style, names, size, num_classes: int, width: int, height: int, style_labels=None) -> Inputs:
    """Reads, checks and fits the arguments of `Generator.infer`.

    Args:
        mask, style, names, size: as there.
        num_classes: how many labels the network knows.
        width, height: the network's size in pixels.
        style_labels: as there, or None.

    Raises:
        InputError: lists of different lengths, and anything that cannot be read or used.
    """
    single = not isinstance(mask, list | tuple)
    masks, styles = ([mask], [style]) if single else (mask, style)
    if not isinstance(styles, list | tuple) or len(masks) != len(styles) or not masks:
        raise InputError("mask and style: expected one of each, or two lists of equal length")
    fixed = isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not fixed and size not in ("model", "mask"):
        raise InputError(f'size {size!r}: expected "model", "mask" or a width and a height')
    names = [Path(m).stem if isinstance(m, str | Path) else "" for m in masks] if names is None else names
    if isinstance(names, str) or len(names) != len(masks):
        raise InputError(f"names {names!r}: expected a list of {len(masks)}, one for each mask")
    labels = [read_label_map(m, num_classes) for m in masks]
    read = [read_photo(s) for s in styles]
    photos = np.stack([fit_photo(photo, width, height) for photo in read])
    maps = None
    if style_labels is not None:
        given = [style_labels] if single else style_labels
        if not isinstance(given, list | tuple) or len(given) != len(read):
            raise InputError(f"style_labels: expected one label map, or as many as there are styles, {len(read)}")
        maps = np.stack([read_style_labels(m, photo, width, height) for m, photo in zip(given, read, strict=True)])
    own = [label.shape[::-1] for label in labels]
    sizes = own if size == "mask" else [size if fixed else None] * len(labels)
    masks = np.stack([resize_labels(label, width, height) for label in labels])
    return Inputs(masks, labels, photos, maps, list(names), sizes, single)


def read_style_labels(source: str | Path | Image.Image | np.ndarray, photo: np.ndarray, width: int,
                      height: int) -> np.ndarray:
    """Reads the label map of a style photo and fits it as `fit_photo` fits the photo.

    Args:
        source: a path, a PIL image or an array; of any of the classes, or without one (NO_CLASS).
        photo: the photo, H x W x 3 uint8, as it was read.
        width, height: of the result.

    Raises:
        InputError: no label map, or one of another aspect than the photo's.
    """
    labels = read_label_map(source, len(CLASSES), allow_no_class=True)
    if abs(labels.shape[0] * photo.shape[1] - labels.shape[1] * photo.shape[0]) > sum(labels.shape + photo.shape[:2]):
        name = source if isinstance(source, str | Path) else "style_labels"
        raise InputError(f"{name}: {labels.shape[1]}x{labels.shape[0]}, but its photo is {photo.shape[1]}x"
                         f"{photo.shape[0]}; the two must have one aspect")
    return fit_labels(labels, width, height)
