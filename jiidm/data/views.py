"""Random views of training pictures: a photo and its label map are scaled, cropped and mirrored alike."""
from typing import NamedTuple

import numpy as np

from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import fit_labels
from jiidm.data.pictures import fit_photo
from jiidm.system.errors import InputError


class View(NamedTuple):
    """A part of a picture.

    Args:
        width, height: the picture is fitted to this size first.
        top, left: the first row and column of the part.
        rows, columns: its size.
        mirrored: whether it is flipped left to right.
    """

    width: int
    height: int
    top: int
    left: int
    rows: int
    columns: int
    mirrored: bool = False

    def cut(self, fitted: np.ndarray) -> np.ndarray:
        """Returns the view of a picture (H x W ...) that is fitted to the size already."""
        part = fitted[self.top : self.top + self.rows, self.left : self.left + self.columns]
        return part[:, ::-1] if self.mirrored else part


def whole_view(width: int, height: int) -> View:
    """Returns the view of the whole picture, not mirrored."""
    return View(width, height, 0, 0, height, width)


def draw_views(rng: np.random.Generator, count: int, width: int, height: int, rows: int, columns: int,
               scale: float = 1.0) -> list[View]:
    """Draws random views.

    Args:
        rng: a numpy generator, which alone decides.
        count: how many.
        width, height: the size that pictures are fitted to, before a factor enlarges it.
        rows, columns: the size of a view.
        scale: the largest factor; factors are uniform from 1. At 1 no factor is drawn, and a view takes three numbers:
            for the row, the column and the flip, in this order.

    Returns:
        A list of `View`s.
    """
    views = []
    for _ in range(count):
        factor = rng.uniform(1, scale) if scale > 1 else 1
        wide, high = round(width * factor), round(height * factor)
        top, left = rng.integers(0, high - rows + 1), rng.integers(0, wide - columns + 1)
        views.append(View(wide, high, int(top), int(left), rows, columns, bool(rng.random() < 0.5)))
    return views


def load_photos(folder: TrainingFolder, names: list[str], views: list[View]) -> np.ndarray:
    """Reads photos in their views.

    Args:
        folder: a `TrainingFolder`.
        names: of the photos.
        views: a `View` for each, all with the same rows and columns.

    Returns:
        N, rows, columns, 3 uint8.

    Raises:
        InputError: whatever fails; it names the file.
    """
    return np.stack([
        _name_errors(folder.photo_path(name),
                     lambda n=name, v=view: v.cut(fit_photo(folder.photo(n), v.width, v.height)))
        for name, view in zip(names, views, strict=True)
    ])


def load_pairs(folder: TrainingFolder, names: list[str], views: list[View],
               num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads photos and label maps in the same views; arguments and errors as `load_photos`.

    Returns:
        N, rows, columns, 3 and N, rows, columns, both uint8.
    """
    photos = load_photos(folder, names, views)
    return photos, np.stack([
        _name_errors(folder.paths(name)[1],
                     lambda n=name, v=view: v.cut(fit_labels(folder.labels(n, num_classes), v.width, v.height)))
        for name, view in zip(names, views, strict=True)
    ])


def _name_errors(path, load):
    """Calls `load`; an error that does not name its file becomes one that does."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - the picture libraries do not name the file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be made ready for training ({reason}); mend or remove it") from error
