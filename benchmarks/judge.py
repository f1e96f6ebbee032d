"""The judge's test: its figures of pictures that everybody can rank, and of the weights' pictures.

Rows: real photos, the same blurred, reduced or in flat colours (each class in its mean colour), the autoencoder's
reconstruction, one round, and the full recipe. Mask accuracy is against hand-made label maps, exact and with near
classes as one; KID and sharpness are against the real photos of the same masks.

  python -m benchmarks.judge --input_path data/test --img_path data/val
"""
import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.measuring import autoencoder_in, machine, reconstruct, write_files
from jiidm import Generator
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TestFolder, TrainingFolder
from jiidm.data.labels import CLASSES, fit_labels, read_label_map
from jiidm.data.pictures import fit_photo, read_photo, sheet_of
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.judged import JUDGED, judge_folders
from jiidm.evaluation.metrics import figure, resamples
from jiidm.evaluation.pairing import Task
from jiidm.evaluation.report import format_figure
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.system.files import output_folder, written_whole
from jiidm.training.quality import psnr_ssim

BATCH = 4
BLURS = 1, 2, 4  # pixels
# For weights that know Stanford's eight classes: the classes that are drawn as each of them.
_NEAREST_OF_EIGHT = {
    "sky": "sky", "tree": "tree plant", "road": "road path earth land sand", "grass": "grass field",
    "water": "water sea river lake waterfall", "building": "building house bridge wall pier",
    "mountain": "mountain hill rock", "other": "other person boat ship railing fence",
}


def blur(photo, sigma):
    """Blurs a photo (H x W x 3 uint8) by a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(photo, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def shrink_and_enlarge(photo):
    """Reduces a photo (H x W x 3 uint8) to three quarters of its sides and enlarges it again."""
    height, width = photo.shape[:2]
    small = cv2.resize(photo, (width * 3 // 4, height * 3 // 4), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def flatten_classes(photo, labels):
    """Paints a label map in the photo's mean colour of each class."""
    picture = np.zeros_like(photo)
    for c in np.unique(labels):
        picture[labels == c] = np.rint(photo[labels == c].mean(0))
    return picture


def eight_class_table():
    """The table (29 uint8) from each class to the nearest of Stanford's eight."""
    table = np.zeros(len(CLASSES), np.uint8)
    for name, members in _NEAREST_OF_EIGHT.items():
        table[[CLASSES.index(member) for member in members.split()]] = CLASSES.index(name)
    return table


def generate(items, weights, reduce, style_labels=None, **options):
    """Generates the pictures of test items with a folder of weights; `style_labels` is None or a label map an item."""
    generator, pictures = Generator.from_checkpoint(str(weights)), []
    for start in range(0, len(items), BATCH):
        some = items[start:start + BATCH]
        masks = [read_label_map(item.mask) for item in some]
        masks = [eight_class_table()[mask] for mask in masks] if reduce else masks
        names = [Path(item.name).stem for item in some]
        maps = style_labels and style_labels[start:start + BATCH]
        made = generator.infer(masks, [item.reference for item in some], names=names, style_labels=maps, **options)
        pictures += [np.asarray(picture) for picture in made]
        print(f"\r{len(pictures)} of {len(items)}", end="", file=sys.stderr, flush=True)
    return pictures


def list_rows(items, photos, labels, weights, reduce):
    """Yields (name of the row, function that makes its pictures)."""
    yield "real", lambda: photos
    for sigma in BLURS:
        yield f"blurred, {sigma} px", lambda sigma=sigma: [blur(photo, sigma) for photo in photos]
    yield "reconstruction by the autoencoder", lambda: list(reconstruct(photos, autoencoder_in(weights)))
    yield "reduced to 3/4 and enlarged again", lambda: [shrink_and_enlarge(photo) for photo in photos]
    yield "flat colours", lambda: [flatten_classes(*each) for each in zip(photos, labels, strict=True)]
    yield "one round", lambda: generate(items, weights, reduce, rounds=1)
    yield "full recipe", lambda: generate(items, weights, reduce)


def keep_pictures(folder, stems, make):
    """Makes a row's pictures by `make()`, unless `folder` has them; returns {stem: path}."""
    files = {stem: folder / f"{stem}.png" for stem in stems}
    if not all(file.exists() for file in files.values()):
        output_folder(folder)
        for file, picture in zip(files.values(), make(), strict=True):
            Image.fromarray(picture).save(file)
    return files


def format_table(figures, names):
    """Returns the Markdown table of {row: {name: `Figure`}}; `names` are those of the columns."""
    titles = [JUDGED[name][0] if name in JUDGED else name for name in names]
    lines = [f"| | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(names)}"]
    for row, found in figures.items():
        lines.append(f"| {row} | {' | '.join(format_figure(found[name], 3) for name in names)} |")
    return "\n".join(lines)


def add_arguments(parser, pictures):
    """Adds the arguments that rows of pictures need; `pictures` is the usual folder of the pictures."""
    parser.add_argument("--input_path", type=Path, required=True, help="test folder of hand-made label maps")
    parser.add_argument("--img_path", type=Path, required=True,
                        help="training folder with the style photos, the masks' own photos and their label maps")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_WEIGHTS, help="folder of weights")
    parser.add_argument("--eight-classes", action="store_true", help="reduce the maps to Stanford's eight classes")
    parser.add_argument("--limit", type=int, help="take only the first N label maps")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default %(default)s)")
    parser.add_argument("--pictures", type=Path, default=Path(pictures),
                        help="folder of the rows' pictures; those in it are used again")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")


def read_folders(args, judge):
    """Returns the `TrainingFolder`, the items of the test folder, their names, and their photos at the judge's size."""
    folder, items = TrainingFolder(args.img_path), TestFolder(args.input_path, args.img_path).items[:args.limit]
    stems, size = [Path(item.name).stem for item in items], (judge.config.picture_width, judge.config.picture_height)
    return folder, items, stems, [fit_photo(folder.photo(stem), *size) for stem in stems]


def main():
    """Measures the rows, prints the table and writes judge.md and judge.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "runs/judge-pictures")
    parser.add_argument("--judge", type=Path, help="file of the judge's head (default: the package's)")
    parser.add_argument("--test-only", action="store_true", help="only the rows that need no UNet")
    args = parser.parse_args()
    judge = load_judge(args.judge)
    folder, items, stems, photos = read_folders(args, judge)
    size = photos[0].shape[1::-1]
    labels = [fit_labels(folder.labels(stem), *size) for stem in stems]
    pictures = {}
    for row, make in list_rows(items, photos, labels, args.checkpoint, args.eight_classes):
        pictures[row] = keep_pictures(args.pictures / row, stems, make)
        if args.test_only and row == "flat colours":
            break
    tasks = [Task(stem, folder.paths(stem)[1], item.reference) for stem, item in zip(stems, items, strict=True)]
    draws = resamples(len(tasks), args.resamples)
    judged = judge_folders(judge, tasks, pictures, draws)
    rebuilt = [read_photo(pictures["reconstruction by the autoencoder"][stem]) for stem in stems]
    psnr = np.array([psnr_ssim(a[None], b[None])[0] for a, b in zip(photos, rebuilt, strict=True)])
    psnr = figure(psnr.mean(), psnr[draws].mean(1))
    table = format_table({row: found.figures for row, found in judged.items()}, [n for n in JUDGED if n != "sharpness"])
    text = (f"# The judge's rows\n\n{len(items)} hand-made label maps, {size[0]}x{size[1]}; judge {judge.file}, sha256 "
            f"{judge.sha256[:16]}; weights {args.checkpoint.name}{', eight classes' if args.eight_classes else ''}; "
            f"brackets: 95 %\n\n{table}\n\nPSNR of the reconstruction: "
            f"{format_figure(psnr, 1)} dB\n")
    figures = {row: {name: list(f) for name, f in found.figures.items()} for row, found in judged.items()}
    figures["reconstruction by the autoencoder"]["PSNR"] = list(psnr)
    write_files(args.output, "judge", text, figures, {"judge": judge.sha256, "label maps": len(items), **machine()})
    some = [stems[i] for i in np.linspace(0, len(stems) - 1, 8).astype(int)]
    shown = [[read_photo(files[stem]) for stem in some] for files in pictures.values()]
    with written_whole(args.pictures / "sheet.jpg") as path:
        Image.fromarray(sheet_of(shown, list(pictures))).save(path, quality=90)
    print(text)
    return 0


if __name__ == "__main__":
    run_tool(main)
