"""The contest's main job: a test folder in, one picture for every label map out."""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from jiidm.data.folder import TestFolder, fit_photo, read_photo
from jiidm.files import InputError, output_folder, written_whole
from jiidm.generator import Generator
from jiidm.labels import CLASSES, colorize, read_label_map, resize_labels
from jiidm.pictures import sheet_of

_THUMBNAIL = 256  # pixels of width on the sheet; less where there are many pictures
_MANY = 100
_COLUMNS = 6


@dataclass(frozen=True)
class ContestJob:
    """What to make and where: the contest's folders, the size and quality of the JPEGs, and what to keep."""

    input_path: Path
    img_path: Path
    output_path: Path
    width: int = 512
    height: int = 384
    quality: int = 95
    batch: int = 4
    resume: bool = False
    save_steps: bool = False
    overview: Path | None = None

    def picture(self, item):
        """Path of the picture of a `TestItem`."""
        return self.output_path / f"{Path(item.name).stem}.jpg"


def make_pictures(job, checkpoint="default", device="auto", **settings):
    """Makes the pictures of a `ContestJob` with the keyword arguments of `Generator.infer`.

    Returns a sentence for each picture that could not be made; the others are made. Each file appears whole. Raises
    InputError where nothing can be made: folders, checkpoint or settings that are wrong.
    """
    if not 1 <= job.quality <= 100 or min(job.width, job.height, job.batch) < 1:
        raise InputError(
            f"quality {job.quality}, {job.width}x{job.height}, batch {job.batch}: "
            "expected a quality of 1 to 100, a size and a batch of at least 1"
        )
    if job.overview and (job.overview.suffix.lower() not in (".jpg", ".jpeg", ".png") or job.overview.is_dir()):
        raise InputError(f"{job.overview}: expected the name of a picture for the overview, such as overview.jpg")
    folder = TestFolder(job.input_path, job.img_path)
    problems, broken = list(folder.problems), set()
    steps = output_folder(job.output_path / "steps") if job.save_steps else output_folder(job.output_path)
    if job.overview:
        output_folder(job.overview.parent)
    num_classes = len(CLASSES)
    waiting = [item for item in folder.items if not (job.resume and _is_whole(job.picture(item)))]
    if waiting:
        generator = Generator.from_checkpoint(checkpoint, device)
        num_classes = generator.config.unet.num_classes
    made = len(folder.items) - len(waiting)
    with tqdm(total=len(folder.items), initial=made, unit="image", dynamic_ncols=True) as bar:
        for start in range(0, len(waiting), job.batch):
            batch = waiting[start : start + job.batch]
            good, masks, styles = [], [], []
            for item in batch:
                try:
                    mask = read_label_map(item.mask, num_classes)
                    style = read_photo(item.reference)
                except InputError as error:
                    problems.append(f"{item.name}: {error}")
                    broken.add(item.name)
                    bar.update()
                    continue
                good.append(item), masks.append(mask), styles.append(style)
            if not good:
                continue
            stems = [Path(item.name).stem for item in good]

            def on_step(number, done, count, pictures, stems=stems):
                bar.set_postfix_str(f"round {number + 1}, step {done}/{count}")
                if pictures and job.save_steps:
                    for stem, picture in zip(stems, pictures, strict=True):
                        _write(picture, steps / f"{stem}-round{number + 1}.jpg", job)

            for item, picture in zip(
                good, generator.infer(masks, styles, names=stems, on_step=on_step, **settings), strict=True
            ):
                _write(picture, job.picture(item), job)
                bar.update()
    if job.overview:
        shown = [item for item in folder.items if item.name not in broken and _is_whole(job.picture(item))]
        write_overview(job, shown, num_classes)
    return problems


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


def _write(picture, path, job):
    if picture.size != (job.width, job.height):
        picture = picture.resize((job.width, job.height), Image.Resampling.LANCZOS)
    with written_whole(path) as temporary:
        picture.save(temporary, quality=job.quality)


def _is_whole(path):
    try:
        return path.is_file() and read_photo(path) is not None
    except InputError:
        return False
