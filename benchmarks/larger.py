"""A round at twice the size against plain enlargement, in windows of the judge's own size.

The judge reduces a picture to 256x192, so it sees nothing of what twice the size adds. Here it gets the four quarters
of a picture of 512x384, and the four corners of large photos. KID is between the two, the mean over the corners; no
label map takes part.

  python -m benchmarks.larger --input_path data/test --img_path data/val --photos LARGE
"""
import argparse
from pathlib import Path

import numpy as np

from benchmarks.judge import add_arguments, generate, keep_pictures
from benchmarks.measuring import machine, write_files
from jiidm import Generator
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TestFolder
from jiidm.data.pictures import fit_photo, photo_size, read_photo
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.metrics import centred, figure
from jiidm.evaluation.realism import kernel_distance, kernel_distances_of_halves, sharpness
from jiidm.evaluation.report import format_figure
from jiidm.system.errors import InputError

START = 15  # of the round at twice the size
FEWEST = 20  # photos
CORNERS = 4


def cut_corners(picture, width, height):
    """The windows (height x width x 3) in the four corners of a picture (H x W x 3 uint8)."""
    rows, columns = ((slice(part), slice(-part, None)) for part in (height, width))
    return [picture[row, column] for row in rows for column in columns]


def read_large(folder, width, height):
    """Reads the photos of a folder (H x W x 3 uint8 each) that are about `width` x `height` pixels or larger.

    Larger ones are reduced to that size; those down to seven eighths of it stay as they are, since enlarging would blur
    them. Raises InputError where there are too few.
    """
    found = []
    for path in sorted(folder.glob("*.jpg")):
        wide, high = photo_size(path)
        if 8 * wide >= 7 * width and 8 * high >= 7 * height:
            photo = read_photo(path)
            found.append(fit_photo(photo, width, height) if wide >= width and high >= height else photo)
    if len(found) < FEWEST:
        raise InputError(f"--photos {folder}: {len(found)} photos (*.jpg) of about {width}x{height} pixels or more; "
                         f"expected {FEWEST}")
    return found


def main():
    """Measures both, prints the table and writes larger.md and larger.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "runs/larger")
    parser.add_argument("--photos", type=Path, required=True, help="folder of large photos; small ones are left out")
    args = parser.parse_args()
    judge, generator = load_judge(), Generator.from_checkpoint(str(args.checkpoint))
    window = judge.config.picture_width, judge.config.picture_height
    size = 2 * generator.width, 2 * generator.height
    rows = {"photos": read_large(args.photos, *size)}
    items = TestFolder(args.input_path, args.img_path).items[:args.limit]
    stems = [Path(item.name).stem for item in items]
    own = [vars(each) for each in generator.config.inference.rounds]
    recipes = {"enlarged (Lanczos)": own,
               f"one more round, start {START}": [*own, {**own[-1], "scale": 2.0, "start": START}]}
    for name, rounds in recipes.items():
        files = keep_pictures(args.pictures / name, stems, lambda rounds=rounds: generate(
            items, args.checkpoint, args.eight_classes, size=size, recipe={"rounds": rounds}))
        rows[name] = [read_photo(file) for file in files.values()]
    features, sharp = {}, {}
    for name, pictures in rows.items():
        windows = [each for picture in pictures for each in cut_corners(picture, *window)]
        features[name] = judge.judge(windows)[1].reshape(len(pictures), CORNERS, -1).swapaxes(0, 1)
        sharp[name] = np.mean([sharpness(each) for each in windows])
    lines, figures = ["| | KID of the windows | sharpness, of the photos' |", "| --- | ---: | ---: |"], {}
    for name in recipes:
        pairs = list(zip(features[name], features["photos"], strict=True))
        value = np.mean([kernel_distance(*pair) for pair in pairs])
        halves = np.mean([kernel_distances_of_halves(*pair, args.resamples) for pair in pairs], 0)
        kid, share = figure(value, centred(halves, value)), sharp[name] / sharp["photos"]
        figures[name] = {"KID": list(kid), "sharpness_of_photos": share}
        lines.append(f"| {name} | {format_figure(kid, 3)} | {share:.2f} |")
    text = (f"# Twice the size\n\n{len(items)} label maps, pictures of {size[0]}x{size[1]}, windows of "
            f"{window[0]}x{window[1]}; {len(rows['photos'])} photos; weights {args.checkpoint.name}; brackets: 95 %\n\n"
            + "\n".join(lines) + "\n")
    print(write_files(args.output, "larger", text, figures, {"judge": judge.sha256, **machine()}))
    return 0


if __name__ == "__main__":
    run_tool(main)
