"""One report over a training folder: everything that would stop a training, and what its pictures and labels are."""
import dataclasses
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jiidm.data.folders import files_of
from jiidm.data.labels import CLASSES, NO_CLASS, read_label_map
from jiidm.data.pictures import PHOTO_SUFFIXES, open_image, read_photo
from jiidm.system.errors import InputError

# Training stops at a fault; at a remark it does not, but somebody should look.
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
    "small": "pictures that would be enlarged",
    "ignored": "files that are not used",
}
NEARLY_ALL = 0.99  # of a label map's pixels
_CHUNK = 256  # pairs in flight: bounds the memory, whatever the folder's size


class Finding(NamedTuple):
    """Something to tell of a file: `kind` is a key of FAULTS or REMARKS, `path` is relative to the folder."""
    kind: str
    path: str
    text: str


@dataclass(frozen=True)
class Report:
    """What `check_folder` found.

    `pixels` and `maps` give, for each value of the label maps (NO_CLASS included), how many pixels have it and in how
    many maps it occurs. `sizes` are the photos' sizes ("512x384") with how many have each.
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

    def as_dict(self):
        """The report as dicts and lists that JSON can hold."""
        findings = {name: [found._asdict() for found in getattr(self, name)] for name in ("faults", "remarks")}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**plain, **findings}


def check_folder(path, num_classes=29, width=512, height=384, threads=None):
    """Reads every photo and label map of the training folder `path` and returns the `Report`.

    Every file is decoded, as training would, in `threads` threads (default: one a core); a few hundred pictures are in
    memory at most. Pictures smaller than `width` x `height`, in pixels, are remarked upon.
    Raises InputError where the folder or one of its two parts is missing or without pictures.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a folder with imgs/ and labels/ was expected")
    photos = files_of(path / "imgs", PHOTO_SUFFIXES, "the training photos")
    labels = files_of(path / "labels", (".png",), "the label maps of the training photos")
    findings = _ignored(path, photos + labels)
    findings += _without_partner(photos, labels) + _of_one_name(photos) + _of_one_name(labels)
    pairs = _paired(photos, labels)

    sizes, pixels, maps = Counter(), Counter(), Counter()
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool, \
            tqdm(total=len(pairs), desc="check", unit="pair", dynamic_ncols=True, mininterval=1) as bar:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            for result in pool.map(lambda pair: _check_pair(pair, num_classes, width, height), chunk):
                findings += result.findings
                sizes.update(result.sizes)
                pixels.update(result.pixels)
                maps.update(result.pixels.keys())
                bar.update()
    findings = [found._replace(path=os.path.relpath(found.path, path)) for found in findings]
    return Report(
        os.fspath(path), num_classes, len(photos), len(labels), dict(sizes.most_common()),
        *({value: counts[value] for value in sorted(counts)} for counts in (pixels, maps)),
        *(tuple(found for kind in kinds for found in findings if found.kind == kind) for kinds in (FAULTS, REMARKS)),
    )


# ------------------------------------------------------------------------------------------------------ names of files

def _ignored(folder, used):
    """Findings on the visible files of imgs/ and labels/ that are no picture of the expected kind."""
    used = set(used)
    return [Finding("ignored", file, f"not one of {', '.join(suffixes)}")
            for part, suffixes in (("imgs", PHOTO_SUFFIXES), ("labels", (".png",)))
            for file in sorted((folder / part).iterdir()) if file not in used and not file.name.startswith(".")]


def _without_partner(photos, labels):
    """Findings on photos without a label map and the reverse."""
    stems = [{file.stem for file in files} for files in (photos, labels)]
    return [Finding("partner", file, f"its {partner.format(file.stem)} is missing")
            for files, others, partner in ((photos, stems[1], "label map labels/{}.png"),
                                           (labels, stems[0], "photo imgs/{}.jpg"))
            for file in files if file.stem not in others]


def _of_one_name(files):
    """Findings on files that differ in their suffix only: nobody knows which of them is meant."""
    by_stem = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)
    return [Finding("twice", file, f"the name of {same[0].name} too")
            for same in by_stem.values() for file in same[1:]]


def _paired(photos, labels):
    """Every file with its partner, (photo, label map) or None in the place of the missing one.

    Where a name comes twice, the further files come alone.
    """
    places = {file.stem: file for file in reversed(labels)}
    pairs = [(file, places.pop(file.stem, None)) for file in photos]
    taken = {label for _, label in pairs}
    return pairs + [(None, file) for file in labels if file not in taken]


# ------------------------------------------------------------------------------------------------------------ contents

class _Checked(NamedTuple):
    """Of one pair: findings, the photo's size as a list of one or none, {value: pixels} of the label map."""
    findings: list
    sizes: list
    pixels: dict


def _check_pair(pair, num_classes, width, height):
    """Decodes a photo and its label map, either of which may be None; returns `_Checked`."""
    photo, label = pair
    findings, sizes, pixels = [], {}, {}
    if photo:
        try:
            sizes[photo] = read_photo(photo).shape[1::-1]
        except Exception as error:  # noqa: BLE001 - whatever a broken file raises, the report goes on
            findings.append(Finding("unreadable", photo, _reason(error, photo)))
    if label:
        values, found = _read_labels(label)
        findings += found
        if values is not None:
            sizes[label] = values.shape[::-1]
            counts = np.bincount(values.ravel(), minlength=256)
            pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
            findings += _label_findings(label, pixels, values.size, num_classes)
    if len(set(sizes.values())) > 1:
        findings.append(Finding("size", label, f"{_size(sizes[label])}, but its photo is {_size(sizes[photo])}"))
    for file, size in sizes.items():
        if size[0] < width or size[1] < height:
            findings.append(Finding("small", file, f"{_size(size)}, smaller than {width}x{height}"))
    return _Checked(findings, [_size(sizes[photo])] if photo in sizes else [], pixels)


def _read_labels(path):
    """The stored values of a label map, H x W uint8 or None, and a list of findings."""
    try:
        image = open_image(path)
    except Exception as error:  # noqa: BLE001 - as above
        return None, [Finding("unreadable", path, _reason(error, path))]
    try:
        return read_label_map(image, 256, os.fspath(path)), []
    except InputError as error:
        return None, [Finding("colour", path, _reason(error, path))]


def _label_findings(path, pixels, total, num_classes):
    """Findings on the values of one label map: those of no class, and one class nearly everywhere."""
    wrong = {value: count for value, count in pixels.items() if value >= num_classes and value != NO_CLASS}
    if wrong:
        shown = ", ".join(f"{value} ({count} pixels)" for value, count in wrong.items())
        yield Finding("value", path, f"{shown}; expected 0..{num_classes - 1} or {NO_CLASS} (no class)")
    value, count = max(pixels.items(), key=lambda item: item[1])
    if count > NEARLY_ALL * total:
        yield Finding("nearly empty", path, f"{100 * count / total:.2f} % {class_name(value, num_classes)}")


def _reason(error, path):
    """An error in one line, without the file's name, which stands before it already."""
    return (str(error).splitlines() or [type(error).__name__])[0].removeprefix(f"{path}: ")


def _size(size):
    return f"{size[0]}x{size[1]}"


# -------------------------------------------------------------------------------------------------------------- words

def class_name(value, num_classes=29):
    """What the value of a pixel is called: "5 tree", "255 no class", "99 outside the classes"."""
    if value == NO_CLASS:
        return f"{value} no class"
    if value >= num_classes:
        return f"{value} outside the classes"
    return f"{value} {CLASSES[value]}" if num_classes == len(CLASSES) else str(value)


def report_text(report):
    """The `Report` as Markdown that reads well as plain text: counts, all findings, the share of each class."""
    lines = [f"# {report.folder}", "", f"- {report.photos} photos, {report.labels} label maps",
             f"- sizes: {_listed_sizes(report.sizes)}",
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
        share = 100 * report.pixels.get(value, 0) / max(total, 1)
        lines.append(f"| {class_name(value, report.classes)} | {share:.3f} | {report.maps.get(value, 0)} |")
    return "\n".join(lines) + "\n"


def _listed_sizes(sizes):
    shown = [f"{size} ({count})" for size, count in list(sizes.items())[:5]]
    return ", ".join(shown + ([f"{len(sizes) - 5} others"] if len(sizes) > 5 else [])) or "none readable"
