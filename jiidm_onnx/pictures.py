"""Label maps and photos: read, check, fit, and resize as OpenCV does in jiidm."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jiidm_onnx.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 200_000_000
_STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow stretches grey PNGs of 2 and 4 bits to 0..255
_CUBIC = -0.75  # the free number of the cubic kernel (Keys 1981), as in OpenCV


def _open(path):
    """The decoded PIL image of a file and Pillow's name of how it stores pixels."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width}x{image.height}, expected at most {MAX_PIXELS / 1e6:g} "
                                 f"megapixels; make the picture smaller")
            raw_mode = image.tile[0][3] if image.tile else ""
            image.load()
            return image, raw_mode
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable picture ({reason}); expected {', '.join(FORMATS)}") from error


def read_label_map(source: str | os.PathLike | Image.Image | np.ndarray, num_classes: int) -> np.ndarray:
    """Reads a label map and checks each of its values.

    Args:
        source: the path of a PNG, grey of 1 to 8 bits or with a palette; a PIL image; or an H x W integer array.
        num_classes: labels are 0..num_classes-1.

    Returns:
        H x W uint8.

    Raises:
        InputError: a broken or lossy file, colour, no pixels, or a value out of range.
    """
    name, raw_mode = "label map", ""
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        source, raw_mode = _open(name)
    if isinstance(source, Image.Image):
        if source.format in ("JPEG", "MPO"):
            raise InputError(f"{name}: a JPEG; its compression alters labels; save the label map as an 8-bit grey PNG")
        if source.mode not in ("1", "L", "P"):
            raise InputError(f"{name}: a picture of mode {source.mode}; a label map is an 8-bit grey PNG whose values "
                             f"are the classes; convert it")
        source = np.array(source).astype(np.uint8) // (_STRETCHED.get(raw_mode, 1) if isinstance(raw_mode, str) else 1)
    labels = np.asarray(source)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: an array of shape {labels.shape} and type {labels.dtype}; a label map is height x "
                         f"width integers, one class a pixel")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        y, x = (int(place) for place in np.unravel_index(wrong.argmax(), wrong.shape))
        raise InputError(f"{name}: label {labels[y, x]} at x={x}, y={y}; expected 0..{num_classes - 1}; map the values "
                         f"to the {num_classes} classes")
    return labels.astype(np.uint8)


def read_photo(source: Any) -> np.ndarray:
    """Reads a photo as H x W x 3 uint8 RGB, upright; a transparent picture is laid on white.

    Args:
        source: the path of a picture, a PIL image, or an H x W x 3 uint8 array.

    Raises:
        InputError: a file that is no picture, or another array.
    """
    name = "photo"
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        source, _ = _open(name)
    if isinstance(source, Image.Image):
        source = _upright(source)
        if source.mode.startswith("I") or source.mode == "F":
            raise InputError(f"{name}: a picture of mode {source.mode}; a photo has 8 bits a channel; convert it")
        if "A" in source.getbands() or "transparency" in source.info:
            source = source.convert("RGBA")
            white = Image.new("RGBA", source.size, "white")
            source = Image.alpha_composite(white, source)
        source = np.array(source.convert("RGB"))
    photo = np.asarray(source)
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.size == 0 or photo.dtype != np.uint8:
        raise InputError(f"{name}: an array of shape {photo.shape} and type {photo.dtype}; a photo is height x width x "
                         f"3 uint8")
    return photo


def _upright(image):
    """The image as its EXIF orientation says; as it is where the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - a damaged block raises anything; the picture itself is good
        return image


def fit_photo(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crops a photo (H x W x 3 uint8) centrally to the aspect ratio width : height and resizes it."""
    rows, columns = photo.shape[:2]
    if columns * height > rows * width:
        kept_rows, kept_columns = rows, max(1, round(rows * width / height))
    else:
        kept_rows, kept_columns = max(1, round(columns * height / width)), columns
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return resize_photo(photo[top:top + kept_rows, left:left + kept_columns], width, height)


def resize_photo(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes H x W x 3 uint8 to height x width x 3: shrinking averages areas, enlarging is bicubic."""
    rows, columns = photo.shape[:2]
    if (rows, columns) == (height, width):
        return photo
    matrix = _area_matrix if rows >= height and columns >= width else _cubic_matrix
    values = matrix(rows, height) @ photo.reshape(rows, -1).astype(np.float32)
    values = np.einsum("rci,wc->rwi", values.reshape(height, columns, 3), matrix(columns, width), optimize=True)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _area_matrix(size, new_size):
    """new_size x size: the part of each old pixel's length within a new one, over the new one's length."""
    edges = np.arange(new_size + 1) * (size / new_size)
    starts, ends = edges[:-1, None], edges[1:, None]
    old = np.arange(size)
    overlap = np.minimum(ends, old + 1) - np.maximum(starts, old)
    return (np.maximum(overlap, 0) * (new_size / size)).astype(np.float32)


def _cubic_matrix(size, new_size):
    """new_size x size: four weights a row (Keys 1981), half-pixel centres, the edge repeated."""
    places = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    matrix = np.zeros((new_size, size), np.float32)
    for tap in range(-1, 3):
        old = np.floor(places) + tap
        d = np.abs(places - old)
        near = (_CUBIC + 2) * d**3 - (_CUBIC + 3) * d**2 + 1
        far = _CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(new_size), np.clip(old, 0, size - 1).astype(int)), np.where(d <= 1, near, far))
    return matrix


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes H x W labels by nearest neighbour with aligned pixel centres, in integers."""
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return labels[rows[:, None], columns]


def from_pixels(pictures: np.ndarray) -> np.ndarray:
    """N, H, W, 3 uint8 -> network values N, 3, H, W float32 in [-1, 1]."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Network values N, 3, H, W -> N, H, W, 3 uint8, clipped."""
    return np.clip(np.rint((values.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def name_of(mask: object) -> str:
    """What a picture's noise is drawn for: the mask's file name without suffix, "" for what is no file."""
    return Path(mask).stem if isinstance(mask, (str, os.PathLike)) else ""
