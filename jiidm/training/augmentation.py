"""What changes photos and their label maps at random before a network learns from them."""
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np

from jiidm.config import Fraction, Range, TrainingConfig
from jiidm.data.labels import NO_CLASS
from jiidm.system.errors import InputError

_PADDING = 124  # grey around a picture that is scaled down
_VISIBLE, _SURROUNDINGS = 4.0, 15  # grey levels, pixels


@dataclass(frozen=True)
class AugmentedTrainingConfig(TrainingConfig):
    """A training on photos and label maps that `augmented` changes; half of them are mirrored.

    Attributes:
        weight_decay: AdamW's.
        scale_least, scale_most: range of the random scale, before pictures are cropped or padded to size.
        jitter: brightness, contrast and saturation change by up to this fraction.
        hue: the hue changes by up to this fraction of the circle.
    """

    decay_from: Fraction = 0.0
    weight_decay: float = 0.01
    scale_least: float = 0.75
    scale_most: float = 1.75
    jitter: float = 0.4
    hue: Annotated[float, Range(0, 0.5)] = 0.05

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        if not 0 < self.scale_least <= self.scale_most or self.jitter >= 1:
            raise InputError(f"{name}: scale_least {self.scale_least:g}, scale_most {self.scale_most:g}, jitter "
                             f"{self.jitter:g}: expected 0 < scale_least <= scale_most, and jitter below 1")


def augmented(photo, labels, training, rng):
    """A photo and its labels, mirrored, scaled, cropped or padded, and recoloured, in the same size.

    Args:
        photo: H x W x 3 uint8.
        labels: H x W uint8.
        training: an `AugmentedTrainingConfig`.
        rng: a numpy `Generator`.
    """
    height, width = labels.shape
    if rng.random() < 0.5:
        photo, labels = photo[:, ::-1], labels[:, ::-1]
    scale = np.exp(rng.uniform(np.log(training.scale_least), np.log(training.scale_most)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = cv2.resize(np.ascontiguousarray(photo), size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(np.ascontiguousarray(labels), size, interpolation=cv2.INTER_NEAREST)
    # where the window lies in the scaled picture, or the picture in the window
    y, x = (int(rng.integers(min(0, side - new), max(0, side - new) + 1))
            for side, new in ((size[1], height), (size[0], width)))
    left, top, right, below = max(0, -x), max(0, -y), max(0, width - size[0]), max(0, height - size[1])
    photo = cv2.copyMakeBorder(photo, top, below - top, left, right - left, cv2.BORDER_CONSTANT, value=(_PADDING,) * 3)
    labels = cv2.copyMakeBorder(labels, top, below - top, left, right - left, cv2.BORDER_CONSTANT, value=NO_CLASS)
    y, x = max(0, y), max(0, x)
    return recolored(photo[y:y + height, x:x + width], training, rng), labels[y:y + height, x:x + width]


def recolored(photo, training, rng):
    """H x W x 3 uint8 with another brightness, contrast, saturation and hue."""
    brightness, contrast, saturation = 1 + training.jitter * rng.uniform(-1, 1, 3)
    turn = 180 * training.hue * rng.uniform(-1, 1)
    values = photo.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    hsv = cv2.cvtColor(np.clip(values, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + turn) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def destroyed(photo, labels, nothing, rng):
    """Destroys the texture of a photo, in all of it or in some of its classes, so that nothing is left to recognise.

    One of: blur, blur under grain, each class in its mean colour, a smear that keeps edges, a mosaic, frosted glass. A
    pixel becomes `nothing` where its surroundings changed by more than `_VISIBLE` grey levels on average: a blurred
    sky is still a sky.

    Args:
        photo: H x W x 3 uint8.
        labels: H x W uint8.
        nothing: the label of what cannot be recognised.
        rng: random generator.

    Returns:
        The photo and the labels.
    """
    changed = _WAYS[int(rng.integers(len(_WAYS)))](photo, labels, rng)
    present = np.unique(labels)
    chosen = present if rng.random() < 0.5 else present[rng.random(len(present)) < 0.5]
    changed = np.where(np.isin(labels, chosen)[:, :, None], changed, photo)
    difference = np.abs(changed.astype(np.float32) - photo).mean(2)
    lost = (cv2.blur(difference, (_SURROUNDINGS, _SURROUNDINGS)) > _VISIBLE) & (labels != NO_CLASS)
    return changed, np.where(lost & np.isin(labels, chosen), np.uint8(nothing), labels)


def _blur(photo, labels, rng):
    return cv2.GaussianBlur(photo, (0, 0), float(np.exp(rng.uniform(np.log(1.3), np.log(8)))))


def _grain(photo, labels, rng):
    noise = rng.normal(0, rng.uniform(4, 20), (*labels.shape, 1))
    return np.clip(_blur(photo, labels, rng) + noise, 0, 255).astype(np.uint8)


def _flat(photo, labels, rng):
    picture = np.empty_like(photo)
    for c in np.unique(labels):
        picture[labels == c] = photo[labels == c].mean(0)
    return picture


def _smear(photo, labels, rng):
    for _ in range(2):
        photo = cv2.bilateralFilter(photo, 9, float(rng.uniform(40, 90)), 5)
    return photo


def _mosaic(photo, labels, rng):
    side = int(rng.integers(4, 11))
    small = cv2.resize(photo, (max(1, labels.shape[1] // side), max(1, labels.shape[0] // side)),
                       interpolation=cv2.INTER_AREA)
    return cv2.resize(small, labels.shape[::-1], interpolation=cv2.INTER_NEAREST)


def _frost(photo, labels, rng):
    rows, columns = np.mgrid[:labels.shape[0], :labels.shape[1]].astype(np.float32)
    reach = rng.uniform(3, 8)
    shift = rng.uniform(-reach, reach, (2, *labels.shape)).astype(np.float32)
    return cv2.remap(photo, columns + shift[0], rows + shift[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)


_WAYS = (_blur, _grain, _flat, _smear, _mosaic, _frost)
