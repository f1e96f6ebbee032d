"""Finds what is measured: label maps, their style references, and folders of pictures named after the masks."""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jiidm.data.folders import TestFolder, list_files, read_references
from jiidm.data.labels import NO_CLASS
from jiidm.data.pictures import PHOTO_SUFFIXES, read_photo
from jiidm.data.vocabulary import LabelReader
from jiidm.system.errors import InputError

_SHOWN = 10  # faults in the text of an error


class Task(NamedTuple):
    """A label map, the photo whose style is wanted, and `stem`, the name of the picture that should show both."""

    stem: str
    labels: Path
    reference: Path


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures.

    Args:
        path: the folder.
        files: paths by the stem of the mask.
        size: (width, height) of all. None: sizes may differ.
    """

    path: Path
    files: dict
    size: tuple[int, int] | None = None


def find_tasks(labels: str | Path, references: str | Path) -> tuple[list[Task], list[Path], list[str]]:
    """Finds the label maps and their references.

    Args:
        labels: a folder of label PNGs beside a label_to_img.json, or the test folder that holds both.
        references: the folder of the photos that the JSON names, or its parent with imgs/; or another JSON file of the
            same form, beside the photos or beside imgs/.

    Returns:
        The `Task`s, the photos that the distribution of the pictures is compared with, and sentences on what is amiss.

    Raises:
        InputError: as `TestFolder`, and where the JSON file is not found.
    """
    labels, references = Path(labels), Path(references)
    if references.suffix.lower() == ".json":
        own = labels if any((labels / name).is_file() for name in read_references(references)) else None
        folder = TestFolder(labels, references.parent, own, references)
        return _list_tasks(folder), sorted({item.reference for item in folder.items}), folder.problems
    test = next((path for path in (labels, labels.parent) if (path / "label_to_img.json").is_file()), None)
    if test is None:
        raise InputError(f"{labels}: no label_to_img.json in it or beside it; give a file of that form as --references")
    folder = TestFolder(test, references, None if test == labels else labels)
    photos = references / "imgs" if (references / "imgs").is_dir() else references
    return _list_tasks(folder), list_files(photos, PHOTO_SUFFIXES, "the reference photos"), folder.problems


def _list_tasks(folder: TestFolder) -> list[Task]:
    """The `Task`s of a test folder."""
    return [Task(Path(item.name).stem, item.mask, item.reference) for item in folder.items]


def find_pictures(path: str | Path, tasks: list[Task], one_size: bool = True,
                  extra_allowed: bool = False) -> tuple[Pictures, list[str]]:
    """Finds the pictures of the tasks in a folder.

    Args:
        path: the folder.
        tasks: the `Task`s.
        one_size: leave out pictures of another size than most.
        extra_allowed: the folder may have pictures of no task.

    Returns:
        The `Pictures`, and sentences on what is missing, extra, unreadable or of another size.

    Raises:
        InputError: the folder is missing or has no pictures.
    """
    path = Path(path)
    files: dict[str, Path] = {}
    sizes: dict[str, tuple[int, int]] = {}
    problems: list[str] = []
    wanted = {task.stem for task in tasks}
    for file in list_files(path, PHOTO_SUFFIXES, "the pictures to measure"):
        if file.stem not in wanted:
            problems += [] if extra_allowed else [f"{file}: belongs to no label map"]
        elif file.stem in files:
            problems.append(f"{file}: the name of {files[file.stem].name} too, which is taken")
        else:
            try:
                sizes[file.stem] = read_photo(file).shape[1::-1]
                files[file.stem] = file
            except InputError as error:
                problems.append(str(error))
    problems += [f"{path / task.stem}.jpg: missing or unreadable" for task in tasks if task.stem not in files]
    if not one_size:
        return Pictures(path, files), problems
    if not sizes:
        return Pictures(path, files), problems
    size = Counter(sizes.values()).most_common(1)[0][0]
    for stem, found in sizes.items():
        if found != size:
            problems.append(f"{files.pop(stem)}: {found[0]}x{found[1]}, most pictures are {size[0]}x{size[1]}")
    return Pictures(path, files, size), problems


def select_tasks(tasks: list[Task], sets: list[Pictures], reader: LabelReader, problems: list[str],
                 allow_missing: bool) -> list[Task]:
    """Selects the tasks whose label map is valid and that have a picture in every folder.

    Args:
        tasks: all `Task`s.
        sets: the `Pictures` of each folder.
        reader: of the label maps.
        problems: sentences on what was found before; more are appended.
        allow_missing: measure the rest where there are problems.

    Returns:
        The tasks that can be measured.

    Raises:
        InputError: lists the problems, unless `allow_missing`; or no task is left.
    """
    left, classes = [], False
    for task in tasks:
        try:
            labels = reader.read(task.labels)
            read_photo(task.reference)
        except InputError as error:
            problems.append(str(error))
            continue
        if all(task.stem in pictures.files for pictures in sets):
            left.append(task)
            classes = classes or (labels != NO_CLASS).any()
    where = sets[0].path
    if problems and not allow_missing:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(f"{where}: {len(problems)} faults: {'; '.join(problems[:_SHOWN])}{more}; mend them, or add "
                         f"--allow-missing to measure the rest")
    if not left:
        raise InputError(f"{where}: no picture can be measured; {problems[0]}")
    if not classes:
        raise InputError(f"{left[0].labels.parent}: every pixel of the label maps is {NO_CLASS}, no class; there is "
                         f"nothing to compare pictures with")
    return left
