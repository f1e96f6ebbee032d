"""The contest's folders, read and written: photos with label maps for training, masks with references for the test."""
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jiidm.data.labels import check_size, fit_labels
from jiidm.data.loader import Loader
from jiidm.data.pictures import PHOTO_SUFFIXES, fit_photo, photo_size, read_photo
from jiidm.data.vocabulary import LabelReader, numbered
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, read_text

BY_HAND = "by_hand.txt"  # in a training folder: the names of the label maps that people made, a line each


# ----------------------------------------------------------------------------------------------------------- reading

class Finding(NamedTuple):
    """Something amiss with a file of a training folder.

    Args:
        kind: the kind of fault, such as "partner".
        path: the file.
        text: what is amiss, without the file's name.
    """

    kind: str
    path: Path
    text: str


def find_name_faults(photos: list[Path], labels: list[Path]) -> list[Finding]:
    """Finds files without a partner ("partner") and files of one name ("twice").

    Args:
        photos, labels: the files of the two folders.

    Returns:
        A list of `Finding`s.
    """
    found = []
    for files, others, partner in ((photos, labels, "label map labels/{}.png"), (labels, photos, "photo imgs/{}.jpg")):
        stems = {file.stem for file in others}
        found += [Finding("partner", file, f"its {partner.format(file.stem)} is missing")
                  for file in files if file.stem not in stems]
    for files in (photos, labels):
        first = {file.stem: file for file in reversed(files)}
        found += [Finding("twice", file, f"the name of {first[file.stem].name} too")
                  for file in files if file != first[file.stem]]
    return found


class TrainingFolder:
    """Photos with their label maps: `imgs/NAME.jpg` (or .jpeg, .png) and `labels/NAME.png`.

    `names` is sorted.

    Args:
        path: the folder.
        reader: of the label maps. None: for the number of classes that `labels` is asked for.

    Raises:
        InputError: a folder is missing or empty, a file has no partner, or two files have one name.
    """

    def __init__(self, path: str | Path, reader: LabelReader | None = None):
        self.path, self._reader = Path(path), reader
        photos, labels = list_pairs(self.path)
        faults = find_name_faults(photos, labels)
        if faults:
            same = sum(fault.kind == faults[0].kind for fault in faults)
            more = f" ({same} such files)" if same > 1 else ""
            cure = {"partner": "add it or remove the file", "twice": "keep one of the two"}[faults[0].kind]
            raise InputError(f"{faults[0].path}: {faults[0].text}{more}; {cure}")
        self._photos = {file.stem: file for file in photos}
        self._labels = {file.stem: file for file in labels}
        self.names = sorted(self._photos)

    def __len__(self) -> int:
        return len(self.names)

    def by_hand(self) -> list[str] | None:
        """Returns the names whose label maps people made, sorted, from `by_hand.txt`; None where there is no such file.

        Raises InputError where it is empty, unreadable, or names a photo that is not there.
        """
        path = self.path / BY_HAND
        if not path.exists():
            return None
        names = set(read_text(path, f"names of photos in {self.path}").split())
        unknown = sorted(names - self._photos.keys())
        if unknown or not names:
            what = f"names {unknown[0]}, which is not in imgs/" if unknown else "empty"
            raise InputError(f"{path}: {what}; expected names of photos in {self.path}")
        return sorted(names)

    def photo_path(self, name: str) -> Path:
        """Returns the path of the photo `name`."""
        return self._photos[name]

    def paths(self, name: str) -> tuple[Path, Path]:
        """Returns the paths of the photo `name` and of its label map."""
        return self._photos[name], self._labels[name]

    def photo(self, name: str) -> np.ndarray:
        """Returns the photo `name`, H x W x 3 uint8 RGB; raises InputError where it cannot be read."""
        return read_photo(self._photos[name])

    def reader(self, num_classes: int = 29) -> LabelReader:
        """Returns the reader of the label maps; raises InputError where it reads another number of classes."""
        if self._reader is None:
            return _reader_of(num_classes)
        if len(self._reader.vocabulary) != num_classes:
            raise InputError(f"{self.path}: its label maps are read as {len(self._reader.vocabulary)} classes, the "
                             f"network has {num_classes}")
        return self._reader

    @property
    def reading(self) -> str:
        """How the label maps are read, as a hash; empty where they are read as numbers or recognised."""
        return reading_of(self._reader)

    def label_maps(self, num_classes: int = 29) -> Iterator[np.ndarray]:
        """Yields all label maps in the order of `names`, read ahead in threads; errors as of `labels`."""
        with Loader(lambda index: self.labels(self.names[index], num_classes), 0, len(self)) as maps:
            yield from maps

    def labels(self, name: str, num_classes: int = 29) -> np.ndarray:
        """Returns the label map of `name`, H x W uint8; NO_CLASS (255) is allowed.

        Raises InputError where it cannot be read, a value is out of range, or its size is not its photo's.
        """
        labels = self.reader(num_classes).read(self._labels[name])
        check_size(labels, photo_size(self._photos[name]), self._labels[name], self._photos[name])
        return labels

    def fitted(self, name: str, width: int, height: int, num_classes: int = 29) -> tuple[np.ndarray, np.ndarray]:
        """Returns the photo and the label map of `name`, cropped centrally and resized to height x width."""
        return (fit_photo(self.photo(name), width, height),
                fit_labels(self.labels(name, num_classes), width, height))


def reading_of(reader: LabelReader | None) -> str:
    """Returns `TrainingFolder.reading` for a reader."""
    if reader is None or reader.table is None and not reader.snap:
        return ""
    return hashlib.sha256(repr((reader.vocabulary.names, reader.table, reader.snap)).encode()).hexdigest()


@functools.cache
def _reader_of(num_classes):
    """The reader of label maps for weights of which only the number of classes is known."""
    return numbered(num_classes).reader()


class TestItem(NamedTuple):
    """One image to generate: the mask's file name, its path, and the path of its style reference."""

    name: str
    mask: Path
    reference: Path


class TestFolder:
    """Masks with their style references: `label_to_img.json` and one folder of label PNGs, of any name.

    `items` is a list of `TestItem`s in the order of the JSON file. `problems` is a list of sentences on what is left
    out: a mask or a reference that does not exist, a mask that the JSON file does not name.

    Args:
        input_path: the test folder.
        img_path: the training folder (it holds `imgs/`) or the folder of the photos itself.
        labels: the folder of the label PNGs. None: the one in `input_path`.
        references: the JSON file. None: the one in `input_path`.

    Raises:
        InputError: the JSON file is missing, broken, empty or not {"MASK.png": "REFERENCE.jpg"}, there is not exactly
            one folder of PNGs, the photos' folder is missing, or no item is left.
    """

    def __init__(self, input_path: str | Path, img_path: str | Path, labels: Path | None = None,
                 references: Path | None = None):
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
        masks = {mask.name: mask for mask in list_files(labels, (".png",), "the label maps")}

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

    def __len__(self) -> int:
        return len(self.items)

    def _label_folder(self, photos):
        """The one folder of PNGs in the test folder, except the photos' own; raises InputError."""
        folders = [folder for folder in sorted(self.path.iterdir())
                   if folder.is_dir() and folder.resolve() not in (photos.resolve(), photos.parent.resolve())
                   and _visible_files(folder, (".png",))]
        if len(folders) != 1:
            found = ", ".join(folder.name for folder in folders[:5]) or "none"
            raise InputError(f"{self.path}: exactly one folder of label PNGs was expected in it, found {found}")
        return folders[0]


def read_references(path: str | Path) -> dict[str, str]:
    """Reads a `label_to_img.json`: returns {mask: reference}; raises InputError for anything else."""
    expected = 'a flat object {"MASK.png": "REFERENCE.jpg"} was expected'

    def unique(pairs):
        """A dict without repeated names."""
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


def _visible_files(folder, suffixes):
    """The visible files of a folder with one of the suffixes (any case), sorted by name."""
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file())


def list_files(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Lists the visible files of a folder.

    Args:
        folder: the folder.
        suffixes: lower case, such as (".png",); any case is found.
        what: what the folder should hold, in words.

    Returns:
        Paths, sorted by name.

    Raises:
        InputError: the folder is missing or has no such file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold {what} (NAME{suffixes[0]})")
    files = _visible_files(folder, suffixes)
    if not files:
        raise InputError(f"{folder}: no {suffixes[0]} file in it; it should hold {what}")
    return files


def list_pairs(path: Path) -> tuple[list[Path], list[Path]]:
    """Lists the photos and the label maps of a training folder, as two lists; raises InputError as `list_files`."""
    return (list_files(path / "imgs", PHOTO_SUFFIXES, "the training photos"),
            list_files(path / "labels", (".png",), "the label maps of the training photos"))


# ----------------------------------------------------------------------------------------------------------- writing

@contextlib.contextmanager
def folder_written_whole(path: str | Path) -> Iterator[Path]:
    """Context of a temporary folder beside `path`: renamed to `path` when the block ends well, else removed.

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


def write_training_folder(path: str | Path, examples: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> int:
    """Writes a training folder, complete or not at all.

    Photos are JPEGs of quality 95 without colour subsampling, labels 8-bit grey PNGs.

    Args:
        path: the folder; it must not exist or be empty.
        examples: an iterable of (name, photo H x W x 3 uint8, labels H x W uint8).

    Returns:
        How many pairs were written.

    Raises:
        InputError: `path` is in use or cannot be written.
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


def write_test_folder(path: str | Path, masks: Iterable[tuple[str, np.ndarray]], training: TrainingFolder,
                      seed: int = 0) -> int:
    """Writes a test folder, complete or not at all.

    Args:
        path: the folder; it must not exist or be empty.
        masks: an iterable of (name, labels H x W uint8).
        training: the `TrainingFolder` whose photos become the references; each is used once before any is used twice.
        seed: shuffles the references.

    Returns:
        How many masks were written.

    Raises:
        InputError: `path` is in use or cannot be written.
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
