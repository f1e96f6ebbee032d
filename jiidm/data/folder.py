"""The contest's folders: photos and label maps of training, masks and references of the test; read and written."""
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jiidm.files import InputError, output_folder
from jiidm.labels import open_image, read_label_map, resize_labels

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")

# How to turn a picture upright, by its EXIF orientation. Own table: Pillow's exif_transpose also writes the EXIF block
# anew, and fails on the odd blocks of some cameras.
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---------------------------------------------------------------------------------------------------------- pictures

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


def _centre_crop(array, width, height):
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
    photo = _centre_crop(photo, width, height)
    if photo.shape[:2] == (height, width):
        return photo.copy()
    shrinks = photo.shape[0] >= height and photo.shape[1] >= width
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def fit_labels(labels, width, height):
    """Crops H x W labels as `fit_photo` crops a photo of that size, and resizes them by nearest neighbour."""
    return resize_labels(_centre_crop(labels, width, height), width, height)


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
    references = {}
    with folder_written_whole(path) as folder:
        (folder / "labels").mkdir()
        for index, (name, labels) in enumerate(masks):
            Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
            reference = training.names[order[index % len(order)]]
            references[f"{name}.png"] = training.photo_path(reference).name
        (folder / "label_to_img.json").write_text(json.dumps(references, indent=1) + "\n", "utf-8")
    return len(references)
