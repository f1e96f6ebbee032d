"""The contest's main job: a test folder in, one picture for every label map out."""
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from jiidm.data.folders import TestFolder, TestItem
from jiidm.data.labels import CLASSES, colorize, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo, sheet_of
from jiidm.system.errors import InputError, Stopped
from jiidm.system.files import output_folder, written_whole
from jiidm.system.host import is_under_mpi
from jiidm.system.stopping import interruptible

_THUMBNAIL = 256  # pixels of width on the sheet; less where there are many pictures
_MANY = 100
_COLUMNS = 6


@dataclass(frozen=True)
class ContestJob:
    """What to make and where: the contest's folders, the size and quality of the JPEGs, and what to keep.

    `batch` is the number of pictures at a time; None leaves it to `Generator.batch_size`.
    """

    input_path: Path
    img_path: Path
    output_path: Path
    width: int = 512
    height: int = 384
    quality: int = 95
    batch: int | None = None
    resume: bool = False
    save_steps: bool = False
    overview: Path | None = None

    def picture(self, item):
        """Path of the picture of a `TestItem`."""
        return self.output_path / f"{Path(item.name).stem}.jpg"


class _Batch(NamedTuple):
    """Inputs at the networks' size, and the (item, error) of those that cannot be used."""

    items: list[TestItem]
    masks: list[np.ndarray]
    styles: list[np.ndarray]
    faults: list[tuple[TestItem, InputError]]


def make_pictures(job, checkpoint="default", device="auto", precision="auto", condition_cache_mb=None, recipe=None,
                  model=None, **settings):
    """Makes the pictures of a `ContestJob` with a `Generator.from_checkpoint` of the arguments after it.

    model: "iidm", "gaugan" or "clade", what the checkpoint must be (None: whatever it is). settings are keyword
    arguments of `Generator.infer`: rounds, color_transfer, ensemble, seed, sampler, steps, final_color_transfer. Files
    are read and written in the background, a batch ahead and a batch behind at most; each appears whole. Processes that
    mpirun has started share the pictures by name; the first of them also makes the overview.
    Returns a sentence for each picture that could not be made; the others are made. Raises InputError where nothing can
    be made (folders, checkpoint or settings that are wrong) and at the first file that cannot be written; on Ctrl-C
    `Stopped`, after the pictures that are done have been written.
    """
    _check(job)
    folder = TestFolder(job.input_path, job.img_path)
    for path in (job.output_path, job.save_steps and _steps(job), job.overview and job.overview.parent):
        if path:
            output_folder(path)
    others = _processes() if is_under_mpi() else None
    first = others is None or others.is_first()
    mine = folder.items if others is None else folder.items[others.rank() :: others.count()]
    problems, broken = list(folder.problems) if first else [], set()
    num_classes = len(CLASSES)
    try:
        with interruptible():
            waiting = [item for item in mine if not (job.resume and _is_whole(job.picture(item)))]
            if waiting:
                from jiidm.generator import Generator

                generator = Generator.from_checkpoint(checkpoint, device, precision, condition_cache_mb, recipe)
                num_classes = generator.num_classes
                if model is not None and generator.model != model:
                    raise InputError(f"{checkpoint}: is of {generator.model}; expected {model}, as --model says")
        if waiting:
            bar = tqdm(total=len(mine), initial=len(mine) - len(waiting), unit="image", dynamic_ncols=True,
                       disable=not first)
            with bar, _HostWork() as work:
                for item, error in _make(job, waiting, generator, settings, bar, work):
                    problems.append(f"{item.name}: {error}")
                    broken.add(item.name)
        with interruptible():
            if others is not None:
                others.wait_for_all()  # also since mpirun ends all when one ends with problems
            if job.overview and first:
                shown = [item for item in folder.items if item.name not in broken and _is_whole(job.picture(item))]
                write_overview(job, shown, num_classes)
    except KeyboardInterrupt as stop:
        there = sum(job.picture(item).is_file() for item in folder.items)
        raise Stopped(
            getattr(stop, "signal", signal.SIGINT),
            f"stopped: {there} of {len(folder.items)} pictures are in {job.output_path}, "
            f"{len(folder.items) - there} are missing; the same command with --resume goes on",
        ) from None
    return problems


def _processes():
    from jiidm.system import distributed  # imports Jittor

    return distributed


def _check(job):
    numbers = [job.width, job.height] if job.batch is None else [job.width, job.height, job.batch]
    if not 1 <= job.quality <= 100 or min(numbers) < 1:
        raise InputError(
            f"quality {job.quality}, {job.width}x{job.height}, batch {'auto' if job.batch is None else job.batch}: "
            "expected a quality of 1 to 100, a size and a batch of at least 1"
        )
    if job.overview and (job.overview.suffix.lower() not in (".jpg", ".jpeg", ".png") or job.overview.is_dir()):
        raise InputError(f"{job.overview}: expected the name of a picture for the overview, such as overview.jpg")


def _steps(job):
    return job.output_path / "steps"


def _make(job, items, generator, settings, bar, work):
    """Makes the pictures of the `TestItem`s; yields those that cannot be used, each with its error."""
    size = generator.batch_size() if job.batch is None else job.batch
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    ahead = work.submit(_read, parts[0], generator)
    for index in range(len(parts)):
        batch = ahead.result()
        if index + 1 < len(parts):
            ahead = work.submit(_read, parts[index + 1], generator)
        yield from batch.faults
        bar.update(len(batch.faults))
        if not batch.items:
            continue
        stems = [Path(item.name).stem for item in batch.items]

        def on_step(number, done, count, pictures, stems=stems):
            bar.set_postfix_str(f"round {number + 1}, step {done}/{count}")
            work.check()
            if pictures and job.save_steps:
                work.write(pictures, [_steps(job) / f"{stem}-round{number + 1}.jpg" for stem in stems], job)

        with interruptible():
            pictures = generator.infer(batch.masks, batch.styles, names=stems, on_step=on_step, **settings)
        work.write(pictures, [job.picture(item) for item in batch.items], job)
        bar.update(len(pictures))


def _read(items, generator):
    """Reads and fits what a generator needs for a list of `TestItem`s; returns a `_Batch`."""
    batch = _Batch([], [], [], [])
    for item in items:
        try:
            mask = read_label_map(item.mask, generator.num_classes)
            style = read_photo(item.reference)
        except InputError as error:
            batch.faults.append((item, error))
            continue
        batch.items.append(item)
        batch.masks.append(resize_labels(mask, generator.width, generator.height))
        batch.styles.append(fit_photo(style, generator.width, generator.height))
    return batch


class _HostWork:
    """What the host does while the device computes, in the order given, in one background thread: there is little of
    it, and on a small CPU more threads would only be in the way of the computation.

    At the end of a `with` block all of it is done, after an exception too.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "jiidm-host")
        self.submit = self._thread.submit
        self._writing = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown()
        if self._writing:
            self._writing.result()

    def check(self):
        """Raises the error of a write that has failed."""
        if self._writing and self._writing.done():
            self._writing.result()

    def write(self, pictures, paths, job):
        """Writes PIL images as JPEGs, once the ones given before are written; raises the error of those."""
        if self._writing:
            self._writing.result()
        self._writing = self.submit(_write, pictures, paths, job)


def write_overview(job, items, num_classes):
    """Writes the sheet `job.overview`: style, coloured mask and picture of each `TestItem`, as thumbnails."""
    width = _THUMBNAIL if len(items) <= _MANY else _THUMBNAIL // 2
    height = round(width * job.height / job.width)
    # a JPEG has at most 65535 pixels a side: a sheet of many pictures grows in both directions
    columns = min(len(items), max(_COLUMNS, math.isqrt(2 * len(items))))
    rows, titles = [], []
    for start in range(0, len(items), columns or 1):
        part = items[start : start + columns]
        blank = [np.full((height, width, 3), 255, np.uint8)] * (columns - len(part))
        rows += [
            [fit_photo(read_photo(item.reference), width, height) for item in part] + blank,
            [colorize(resize_labels(read_label_map(item.mask, num_classes), width, height)) for item in part] + blank,
            [fit_photo(read_photo(job.picture(item)), width, height) for item in part] + blank,
        ]
        titles += ["style", "mask", "result"]
    if rows:
        with written_whole(job.overview) as path:
            Image.fromarray(sheet_of(rows, titles)).save(path, quality=92)


def _write(pictures, paths, job):
    for picture, path in zip(pictures, paths, strict=True):
        if picture.size != (job.width, job.height):
            picture = picture.resize((job.width, job.height), Image.Resampling.LANCZOS)
        with written_whole(path) as temporary:
            picture.save(temporary, quality=job.quality)


def _is_whole(path):
    try:
        return path.is_file() and read_photo(path) is not None
    except InputError:
        return False
