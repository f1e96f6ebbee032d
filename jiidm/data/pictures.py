"""Photos and pictures: opened, read, fitted to a size, turned into network values, laid out as a sheet."""
import os
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jiidm.system.errors import InputError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
# How to turn a picture upright, by its EXIF orientation. Own table: Pillow's exif_transpose also writes the EXIF block
# anew, and fails on the odd blocks of some cameras.
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GAP, _TITLE = 6, 22


def open_image(path):
    """Returns the decoded PIL image in the file `path`; raises InputError where it is missing, broken or no picture.

    `image.info["raw_mode"]` is how the file stores its pixels, in Pillow's terms ("L;4": grey of 4 bits).
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder, a picture file was expected; give a file in it")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    try:
        image = Image.open(path)
        raw_mode = image.tile[0][3] if image.tile else None  # load() clears it
        image.load()
    except PermissionError as error:
        raise InputError(f"{path}: may not be read (permission denied); change the file's permissions") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: not a picture; a PNG or JPEG file was expected") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
            Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: broken picture ({reason}); copy or export the file again") from error
    image.info["raw_mode"] = raw_mode
    return image


def read_photo(source, name=None):
    """Reads a photo as H x W x 3 uint8 RGB, a new array.

    `source` is the path of a picture, a PIL image or an array (H x W, H x W x 3 or H x W x 4, uint8 or uint16). The
    EXIF orientation is applied; grey, palette, CMYK and 16-bit pictures are converted; a transparent picture is laid on
    white, as viewers show it. `name` is what errors call the source (default: the path).
    Raises InputError for a missing, broken or truncated file, and for floats, whose range is unknown.
    """
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        source = open_image(source)
    name = name or "photo"
    if not isinstance(source, Image.Image):
        return _photo_of_array(np.asarray(source), name)
    orientation = _orientation(source)
    if orientation in _UPRIGHT:
        source = source.transpose(_UPRIGHT[orientation])
    if source.mode.startswith("I"):
        values = np.array(source)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(f"{name}: values {values.min()}..{values.max()}; a photo has 8 or 16 bits; convert it")
        return _photo_of_array(values.astype(np.uint16), name)
    if source.mode == "F":
        raise InputError(f"{name}: a picture of floats; a photo has 8 or 16 bits a channel; convert it")
    if source.has_transparency_data:
        return _photo_of_array(np.array(source.convert("RGBA")), name)
    return _photo_of_array(np.array(source.convert("RGB")), name)


def _photo_of_array(values, name):
    """Returns an H x W (x 3, x 4) uint8 or uint16 array as H x W x 3 uint8; raises InputError for any other."""
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


def _orientation(image):
    """Returns the EXIF orientation of a PIL image, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged block raises anything; the picture itself is good
        return 1


def photo_size(path):
    """Returns (width, height) of the photo `path` as `read_photo` gives it, from its header; raises InputError."""
    try:
        with Image.open(path) as image:
            return image.size[::-1] if _orientation(image) >= 5 else image.size
    except Exception:  # noqa: BLE001 - any failure: let the full reading find the words
        return read_photo(path).shape[1::-1]


def centre_crop(array, width, height):
    """Returns the largest central part of `array` (H x W ...) with the aspect width : height, as a view."""
    rows, columns = array.shape[:2]
    if columns * height > rows * width:
        kept_rows, kept_columns = rows, max(1, round(rows * width / height))
    else:
        kept_rows, kept_columns = max(1, round(columns * height / width)), columns
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return array[top:top + kept_rows, left:left + kept_columns]


def fit_photo(photo, width, height):
    """Crops H x W x 3 uint8 centrally to width : height and resizes it; returns height x width x 3 uint8.

    Shrinking averages areas, enlarging is bicubic.
    """
    photo = centre_crop(photo, width, height)
    if photo.shape[:2] == (height, width):
        return photo.copy()
    shrinks = photo.shape[0] >= height and photo.shape[1] >= width
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)



def from_pixels(pictures):
    """N, H, W, 3 uint8 -> N, 3, H, W float32 in [-1, 1]."""
    return np.ascontiguousarray(np.asarray(pictures).transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def to_pixels(values):
    """N, 3, H, W about [-1, 1] -> N, H, W, 3 uint8, clipped."""
    return np.clip(np.rint((values.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def sheet_of(rows, titles=None):
    """One uint8 picture of rows of equally many pictures (H x W x 3 uint8); every row may have a title above it.

    Pictures of a size other than the first one's are resized to it.
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
