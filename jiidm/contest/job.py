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

from jiidm.data.classes import load_table
from jiidm.data.folders import TestFolder, TestItem
from jiidm.data.inputs import read_style_labels
from jiidm.data.labels import CLASSES, colorize, resize_labels
from jiidm.data.pictures import fit_photo, read_photo, sheet_of
from jiidm.data.vocabulary import numbered
from jiidm.system.errors import InputError, Stopped
from jiidm.system.files import output_folder, written_whole
from jiidm.system.host import is_under_mpi
from jiidm.system.stopping import interruptible

_THUMBNAIL = 256  # pixels of width on the sheet; less where there are many pictures
_MANY = 100
_COLUMNS = 6


@dataclass(frozen=True)
class ContestJob:
    """What to make and where.

    input_path: folder with label_to_img.json and one folder of label maps.
    img_path: folder of the style photos.
    output_path: folder for the pictures.
    width, height, quality: of the JPEGs.
    batch: pictures at a time (None: `Generator.batch_size`).
    resume: skip pictures that are there already.
    save_steps: keep the picture of each round, in steps/.
    overview: a sheet of styles, coloured masks and pictures to write (None: no sheet).
    style_labels: folder of the style photos' label maps, STEM.png each (None: colours go by class as the recipe says).
    classes, snap, nearest_class: how label maps are read, as for `Generator.infer`.
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
    style_labels: Path | None = None
    classes: str = "auto"
    snap: bool = False
    nearest_class: bool = False

    @property
    def steps(self):
        """Folder of the rounds' pictures."""
        return self.output_path / "steps"

    def reader(self, vocabulary):
        """The `LabelReader` of the label maps for weights of this `Vocabulary`."""
        return vocabulary.reader(self.classes, self.snap, self.nearest_class)

    def picture(self, item):
        """Path of the picture of a `TestItem`."""
        return self.output_path / f"{Path(item.name).stem}.jpg"


class _Batch(NamedTuple):
    """Inputs at the networks' size, and the (item, error) of those that cannot be used.

    `maps` are the styles' label maps; it stays empty where none are asked for.
    """

    items: list[TestItem]
    masks: list[np.ndarray]
    styles: list[np.ndarray]
    maps: list[np.ndarray]
    faults: list[tuple[TestItem, InputError]]


def make_pictures(job, checkpoint="default", device="auto", precision="auto", condition_cache_mb=None, model=None, *,
                  low_memory=None, rounds=None, color_transfer=True, ensemble=True, recipe=None, seed=0):
    """Makes the pictures of a job; with mpirun the processes share them.

    Files are read and written in the background, at most one batch ahead and one behind. Each appears whole.

    Args:
        job: a `ContestJob`.
        checkpoint, device, precision, condition_cache_mb, low_memory: as for `jiidm.load`.
        model: what the checkpoint must be: "iidm", "gaugan" or "clade" (None: whatever it is).
        rounds, color_transfer, ensemble, recipe, seed: as for `Generator.infer`.

    Returns:
        A sentence for each picture that could not be made.

    Raises:
        InputError: nothing can be made (folders, checkpoint or recipe are wrong), or a file cannot be written.
        Stopped: Ctrl-C; the pictures that are done have been written.
    """
    _check_job(job)
    folder = TestFolder(job.input_path, job.img_path)
    for path in (job.output_path, job.save_steps and job.steps, job.overview and job.overview.parent):
        if path:
            output_folder(path)
    settings = {"rounds": rounds, "color_transfer": color_transfer, "ensemble": ensemble, "recipe": recipe,
                "seed": seed}
    processes = _processes() if is_under_mpi() else None
    first = processes is None or processes.is_main_process()
    items = folder.items if processes is None else folder.items[processes.rank() :: processes.world_size()]
    problems, broken, reader = list(folder.problems) if first else [], set(), None
    try:
        with interruptible():
            waiting = [item for item in items if not (job.resume and _is_whole(job.picture(item)))]
        if waiting:
            generator = _load_generator(checkpoint, device, precision, condition_cache_mb, low_memory, model)
            reader = job.reader(generator.vocabulary)
            bar = tqdm(total=len(items), initial=len(items) - len(waiting), unit="image", dynamic_ncols=True,
                       disable=not first)
            with bar, _HostWork() as work:
                for item, error in _make_batches(job, waiting, generator, reader, settings, bar, work):
                    problems.append(f"{item.name}: {error}")
                    broken.add(item.name)
        with interruptible():
            if processes is not None:
                processes.barrier()  # also because mpirun ends all when one ends with problems
            if job.overview and first:
                shown = [item for item in folder.items if item.name not in broken and _is_whole(job.picture(item))]
                write_overview(job, shown, reader or job.reader(numbered(len(CLASSES))))
    except KeyboardInterrupt as stop:
        raise _stopped(job, folder, getattr(stop, "signal", signal.SIGINT)) from None
    return problems


def _processes():
    from jiidm.system import distributed  # imports Jittor

    return distributed


def _load_generator(checkpoint, device, precision, condition_cache_mb, low_memory, model):
    with interruptible():
        from jiidm.generator import load

        generator = load(checkpoint, device, precision, condition_cache_mb, low_memory=low_memory)
    if model is not None and generator.model != model:
        raise InputError(f"{checkpoint}: is of {generator.model}; expected {model}, as --model says")
    return generator


def _stopped(job, folder, number):
    """The `Stopped` that says how many pictures are there."""
    there, count = sum(job.picture(item).is_file() for item in folder.items), len(folder.items)
    return Stopped(number, f"stopped: {there} of {count} pictures are in {job.output_path}, {count - there} are "
                           f"missing; the same command with --resume goes on")


def _check_job(job):
    numbers = [job.width, job.height] if job.batch is None else [job.width, job.height, job.batch]
    if not 1 <= job.quality <= 100 or min(numbers) < 1:
        raise InputError(
            f"quality {job.quality}, {job.width}x{job.height}, batch {'auto' if job.batch is None else job.batch}: "
            "expected a quality of 1 to 100, a size and a batch of at least 1"
        )
    if job.classes != "auto":
        load_table(job.classes)  # told before the networks are loaded
    if job.style_labels and not job.style_labels.is_dir():
        raise InputError(f"{job.style_labels}: no such folder; expected the label maps of the style photos")
    if job.overview and (job.overview.suffix.lower() not in (".jpg", ".jpeg", ".png") or job.overview.is_dir()):
        raise InputError(f"{job.overview}: expected the name of a picture for the overview, such as overview.jpg")


def _make_batches(job, items, generator, reader, settings, bar, work):
    """Makes the pictures of the `TestItem`s; yields those that cannot be used, each with its error."""
    size = generator.batch_size() if job.batch is None else job.batch
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    ahead = work.submit(_read, job, parts[0], generator, reader)
    for index in range(len(parts)):
        batch = ahead.result()
        if index + 1 < len(parts):
            ahead = work.submit(_read, job, parts[index + 1], generator, reader)
        yield from batch.faults
        bar.update(len(batch.faults))
        if batch.items:
            _make_batch(job, batch, generator, settings, bar, work)
            bar.update(len(batch.items))


def _make_batch(job, batch, generator, settings, bar, work):
    """Makes the pictures of a `_Batch` and hands them over to be written."""
    stems = [Path(item.name).stem for item in batch.items]

    def on_step(step):
        bar.set_postfix_str(f"round {step.round + 1}, step {step.done}/{step.steps}")
        work.check()
        if step.pictures and job.save_steps:
            work.write(step.pictures, [job.steps / f"{stem}-round{step.round + 1}.jpg" for stem in stems], job)

    with interruptible():
        pictures = generator.infer(batch.masks, batch.styles, names=stems, on_step=on_step,
                                   style_labels=batch.maps or None, **settings)
    work.write(pictures, [job.picture(item) for item in batch.items], job)


def _read(job, items, generator, reader):
    """Reads and fits what a generator needs for a list of `TestItem`s; returns a `_Batch`."""
    batch = _Batch([], [], [], [], [])
    for item in items:
        try:
            mask = reader.read(item.mask)
            style = read_photo(item.reference)
            if job.style_labels:
                batch.maps.append(read_style_labels(job.style_labels / f"{item.reference.stem}.png", style,
                                                    reader, generator.width, generator.height))
        except InputError as error:
            batch.faults.append((item, error))
            continue
        batch.items.append(item)
        batch.masks.append(resize_labels(mask, generator.width, generator.height))
        batch.styles.append(fit_photo(style, generator.width, generator.height))
    return batch


class _HostWork:
    """Reads and writes in one background thread, in the order given, while the device computes.

    There is little to do, and on a small CPU more threads would slow the computation. At the end of a `with` block all
    of it is done, after an exception too.
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
        """Writes PIL images as JPEGs, after those given before; raises the error of these."""
        if self._writing:
            self._writing.result()
        self._writing = self.submit(_write, pictures, paths, job)


def write_overview(job, items, reader):
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
            [colorize(resize_labels(reader.read(item.mask), width, height), reader.vocabulary.table)
             for item in part] + blank,
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
