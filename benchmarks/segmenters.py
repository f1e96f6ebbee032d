"""Measures the segmenters of `jiidm segment` by class, on hand-made label maps.

  python -m benchmarks.segmenters --data data/val

prints a Markdown table. The photos are those that by_hand.txt names, where the folder has that file.
"""
import argparse

import numpy as np
from tqdm import tqdm

from jiidm.commands.options import add_device
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES
from jiidm.evaluation.judge import NOTHING, merge_near_classes, near_class_table
from jiidm.evaluation.metrics import confusion, mask_accuracy
from jiidm.evaluation.segment import open_segmenter
from jiidm.system.runtime import use_device


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="folder of photos and label maps")
    parser.add_argument("--segmenters", nargs="+", default=["judge", "small"], metavar="NAME|FILE",
                        help="as of jiidm segment --segmenter (default: judge small)")
    add_device(parser)
    return parser.parse_args()


def measure(segmenter, folder):
    """Returns the confusion matrices of the photos of a folder, N x 30 x 30; the last class is never predicted."""
    matrices = []
    for name in tqdm(folder.by_hand() or folder.names, segmenter.name, unit="photo", mininterval=1):
        labels = segmenter.segment(folder.photo(name)).labels
        matrices.append(confusion(folder.labels(name), labels, NOTHING + 1))
    return np.stack(matrices)


def format_rows(name, matrices):
    """Returns the headings and {class: cells} of a segmenter; "all" is the mean over pictures."""
    total = matrices.sum(0).astype(float)
    cells = {"all": [f"{np.nanmean(mask_accuracy(matrices)):.3f}",
                     f"{np.nanmean(mask_accuracy(merge_near_classes(matrices))):.3f}", ""]}
    of_group = share_found(total)
    for c, pixels in enumerate(total.sum(1)):
        if pixels and c < NOTHING:
            union = pixels + total[:, c].sum() - total[c, c]
            cells[CLASSES[c]] = [f"{total[c, c] / pixels:.2f}", f"{of_group[c]:.2f}", f"{total[c, c] / union:.2f}"]
    return [f"{name}: found", "near classes as one", "IoU"], cells


def share_found(total):
    """Returns the share of each class's pixels that were predicted as it or as a near class."""
    near = near_class_table()
    same = near[:, None] == near[None]
    return (total * same).sum(1) / np.maximum(total.sum(1), 1)


def main():
    """Measures the segmenters and prints the table."""
    arguments = parse_arguments()
    use_device(arguments.device)
    folder = TrainingFolder(arguments.data)
    measured = {name: measure(open_segmenter(name), folder) for name in arguments.segmenters}
    pixels = next(iter(measured.values())).sum((0, 2))
    columns = [format_rows(name, matrices) for name, matrices in measured.items()]
    print("| class | share of the pixels | " + " | ".join(title for titles, _ in columns for title in titles) + " |")
    print("| --- | ---: |" + " ---: |" * sum(len(titles) for titles, _ in columns))
    for name in ["all", *(CLASSES[c] for c in np.argsort(-pixels, kind="stable") if c < NOTHING and pixels[c])]:
        share = "" if name == "all" else f"{100 * pixels[CLASSES.index(name)] / pixels.sum():.1f}%"
        print(f"| {name} | {share} | " + " | ".join(cell for _, cells in columns for cell in cells[name]) + " |")


if __name__ == "__main__":
    main()
