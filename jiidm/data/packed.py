"""A store of latents in one small file, to train the UNet where the photos are not.

The file is xz over three arrays in numpy's format: a JSON text as bytes, label maps (M, h, w uint8), and latents
(M, C, h, w int8) as multiples of one step.
"""
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jiidm.data.folders import reading_of
from jiidm.data.latents import LatentStore
from jiidm.data.vocabulary import LabelReader, numbered
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole

_FORMAT = "jiidm-latents-1"
_BLOCK = 256  # entries that are rounded at a time
_LARGEST = 127  # of int8


def pack_latents(store: LatentStore, path: str | Path, names: Sequence[str], by_hand: Sequence[str] | None,
                 step: float = 0.4, whole: bool = False, chosen: Sequence[int] | None = None) -> float:
    """Writes a store of latents as one packed file.

    Args:
        store: the `LatentStore`.
        path: the file to write.
        names: of the store's photos, in its order.
        by_hand: the names of those whose label maps people made. None: unknown.
        step: latents are rounded to multiples of this many standard deviations.
        whole: take the whole photos alone, without their mirror images and further views.
        chosen: numbers of the photos to take. None: all of them.

    Returns:
        The error of the rounding: its norm as a share of the norm of the latents.

    Raises:
        InputError: the step is too fine for the largest latent, or the file cannot be written.
    """
    views = 1 if whole else store.per_photo
    entries = slice(None, None, store.per_photo // views)
    if chosen is not None:
        entries = (store.per_photo * np.asarray(chosen)[:, None] + np.arange(views)).ravel()
        names = [names[number] for number in chosen]
    latents, labels = store.latents[entries], store.labels[entries]
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(latents), _BLOCK)]
    squares = [np.square(latents[block], dtype=np.float64) for block in blocks]
    size = step * float(np.sqrt(sum(map(np.sum, squares)) / latents.size))
    largest = max(float(np.abs(latents[block]).max()) for block in blocks)
    if not step > 0 or largest / size > _LARGEST:
        raise InputError(f"step {step:g}: expected at least {step * largest / size / _LARGEST:.3f} for these latents, "
                         f"so that they fit eight bits")
    about = {**store.about, "format": _FORMAT, "step": size, "per_photo": views, "names": list(names),
             "by_hand": None if by_hand is None else sorted(set(by_hand) & set(names))}
    error = 0.0
    with written_whole(path) as draft, lzma.open(draft, "wb") as file:
        _write(file, np.frombuffer(json.dumps(about).encode(), np.uint8))
        _write(file, np.ascontiguousarray(labels))
        rounded = np.empty(latents.shape, np.int8)
        for block in blocks:
            rounded[block] = np.rint(latents[block] / size)
            error += np.square(rounded[block] * size - latents[block], dtype=np.float64).sum()
        _write(file, rounded)
    return float(np.sqrt(error / sum(map(np.sum, squares))))


class PackedLatents(LatentStore):
    """A packed file as a `LatentStore`; in memory, a byte a number.

    Args:
        path: the file.
        reader: of the training's classes. None: numbers, the contest's classes where there are 29.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """

    def __init__(self, path: str | Path, reader: LabelReader | None = None):
        self.path, self._reader = Path(path), reader
        try:
            with lzma.open(self.path) as file:
                self.about = json.loads(_read(file).tobytes())
                if not isinstance(self.about, dict) or self.about.get("format") != _FORMAT:
                    raise ValueError(f"its format is not {_FORMAT}")
                self.labels, self.latents = _read(file), _read(file)
            self.names, self.step = self.about["names"], float(self.about["step"])
            if self.latents.ndim != 4 or self.labels.shape != (len(self.latents), *self.latents.shape[2:]) or (
                    len(self.latents) != len(self.names) * self.per_photo):
                raise ValueError(f"{len(self.names)} photos, label maps {self.labels.shape} and latents "
                                 f"{self.latents.shape} do not match")
        except (OSError, EOFError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
            raise InputError(f"{self.path}: no readable packed latents ({error}); make it with jiidm data pack, or "
                             f"give a folder with imgs/ and labels/") from error

    @property
    def per_photo(self) -> int:
        return self.about["per_photo"]

    def by_hand(self) -> list[str] | None:
        """As `TrainingFolder.by_hand`."""
        return self.about["by_hand"]

    def reader(self, num_classes: int) -> LabelReader:
        """As `TrainingFolder.reader`."""
        return self._reader or numbered(num_classes).reader()

    @property
    def reading(self) -> str:
        """As `TrainingFolder.reading`."""
        return reading_of(self._reader)

    def whole(self, count):
        latents, labels = super().whole(count)
        return self._unpacked(latents), labels

    def batch(self, indices, own, random):
        latents, labels = super().batch(indices, own, random)
        return self._unpacked(latents), labels

    def _unpacked(self, latents):
        return latents * np.float32(self.step)


def _write(file, array):
    np.lib.format.write_array(file, array, allow_pickle=False)


def _read(file):
    return np.lib.format.read_array(file, allow_pickle=False)
