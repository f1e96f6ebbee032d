"""The contest's result file: a zip with one picture, `MASK-STEM.jpg`, for each mask of the test folder."""
import zipfile
from pathlib import Path
from typing import NamedTuple

from jiidm.data.folders import read_references
from jiidm.data.pictures import PHOTO_SUFFIXES, open_image
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole

_OLDEST = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip; a fixed time makes equal pictures an equal file


class Check(NamedTuple):
    """What a submission holds.

    pictures: the paths in the order of the archive.
    faults: a sentence for each picture that is missing or wrong.
    extra: the names of pictures beside them that belong to no mask.
    """

    pictures: list[Path]
    faults: list[str]
    extra: list[str]


def check_submission(input_path, results, width, height):
    """Compares the generated pictures with the masks of a test folder and returns a `Check`.

    Args:
        input_path: test folder; it holds label_to_img.json.
        results: folder of the generated pictures.
        width, height: of each picture, an RGB JPEG that can be read to its end.

    Raises:
        InputError: a folder or the JSON file is missing, or the latter is broken.
    """
    references = read_references(Path(input_path) / "label_to_img.json")
    results = Path(results)
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; the folder of the generated pictures was expected")
    names = sorted({f"{Path(mask).stem}.jpg" for mask in references})
    faults = [fault for fault in (_fault(results / name, width, height) for name in names) if fault]
    found = {path.name for path in results.iterdir()
             if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")}
    return Check([results / name for name in names], faults, sorted(found.difference(names)))


def _fault(path, width, height):
    """What is wrong with the picture `path`; None where nothing is."""
    if not path.exists():
        return f"{path}: missing"
    try:
        picture = open_image(path)
    except InputError as error:
        return str(error)
    if picture.format != "JPEG":
        return f"{path}: a {picture.format} under the name of a JPEG"
    if picture.mode != "RGB":
        return f"{path}: mode {picture.mode}, expected RGB"
    if picture.size != (width, height):
        return f"{path}: {picture.width}x{picture.height}, expected {width}x{height}"
    return None


def write_submission(output, pictures):
    """Writes a zip whose root holds the pictures, in their order, stored without compression.

    Equal pictures give an equal file, byte for byte. The file appears whole or not at all.

    Args:
        output: the file to write (.zip).
        pictures: paths of JPEGs.

    Raises:
        InputError: the file cannot be written, or has another suffix.
    """
    output = Path(output)
    if output.suffix.lower() != ".zip" or output.is_dir():
        raise InputError(f"{output}: the name of a zip file was expected, such as result.zip")
    output_folder(output.parent)
    with written_whole(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for path in pictures:
            entry = zipfile.ZipInfo(path.name, _OLDEST)
            entry.create_system = 3  # Unix, whose rights follow, wherever this runs
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
