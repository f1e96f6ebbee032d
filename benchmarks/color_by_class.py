"""Colour transfer by class against that of whole pictures: what it does to the mask, to realism and to the style.

Rows: the recipe as it is; the same from class to class, by the style photos' own label maps and by those that the
package's segmenter predicts. Mask accuracy, KID and sharpness are the judge's; style is the correlation of colour
histograms, of the whole pictures and of each class that both have.

  python -m benchmarks.color_by_class --input_path data/test --img_path data/val --limit 40
"""
import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.judge import eight_classes, generated, kept
from benchmarks.measuring import machine
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TestFolder, TrainingFolder
from jiidm.data.labels import CLASSES, fit_labels
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.judged import JUDGED, judge_folders
from jiidm.evaluation.metrics import Figure, figure, resamples, style_correlation
from jiidm.evaluation.pairing import Task
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.system.files import output_folder, written_whole

_SHOWN = ("judge", "judge_near", "judge_of_real", "KID", "sharpness_of_real")
_LEAST = 0.02  # of both pictures: a class's colours in less say little


def of_classes(picture, style, labels, style_labels):
    """The style correlation of each class that both pictures have, weighted by its pixels; NaN where there is none."""
    shares, found = [], []
    for c in np.unique(labels):
        here, there = labels == c, style_labels == c
        if min(here.mean(), there.mean()) >= _LEAST:
            shares.append(here.mean())
            found.append(style_correlation(picture[here][:, None], style[there][:, None]))
    return float(np.average(found, weights=shares)) if found else np.nan


def main():
    """Measures the rows, prints the table and writes color_by_class.md and color_by_class.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", type=Path, required=True, help="test folder of hand-made label maps")
    parser.add_argument("--img_path", type=Path, required=True,
                        help="training folder that has the style photos and the masks' own photos, with label maps")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_WEIGHTS, help="folder of weights")
    parser.add_argument("--eight-classes", action="store_true", help="reduce the maps to Stanford's eight classes")
    parser.add_argument("--limit", type=int, help="take this many label maps alone")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, default=Path("runs/color-by-class"),
                        help="folder that keeps the rows' pictures; those in it are used again")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    folder, judge = TrainingFolder(args.img_path), load_judge()
    size = judge.config.picture_width, judge.config.picture_height
    items = TestFolder(args.input_path, args.img_path).items[:args.limit]
    stems = [Path(item.name).stem for item in items]
    reduced = np.arange(256, dtype=np.uint8)
    if args.eight_classes:
        reduced[:len(CLASSES)] = eight_classes()
    labels = [reduced[fit_labels(folder.labels(stem), *size)] for stem in stems]
    style_labels = [reduced[folder.labels(item.reference.stem)] for item in items]

    def make(**options):
        return lambda: generated(items, args.checkpoint, args.eight_classes, **options)

    rows = {
        "real": lambda: [fit_photo(folder.photo(stem), *size) for stem in stems],
        "whole pictures": make(),
        "by class": make(style_labels=style_labels),
        "by class, predicted maps": make(recipe={"color_by_class": True}),
    }
    pictures = {row: kept(args.pictures / row, stems, made) for row, made in rows.items()}
    tasks = [Task(stem, folder.paths(stem)[1], item.reference) for stem, item in zip(stems, items, strict=True)]
    draws = resamples(len(tasks), args.resamples)
    judged = judge_folders(judge, tasks, pictures, draws)
    styles = [fit_photo(read_photo(item.reference), *size) for item in items]
    maps = [fit_labels(each, *size) for each in style_labels]
    figures = {}
    for row, files in pictures.items():
        shown = [fit_photo(read_photo(files[stem]), *size) for stem in stems]
        whole = np.array([style_correlation(*pair) for pair in zip(shown, styles, strict=True)])
        classes = np.array([of_classes(*each) for each in zip(shown, styles, labels, maps, strict=True)])
        figures[row] = {name: judged[row].figures[name] for name in _SHOWN}
        for name, values in (("style", whole), ("style of classes", classes)):
            figures[row][name] = figure(np.nanmean(values), np.nanmean(values[draws], 1))
    text = _report(figures, len(items), args)
    output_folder(args.output)
    about = {"judge": judge.sha256, "label maps": len(items), **machine()}
    content = {row: {name: list(f) for name, f in found.items()} for row, found in figures.items()}
    for suffix, written in (("md", text), ("json", json.dumps({"about": about, "rows": content}, indent=1) + "\n")):
        with written_whole(args.output / f"color_by_class.{suffix}") as path:
            path.write_text(written, "utf-8")
    print(text)
    return 0


def _report(figures: dict[str, dict[str, Figure]], count, args):
    names = list(next(iter(figures.values())))
    titles = [JUDGED[name][0] if name in JUDGED else {"style": "style correlation"}.get(name, name) for name in names]
    lines = [f"| | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(names)}"]
    for row, found in figures.items():
        cells = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in found.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    about = f"{count} label maps; weights {args.checkpoint.name}{', eight classes' if args.eight_classes else ''}"
    return f"# Colour transfer by class\n\n{about}; brackets: 95 %\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_tool(main)
