"""Pictures: open and read files, fit photos to a size, convert to network values and back, lay out sample grids."""
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jiidm.system.errors import InputError


class TooLarge(InputError):
    """A picture of more pixels or bytes than are allowed."""


PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # each further format is a parser more that foreign files reach
MAX_PIXELS = 200_000_000
_header_lock = threading.Lock()
# How to turn a picture upright, by its EXIF orientation. Pillow's exif_transpose also rewrites the EXIF block, and
# fails on the odd blocks of some cameras.
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GAP, _TITLE = 6, 22


def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens and decodes a picture file.

    Args:
        path: a PNG, JPEG, WebP or BMP file.
        max_pixels: the most pixels the file may have by its header; more are refused before they are decoded.

    Returns:
        The PIL image. `image.info["raw_mode"]` is how the file stores pixels, in Pillow's terms ("L;4": grey, 4 bits).

    Raises:
        InputError: the file is missing, broken, too large or no such picture.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder, a picture file was expected; give a file in it")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    try:
        with open(path, "rb") as file:
            return decode_image(file, path, max_pixels)
    except PermissionError as error:
        raise InputError(f"{path}: may not be read (permission denied); change the file's permissions") from error


def decode_image(file: BinaryIO, name: str, max_pixels: int, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decodes an open picture file of one of the `formats`; `name` is what errors call it, the rest as `open_image`.

    Raises:
        TooLarge: its header claims more than `max_pixels`.
        InputError: it is broken or no such picture.
    """
    try:
        image = _open_header(file, name, max_pixels, formats)
        raw_mode = image.tile[0][3] if image.tile else None  # load() clears it
        image.load()
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture in a known format; expected {', '.join(formats)}; convert it"
                         ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name}: broken picture ({reason}); copy or export the file again") from error
    image.info["raw_mode"] = raw_mode
    return image


def _open_header(file, name, max_pixels, formats):
    """The PIL image of an open file, not decoded yet; raises TooLarge where its header claims more pixels."""
    with _header_lock:  # Pillow's own limit is global and lower: phones take photos of 200 megapixels
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height > max_pixels:
        raise TooLarge(f"{name}: {image.width}x{image.height} are {image.width * image.height / 1e6:.0f} megapixels, "
                       f"expected at most {max_pixels / 1e6:g}; make the picture smaller")
    return image


def read_photo(source: str | os.PathLike | Image.Image | np.ndarray, name: str | None = None) -> np.ndarray:
    """Reads a photo as RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures are converted. A transparent picture is
    laid on white, as viewers show it.

    Args:
        source: the path of a picture, a PIL image, or an array (H x W, H x W x 3 or H x W x 4, uint8 or uint16).
        name: what errors call the source. None: the path.

    Returns:
        H x W x 3 uint8, a new array.

    Raises:
        InputError: a missing, broken or truncated file, or floats, whose range is unknown.
    """
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        source = open_image(source)
    name = name or "photo"
    if not isinstance(source, Image.Image):
        return _convert_array(np.asarray(source), name)
    orientation = _read_orientation(source)
    if orientation in _UPRIGHT:
        source = source.transpose(_UPRIGHT[orientation])
    if source.mode.startswith("I"):
        values = np.array(source)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(f"{name}: values {values.min()}..{values.max()}; a photo has 8 or 16 bits; convert it")
        return _convert_array(values.astype(np.uint16), name)
    if source.mode == "F":
        raise InputError(f"{name}: a picture of floats; a photo has 8 or 16 bits a channel; convert it")
    if source.has_transparency_data:
        return _convert_array(np.array(source.convert("RGBA")), name)
    return _convert_array(np.array(source.convert("RGB")), name)


def _convert_array(values: np.ndarray, name: str) -> np.ndarray:
    """H x W (x 3, x 4) uint8 or uint16 as H x W x 3 uint8; raises InputError for any other array."""
    if values.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: values of type {values.dtype}; a photo is an array of uint8 (0..255) or uint16")
    if not (values.ndim == 2 or values.ndim == 3 and values.shape[2] in (3, 4)) or values.size == 0:
        raise InputError(f"{name}: an array of shape {values.shape}; a photo is height x width (x 3 or x 4 channels)")
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3, axis=2)
    if values.shape[2] == 4:
        alpha = values[:, :, 3:].astype(np.uint32)
        values = (values[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return values.astype(np.uint8)


def _read_orientation(image: Image.Image) -> int:
    """The EXIF orientation of a PIL image; 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged block raises anything; the picture itself is good
        return 1


def photo_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns (width, height) of a photo as `read_photo` gives it, from its header; raises InputError."""
    try:
        with open(path, "rb") as file:
            image = _open_header(file, path, MAX_PIXELS, FORMATS)
            return image.size[::-1] if _read_orientation(image) >= 5 else image.size
    except Exception:  # noqa: BLE001 - whatever fails, the full reading finds the words for it
        return read_photo(path).shape[1::-1]


def centre_crop(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns the largest central part of an array (H x W ...) with the aspect ratio width : height, as a view."""
    rows, columns = array.shape[:2]
    if columns * height > rows * width:
        kept_rows, kept_columns = rows, max(1, round(rows * width / height))
    else:
        kept_rows, kept_columns = max(1, round(columns * height / width)), columns
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return array[top:top + kept_rows, left:left + kept_columns]


def fit_photo(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crops a photo (H x W x 3 uint8) centrally to the aspect ratio width : height and resizes it.

    Returns:
        height x width x 3 uint8, a new array. Shrinking averages areas, enlarging is bicubic.
    """
    photo = centre_crop(photo, width, height)
    if photo.shape[:2] == (height, width):
        return photo.copy()
    return resize_photo(photo, width, height)


def resize_photo(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes a whole photo (H x W x 3 uint8) to height x width x 3, in any aspect ratio.

    Shrinking averages areas, enlarging is bicubic.
    """
    shrinks = photo.shape[0] >= height and photo.shape[1] >= width
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def from_pixels(pictures: np.ndarray) -> np.ndarray:
    """Converts N, H, W, 3 uint8 to network values: N, 3, H, W float32 in [-1, 1]."""
    return np.ascontiguousarray(np.asarray(pictures).transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Converts network values, N, 3, H, W around [-1, 1], to N, H, W, 3 uint8, clipped."""
    return np.clip(np.rint((values.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def sheet_of(rows: list[list[np.ndarray]], titles: list[str] | None = None) -> np.ndarray:
    """Lays out a sample grid.

    Args:
        rows: lists of equally many pictures, H x W x 3 uint8; all are resized to the size of the first one.
        titles: a text above each row. None: no titles.

    Returns:
        The grid, H x W x 3 uint8.
    """
    height, width = rows[0][0].shape[:2]
    title = _TITLE if titles else 0
    sheet = Image.new("RGB", (
        _GAP + len(rows[0]) * (width + _GAP), _GAP + len(rows) * (height + title + _GAP)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for r, row in enumerate(rows):
        top = _GAP + r * (height + title + _GAP)
        if titles:
            draw.text((_GAP, top), titles[r], (0, 0, 0), font)
        for c, picture in enumerate(row):
            image = Image.fromarray(picture)
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(image, (_GAP + c * (width + _GAP), top + title))
    return np.asarray(sheet)
