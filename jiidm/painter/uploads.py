"""Pictures out of requests: limits first, from the header, then the decoding."""
import io

import numpy as np

from jiidm.data.labels import fit_labels
from jiidm.data.pictures import TooLarge, decode_image, fit_photo, read_photo
from jiidm.data.stored import read_stored
from jiidm.data.vocabulary import vocabulary_of

MAP_BYTES = 2**20
PHOTO_BYTES = 10 * 2**20
PIXELS = 25_000_000
_PHOTO_FORMATS = ("PNG", "JPEG", "WEBP")


def reader_of(model):
    """The `LabelReader` of uploads, for what `Engine.describe` says of the model."""
    classes = [{**entry, "nearest": []} for entry in model["classes"]]
    return vocabulary_of({"classes": classes, "seen": None}, len(classes), "the painter's model").reader(snap=True)


def decode_map(data, reader):
    """Reads a label map by a `LabelReader`; returns H x W uint8. Raises InputError, and TooLarge beyond a limit."""
    return reader.read_stored(read_stored(_open(data, "label map", MAP_BYTES, ("PNG",)), "label map")).labels


def decode_photo(data, width, height):
    """Reads a photo and fits it to a size; returns height x width x 3 uint8. Raises InputError and TooLarge."""
    return fit_photo(read_photo(_open(data, "photo", PHOTO_BYTES, _PHOTO_FORMATS), "photo"), width, height)


def decode_any_map(data, width, height, reader):
    """Reads a label map of class numbers or of colours.

    Args:
        data: the bytes of a PNG: grey indices, a palette, or the colours of a known table.
        width, height: the size that it is cropped and resized to, without new values.
        reader: the `LabelReader`.

    Returns:
        The labels, height x width uint8, and how they were read: "indices", or the name of the table.

    Raises:
        InputError: no label map. TooLarge: beyond a limit.
    """
    found = reader.read_stored(read_stored(_open(data, "label map", PHOTO_BYTES, ("PNG",)), "label map"))
    return np.ascontiguousarray(fit_labels(found.labels, width, height)), found.how


def _open(data, name, most_bytes, formats):
    """Returns the decoded PIL image of `data`; its size is checked in the header, before any pixel is decoded."""
    if len(data) > most_bytes:
        raise TooLarge(f"{name}: {len(data) / 2**20:.1f} MB; expected at most {most_bytes // 2**20}; make it smaller")
    return decode_image(io.BytesIO(data), name, PIXELS, formats)
