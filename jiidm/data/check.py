"""Checks a training folder: one report on all that would stop a training, and on its pictures and labels."""
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jiidm.data.classes import CONTEST
from jiidm.data.folders import Finding, find_name_faults, list_pairs
from jiidm.data.labels import NO_CLASS, check_size, check_values, read_label_map
from jiidm.data.photo_checks import fingerprint, look_at, near_copies
from jiidm.data.pictures import PHOTO_SUFFIXES, open_image, read_photo
from jiidm.data.stored import read_stored
from jiidm.data.vocabulary import LabelReader, numbered
from jiidm.system.errors import InputError

# A fault stops a training. A remark does not, but somebody should look at it.
FAULTS = {
    "partner": "missing partners",
    "twice": "two files of one name",
    "unreadable": "unreadable or truncated files",
    "colour": "label maps that are no 8-bit grey picture",
    "size": "photos and label maps of different size",
    "value": "label values outside the classes",
}
REMARKS = {
    "nearly empty": "label maps of nearly one class",
    "copy": "near copies",
    "frame": "photos with a plain frame, or plain all over",
    "grey": "grey photos",
    "tiny": "photos of less than half the size",
    "aspect": "photos that lose most to the crop",
    "small": "pictures that would be enlarged",
    "ignored": "files that are not used",
}
NEARLY_ALL = 0.99  # of a label map's pixels
_NAMED = 5  # copies in a line
_CHUNK = 256  # pairs in flight: bounds the memory, whatever the folder's size


@dataclass(frozen=True)
class Report:
    """What `check_folder` found.

    Args:
        folder: the training folder.
        classes: the number of classes.
        photos, labels: how many files there are.
        sizes: how many photos have each size, such as "512x384".
        pixels: how many pixels have each value of the label maps, NO_CLASS included.
        maps: how many label maps have each value.
        faults: `Finding`s that stop a training; paths are relative to the folder.
        remarks: `Finding`s that do not, but that somebody should look at.
        names: of the classes.
    """

    folder: str
    classes: int
    photos: int
    labels: int
    sizes: dict
    pixels: dict
    maps: dict
    faults: tuple
    remarks: tuple
    names: tuple = CONTEST.names

    def as_dict(self) -> dict:
        """Returns the report as dicts and lists, for JSON."""
        findings = {name: [found._asdict() for found in getattr(self, name)] for name in ("faults", "remarks")}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**plain, **findings}


def check_folder(path: str | Path, num_classes: int = 29, width: int = 512, height: int = 384,
                 threads: int | None = None, reader: LabelReader | None = None) -> Report:
    """Decodes every photo and label map of a training folder and collects all that is wrong.

    At most a few hundred pictures are in memory.

    Args:
        path: the training folder.
        num_classes: labels are 0..num_classes-1.
        width, height: of the training's pictures, in pixels; smaller files are remarked upon.
        threads: how many decode. None: one a core.
        reader: of the label maps, for `num_classes`. None: of numbers, or of colours that a shipped table has.

    Returns:
        A `Report`.

    Raises:
        InputError: the folder or one of its two parts is missing or has no pictures.
    """
    path, reader = Path(path), reader or numbered(num_classes).reader()
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a folder with imgs/ and labels/ was expected")
    photos, labels = list_pairs(path)
    findings = _find_ignored(path, photos + labels) + find_name_faults(photos, labels)
    pairs = match_pairs(photos, labels)

    sizes, pixels, maps, fingerprints = Counter(), Counter(), Counter(), {}
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool, \
            tqdm(total=len(pairs), desc="check", unit="pair", dynamic_ncols=True, mininterval=1) as bar:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            for result in pool.map(lambda pair: _check_pair(pair, reader, width, height), chunk):
                findings += result.findings
                sizes.update(result.sizes)
                pixels.update(result.pixels)
                maps.update(result.pixels.keys())
                fingerprints |= result.fingerprints
                bar.update()
    findings += _find_copies(fingerprints)
    findings = [found._replace(path=os.path.relpath(found.path, path)) for found in findings]
    return Report(
        os.fspath(path), num_classes, len(photos), len(labels), dict(sizes.most_common()),
        *({value: counts[value] for value in sorted(counts)} for counts in (pixels, maps)),
        *(tuple(found for kind in kinds for found in findings if found.kind == kind) for kinds in (FAULTS, REMARKS)),
        reader.vocabulary.names,
    )


# ------------------------------------------------------------------------------------------------------ names of files

def _find_ignored(folder, used):
    """Findings on the visible files of imgs/ and labels/ that are no picture of the expected kind."""
    used = set(used)
    return [Finding("ignored", file, f"not one of {', '.join(suffixes)}")
            for part, suffixes in (("imgs", PHOTO_SUFFIXES), ("labels", (".png",)))
            for file in sorted((folder / part).iterdir()) if file not in used and not file.name.startswith(".")]


def match_pairs(photos, labels):
    """Every file with its partner, (photo, label map); None stands for a missing one.

    Where a name comes twice, the further files stand alone.
    """
    places = {file.stem: file for file in reversed(labels)}
    pairs = [(file, places.pop(file.stem, None)) for file in photos]
    taken = {label for _, label in pairs}
    return pairs + [(None, file) for file in labels if file not in taken]


# ------------------------------------------------------------------------------------------------------------ contents

class _PairResult(NamedTuple):
    """Of one pair: findings, the photo's size as a list of one or none, {value: pixels} of the label map, {photo:
    fingerprint}."""

    findings: list
    sizes: list
    pixels: dict
    fingerprints: dict


def _check_pair(pair, reader, width, height):
    """Decodes a photo and its label map, either of which may be None; returns a `_PairResult`."""
    photo, label = pair
    findings, sizes, pixels, fingerprints, num_classes = [], {}, {}, {}, len(reader.vocabulary)
    if photo:
        try:
            picture = read_photo(photo)
            sizes[photo] = picture.shape[1::-1]
            findings += [Finding(kind, photo, text) for kind, text in look_at(picture, width, height)]
            bits = fingerprint(picture)
            fingerprints = {} if bits is None else {photo: bits}
        except Exception as error:  # noqa: BLE001 - whatever a broken file raises, the report goes on
            findings.append(Finding("unreadable", photo, _reason(error, photo)))
    if label:
        values, found = _read_labels(label, reader)
        findings += found
        if values is not None:
            sizes[label] = values.shape[::-1]
            counts = np.bincount(values.ravel(), minlength=256)
            pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
            findings += _try("value", label, lambda: check_values(values, num_classes, label, allow_no_class=True))
            findings += _find_nearly_empty(label, pixels, values.size, reader.vocabulary.names)
            if photo in sizes:
                findings += _try("size", label, lambda: check_size(values, sizes[photo], label))
    tiny = {found.path for found in findings if found.kind == "tiny"}
    for file, size in sizes.items():
        if file not in tiny and (size[0] < width or size[1] < height):
            findings.append(Finding("small", file, f"{_size(size)}, smaller than {width}x{height}"))
    return _PairResult(findings, [_size(sizes[photo])] if photo in sizes else [], pixels, fingerprints)


def _find_copies(fingerprints):
    """A finding for each group of near copies."""
    for first, *others in near_copies(list(fingerprints), list(fingerprints.values())):
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        yield Finding("copy", first, f"much like {', '.join(path.name for path in others[:_NAMED])}{more}")


def _read_labels(path, reader):
    """The labels of a map, H x W uint8 or None, and a list of findings; numbers beyond the classes are kept."""
    try:
        image = open_image(path)
    except Exception as error:  # noqa: BLE001 - as above
        return None, [Finding("unreadable", path, _reason(error, path))]
    try:
        stored = read_stored(image, os.fspath(path))
        if reader.table is None and stored.colors is None:
            return read_label_map(image, 256, os.fspath(path)), []
        return reader.read_stored(stored).labels, []
    except InputError as error:
        return None, [Finding("colour", path, _reason(error, path))]


def _find_nearly_empty(path, pixels, total, names):
    """A finding where one class is nearly everywhere."""
    value, count = max(pixels.items(), key=lambda item: item[1])
    if count > NEARLY_ALL * total:
        yield Finding("nearly empty", path, f"{100 * count / total:.2f} % {class_name(value, names)}")


def _try(kind, path, check):
    """A finding of this kind where the check of a file fails."""
    try:
        check()
    except InputError as error:
        yield Finding(kind, path, _reason(error, path))


def _reason(error, path):
    """An error in one line, without the file's name, which the report shows before it."""
    return (str(error).splitlines() or [type(error).__name__])[0].removeprefix(f"{path}: ")


def _size(size):
    """(width, height) as text."""
    return f"{size[0]}x{size[1]}"


# -------------------------------------------------------------------------------------------------------------- words

def class_name(value: int, names: Sequence[str] = CONTEST.names) -> str:
    """Returns what the value of a pixel is called: "5 tree", "255 no class", "99 outside the classes"."""
    if value == NO_CLASS:
        return f"{value} no class"
    if value >= len(names):
        return f"{value} outside the classes"
    return str(value) if names[value] == str(value) else f"{value} {names[value]}"


def report_text(report: Report) -> str:
    """Returns a `Report` as Markdown that reads well as plain text: counts, all findings, the frequency of classes."""
    lines = [f"# {report.folder}", "", f"- {report.photos} photos, {report.labels} label maps",
             f"- sizes: {_list_sizes(report.sizes)}",
             f"- {len(report.faults)} faults that stop a training, {len(report.remarks)} remarks"]
    for title, kinds, findings in (("Fault", FAULTS, report.faults), ("Remark", REMARKS, report.remarks)):
        for kind, words in kinds.items():
            same = [found for found in findings if found.kind == kind]
            if same:
                lines += ["", f"## {title}: {words} ({len(same)})", "",
                          *(f"- {found.path}: {found.text}" for found in same)]
    total = sum(report.pixels.values())
    lines += ["", "## Classes", "", "| class | pixels % | in maps |", "| --- | ---: | ---: |"]
    for value in sorted({*range(report.classes), *report.pixels}):
        percent = 100 * report.pixels.get(value, 0) / max(total, 1)
        lines.append(f"| {class_name(value, report.names)} | {percent:.3f} | {report.maps.get(value, 0)} |")
    return "\n".join(lines) + "\n"


def _list_sizes(sizes):
    """The most frequent sizes in one text."""
    shown = [f"{size} ({count})" for size, count in list(sizes.items())[:5]]
    return ", ".join(shown + ([f"{len(sizes) - 5} others"] if len(sizes) > 5 else [])) or "none readable"
