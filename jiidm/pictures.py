"""Between pixels and network values, and sheets of pictures to look at."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _TITLE = 6, 22


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
