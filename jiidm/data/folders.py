"""The contest's folders: photos and label maps of training, masks and references of the test; read and written."""
import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jiidm.data.labels import read_label_map
from jiidm.data.pictures import PHOTO_SUFFIXES, photo_size, read_photo
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder

# ----------------------------------------------------------------------------------------------------------- reading

class TrainingFolder:
    """Photos with their label maps: `imgs/NAME.jpg` (or .jpeg, .png) and `labels/NAME.png`.

    `names` is sorted. Raises InputError where a folder is missing or empty, a photo or a label map is without its
    partner, or two photos have one name.
    """

    def __init__(self, path):
        self.path = Path(path)
        photos = files_of(self.path / "imgs", PHOTO_SUFFIXES, "the training photos")
        labels = files_of(self.path / "labels", (".png",), "the label maps of the training photos")
        self._photos = _by_stem(photos)
        self._labels = _by_stem(labels)
        for present, absent, partner in ((self._photos, self._labels, "label map labels/{}.png"),
                                         (self._labels, self._photos, "photo imgs/{}.jpg")):
            alone = sorted(present.keys() - absent.keys())
            if alone:
                more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
                raise InputError(f"{present[alone[0]]}: its {partner.format(alone[0])} is missing{more}; "
                                 f"add it or remove the file")
        self.names = sorted(self._photos)

    def __len__(self):
        return len(self.names)

    def photo_path(self, name):
        """Returns the path of the photo `name`."""
        return self._photos[name]

    def paths(self, name):
        """Returns the paths of the photo `name` and of its label map."""
        return self._photos[name], self._labels[name]

    def photo(self, name):
        """Returns the photo `name`, H x W x 3 uint8 RGB; raises InputError where it cannot be read."""
        return read_photo(self._photos[name])

    def labels(self, name, num_classes=29):
        """Returns the label map of `name`, H x W uint8, NO_CLASS (255) allowed.

        Raises InputError where it cannot be read, a value is out of range, or its size is not its photo's.
        """
        labels = read_label_map(self._labels[name], num_classes, allow_no_class=True)
        size = photo_size(self._photos[name])
        if labels.shape[::-1] != size:
            raise InputError(f"{self._labels[name]}: {labels.shape[1]}x{labels.shape[0]}, but its photo "
                             f"{self._photos[name]} is {size[0]}x{size[1]}; the two must have one size")
        return labels


class TestItem(NamedTuple):
    """One image to generate: the mask's file name, its path, and the path of its style reference."""
    name: str
    mask: Path
    reference: Path


class TestFolder:
    """Masks with their style references: `label_to_img.json` and one folder of label PNGs, of any name.

    `img_path` is the training folder (it holds `imgs/`) or the folder of the photos itself.
    `items` is a list of TestItem in the order of the JSON file; `problems` a list of sentences on what is left out:
    a mask or a reference of the JSON file that does not exist, a mask that the JSON file does not name.
    Raises InputError where the JSON file is missing, broken, empty or not {"MASK.png": "REFERENCE.jpg"}, where there
    is none or more than one folder of PNGs, where the photos' folder is missing, and where no item is left.
    labels: the folder of the PNGs, references: the JSON file, where they are not those of `input_path`.
    """

    def __init__(self, input_path, img_path, labels=None, references=None):
        self.path = Path(input_path)
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; it should hold label_to_img.json and label maps")
        photos = Path(img_path)
        photos = photos / "imgs" if (photos / "imgs").is_dir() else photos
        if not photos.is_dir():
            raise InputError(f"{photos}: no such folder; the folder of the reference photos was expected")
        json_path = references or self.path / "label_to_img.json"
        references = read_references(json_path)
        labels = labels or self._label_folder(photos)
        masks = {mask.name: mask for mask in files_of(labels, (".png",), "the label maps")}

        self.items, self.problems = [], []
        for mask, reference in references.items():
            if mask not in masks:
                self.problems.append(f"{mask}: named in {json_path.name}, but no such label map")
            elif Path(reference).name != reference or not (photos / reference).is_file():
                self.problems.append(f"{mask}: its reference {reference} is not in {photos}")
            else:
                self.items.append(TestItem(mask, masks[mask], photos / reference))
        unnamed = sorted(masks.keys() - references.keys())
        self.problems += [f"{mask}: not named in {json_path.name}" for mask in unnamed]
        if not self.items:
            raise InputError(f"{self.path}: no label map has its reference; {self.problems[0]}")

    def __len__(self):
        return len(self.items)

    def _label_folder(self, photos):
        """Returns the one folder of PNGs in the test folder, the photos' own apart; raises InputError."""
        folders = [folder for folder in sorted(self.path.iterdir())
                   if folder.is_dir() and folder.resolve() not in (photos.resolve(), photos.parent.resolve())
                   and _listed(folder, (".png",))]
        if len(folders) != 1:
            found = ", ".join(folder.name for folder in folders[:5]) or "none"
            raise InputError(f"{self.path}: exactly one folder of label PNGs was expected in it, found {found}")
        return folders[0]


def read_references(path):
    """Returns the dict {mask: reference} of a `label_to_img.json`; raises InputError unless it is just that."""
    expected = 'a flat object {"MASK.png": "REFERENCE.jpg"} was expected'

    def unique(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise InputError(f"{path}: names {twice} twice; give each mask one reference")
        return dict(pairs)

    try:
        references = json.loads(Path(path).read_text("utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {expected}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error).splitlines()[0]}); {expected}") from error
    if not isinstance(references, dict) or not references:
        what = "an empty object" if references == {} else f"a value of type {type(references).__name__}"
        raise InputError(f"{path}: holds {what}; {expected}")
    for mask, reference in references.items():
        if not isinstance(reference, str):
            raise InputError(f"{path}: the value of {mask} is of type {type(reference).__name__}; {expected}")
    return references


def _listed(folder, suffixes):
    """Returns the visible files of `folder` with one of `suffixes` (any case), sorted by name."""
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file())


def files_of(folder, suffixes, what):
    """Returns `_listed(folder, suffixes)`; raises InputError where the folder is missing or has none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold {what} (NAME{suffixes[0]})")
    files = _listed(folder, suffixes)
    if not files:
        raise InputError(f"{folder}: no {suffixes[0]} file in it; it should hold {what}")
    return files


def _by_stem(paths):
    """Returns {stem: path}; raises InputError where two paths share a stem."""
    by_stem = {}
    for path in paths:
        if path.stem in by_stem:
            raise InputError(f"{path}: the name of {by_stem[path.stem].name} too; keep one of the two")
        by_stem[path.stem] = path
    return by_stem


# ----------------------------------------------------------------------------------------------------------- writing

@contextlib.contextmanager
def folder_written_whole(path):
    """Gives a temporary folder beside `path`; when the block ends well it is renamed to `path`, else it is removed.

    Raises InputError where `path` exists and is not an empty folder, and where the disk cannot be written.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty folder; remove it or choose another destination")
    output_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); mend that and start again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_training_folder(path, examples):
    """Writes `examples`, an iterable of (name, photo H x W x 3 uint8, labels H x W uint8), as a training folder.

    Photos are JPEGs of quality 95 without colour subsampling, labels 8-bit grey PNGs. Returns how many. The folder
    appears complete or not at all; raises InputError where `path` is in use or cannot be written.
    """
    count = 0
    with folder_written_whole(path) as folder:
        for part in ("imgs", "labels"):
            (folder / part).mkdir()
        for name, photo, labels in examples:
            Image.fromarray(photo).save(folder / "imgs" / f"{name}.jpg", quality=95, subsampling=0)
            Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
            count += 1
    return count


def write_test_folder(path, masks, training, seed=0):
    """Writes `masks`, an iterable of (name, labels H x W uint8), as a test folder; returns how many.

    Each mask's reference is a photo of the TrainingFolder `training`, shuffled by `seed`; none comes twice before all
    have come once. The folder appears complete or not at all; raises InputError as `write_training_folder`.
    """
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(training))
    photos = (training.photo_path(training.names[order[index % len(order)]]).name for index in itertools.count())
    tasks = ((*mask, photo) for mask, photo in zip(masks, photos, strict=False))
    return write_test_tasks(path, tasks)


def write_test_tasks(path, tasks):
    """Writes `tasks`, an iterable of (name, labels H x W uint8, file name of its style photo), as a test folder.

    Returns how many. The folder appears complete or not at all; raises InputError as `write_training_folder`.
    """
    references = {}
    with folder_written_whole(path) as folder:
        (folder / "labels").mkdir()
        for name, labels, reference in tasks:
            Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
            references[f"{name}.png"] = reference
        (folder / "label_to_img.json").write_text(json.dumps(references, indent=1) + "\n", "utf-8")
    return len(references)
