"""What a label map stores, before anybody knows what it means: numbers, colours, and which pixels are painted."""
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jiidm.data.pictures import open_image
from jiidm.system.errors import InputError

Source = str | os.PathLike | Image.Image | np.ndarray

# The value of a pixel without a class. Its one-hot column is zero, and metrics leave it out.
NO_CLASS = 255

# Pillow stretches grey PNGs of 2 and 4 bits to 0..255; these factors bring the stored values back.
_STRETCHED = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class Stored:
    """The pixels of a label map.

    Args:
        name: what errors call it.
        numbers: H x W integers, of a grey picture, of a palette's indices or of an array; None for a colour picture.
        colors: H x W x 3 uint8 RGB, of a colour picture or of a palette; None for a grey picture.
        alpha: H x W uint8; None where every pixel is painted.
        bits: 16 where the picture stores more than 8 bits a number, else 8.
        lossy: whether it is a JPEG.
    """

    name: str
    numbers: np.ndarray | None
    colors: np.ndarray | None
    alpha: np.ndarray | None = None
    bits: int = 8
    lossy: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.colors if self.numbers is None else self.numbers).shape[:2]


def read_stored(source: Source, name: str | None = None) -> Stored:
    """Reads the pixels of a label map.

    Args:
        source: the path of a picture, a PIL image, or an array: H x W integers, or H x W x 3 (RGB) or 4 (RGBA) uint8.
        name: what errors call the source. None: the path.

    Raises:
        InputError: a missing or broken file, floats, no pixels, or another kind of picture.
    """
    if isinstance(source, str | os.PathLike):
        return _of_image(open_image(source), name or os.fspath(source))
    name = name or "label map"
    return _of_image(source, name) if isinstance(source, Image.Image) else _of_array(np.asarray(source), name)


def _of_array(array, name):
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8 and array.size:
        return Stored(name, None, array[..., :3], _painted(array[..., 3:]))
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: an array of shape {array.shape}; a label map is height x width, one class a pixel, "
                         f"or height x width x 3 uint8, one colour a pixel")
    if array.dtype.kind not in "iu":
        raise InputError(f"{name}: values of type {array.dtype}; a label map holds integers, one class a pixel")
    return Stored(name, array, None)


def _of_image(image, name):
    lossy = image.format in ("JPEG", "MPO")
    if image.mode in ("LA", "RGBA"):
        array = np.array(image)
        colors = None if image.mode == "LA" else array[..., :3]
        return Stored(name, array[..., 0] if colors is None else None, colors, _painted(array[..., -1:]))
    if image.mode == "RGB":
        return Stored(name, None, np.array(image), lossy=lossy)
    if image.mode[0] == "I":
        return Stored(name, np.array(image).astype(np.int64), None, bits=16)
    if image.mode not in ("1", "L", "P"):
        raise InputError(f"{name}: a picture of mode {image.mode}; a label map is a PNG of class numbers, grey or with "
                         f"a palette, or of one RGB colour a class; convert it")
    # only an image from a file knows its raw mode
    raw_mode = image.info.get("raw_mode") or (image.tile[0][3] if getattr(image, "tile", None) else None)
    numbers = np.array(image).astype(np.uint8) // (_STRETCHED.get(raw_mode, 1) if isinstance(raw_mode, str) else 1)
    colors = np.array(image.convert("RGB")) if image.mode == "P" else None
    return Stored(name, numbers, colors, lossy=lossy)


def _painted(alpha):
    """H x W of H x W x 1, or None where nothing is transparent."""
    return None if (alpha == 255).all() else alpha[..., 0]


def list_values(values: np.ndarray, wrong: np.ndarray) -> str:
    """Returns wrong values in words: "29 (1 pixel), 77 (5 pixels), first at x=3, y=2".

    Args:
        values: H x W integers.
        wrong: H x W, which of them are wrong; at least one.
    """
    found = list(zip(*np.unique(values[wrong], return_counts=True), strict=True))
    shown = ", ".join(f"{value} ({count} {'pixels' if count > 1 else 'pixel'})" for value, count in found[:5])
    y, x = first_place(wrong)
    return f"{shown}{', ...' if len(found) > 5 else ''}, first at x={x}, y={y}"


def first_place(wrong: np.ndarray) -> tuple[int, int]:
    """Returns the row and the column of the first true value."""
    y, x = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(y), int(x)
