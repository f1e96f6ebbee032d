"""Random views of training pictures: scaled, cut out and mirrored, a photo and its label map alike."""
from typing import NamedTuple

import numpy as np

from jiidm.data.labels import fit_labels
from jiidm.data.pictures import fit_photo
from jiidm.system.errors import InputError


class View(NamedTuple):
    """What is seen of a picture: it is fitted to width x height, and of that the part from row `top` and column `left`
    on is cut out, `rows` x `columns` pixels, and mirrored where `mirrored` says so."""
    width: int
    height: int
    top: int
    left: int
    rows: int
    columns: int
    mirrored: bool = False

    def cut(self, fitted):
        """The view of a picture (H x W ...) that is fitted already."""
        part = fitted[self.top : self.top + self.rows, self.left : self.left + self.columns]
        return part[:, ::-1] if self.mirrored else part


def whole_view(width, height):
    """The whole picture, not mirrored."""
    return View(width, height, 0, 0, height, width)


def draw_views(random, count, width, height, rows, columns, scale=1.0):
    """`count` random views of `rows` x `columns` pixels, from the generator `random` alone.

    Pictures are fitted to width x height, enlarged by a factor that is drawn evenly from 1 to `scale`. At a scale of 1
    no factor is drawn: three numbers a view, for the row, the column and the mirror image, in this order.
    """
    views = []
    for _ in range(count):
        factor = random.uniform(1, scale) if scale > 1 else 1
        wide, high = round(width * factor), round(height * factor)
        top, left = random.integers(0, high - rows + 1), random.integers(0, wide - columns + 1)
        views.append(View(wide, high, int(top), int(left), rows, columns, bool(random.random() < 0.5)))
    return views


def load_photos(folder, names, views):
    """The photos `names` of a `TrainingFolder`, each in its view of one size: N, rows, columns, 3 uint8.

    Raises InputError, which names the file, for whatever fails.
    """
    return np.stack([_named(folder.photo_path(name), lambda n=name, v=view: v.cut(_photo(folder, n, v)))
                     for name, view in zip(names, views, strict=True)])


def load_pairs(folder, names, views, num_classes):
    """As `load_photos`, and the label maps in the same views: N, rows, columns, 3 and N, rows, columns, both uint8."""
    photos = load_photos(folder, names, views)
    return photos, np.stack([
        _named(folder.paths(name)[1], lambda n=name, v=view: v.cut(_labels(folder, n, v, num_classes)))
        for name, view in zip(names, views, strict=True)
    ])


def _photo(folder, name, view):
    return fit_photo(folder.photo(name), view.width, view.height)


def _labels(folder, name, view, num_classes):
    return fit_labels(folder.labels(name, num_classes), view.width, view.height)


def _named(path, load):
    """What `load` returns; an error that does not name a file becomes one that does."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - of the picture libraries, without the file's name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be made ready for training ({reason}); mend or remove it") from error
