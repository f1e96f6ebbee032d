"""Compares colour transfer by class with that of whole pictures: mask accuracy, realism and style.

Rows: the recipe; the recipe by class, with the style photos' own label maps; the same with predicted label maps. Mask
accuracy, KID and sharpness are the judge's. Style is the correlation of colour histograms: of whole pictures, and of
each class that both pictures have.

  python -m benchmarks.color_by_class --input_path data/test --img_path data/val --limit 40
"""
import argparse

import numpy as np

from benchmarks.judge import add_arguments, eight_class_table, format_table, generate, keep_pictures, read_folders
from benchmarks.measuring import machine, write_files
from jiidm.commands.entry import run_tool
from jiidm.data.labels import CLASSES, fit_labels
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.judged import judge_folders
from jiidm.evaluation.metrics import figure, resamples, style_correlation
from jiidm.evaluation.pairing import Task

_SHOWN = ("judge", "judge_near", "judge_of_real", "KID", "sharpness_of_real")
_LEAST = 0.02  # of both pictures; the colours of a smaller class say little


def correlate_classes(picture, style, labels, style_labels):
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
    add_arguments(parser, "runs/color-by-class")
    args, judge = parser.parse_args(), load_judge()
    folder, items, stems, photos = read_folders(args, judge)
    size = photos[0].shape[1::-1]
    reduced = np.arange(256, dtype=np.uint8)
    if args.eight_classes:
        reduced[:len(CLASSES)] = eight_class_table()
    labels = [reduced[fit_labels(folder.labels(stem), *size)] for stem in stems]
    style_labels = [reduced[folder.labels(item.reference.stem)] for item in items]

    def make(**options):
        return lambda: generate(items, args.checkpoint, args.eight_classes, **options)

    rows = {
        "real": lambda: photos,
        "whole pictures": make(),
        "by class": make(style_labels=style_labels),
        "by class, predicted maps": make(recipe={"color_by_class": True}),
    }
    pictures = {row: keep_pictures(args.pictures / row, stems, made) for row, made in rows.items()}
    tasks = [Task(stem, folder.paths(stem)[1], item.reference) for stem, item in zip(stems, items, strict=True)]
    draws = resamples(len(tasks), args.resamples)
    judged = judge_folders(judge, tasks, pictures, draws)
    styles = [fit_photo(read_photo(item.reference), *size) for item in items]
    maps = [fit_labels(each, *size) for each in style_labels]
    figures = {}
    for row, files in pictures.items():
        shown = [fit_photo(read_photo(files[stem]), *size) for stem in stems]
        whole = np.array([style_correlation(*pair) for pair in zip(shown, styles, strict=True)])
        classes = np.array([correlate_classes(*each) for each in zip(shown, styles, labels, maps, strict=True)])
        figures[row] = {name: judged[row].figures[name] for name in _SHOWN}
        for name, values in (("style correlation", whole), ("style of classes", classes)):
            figures[row][name] = figure(np.nanmean(values), np.nanmean(values[draws], 1))
    text = (f"# Colour transfer by class\n\n{len(items)} label maps; weights {args.checkpoint.name}"
            f"{', eight classes' if args.eight_classes else ''}; brackets: 95 %\n\n"
            f"{format_table(figures, list(figures['real']))}\n")
    rows = {row: {name: list(f) for name, f in found.items()} for row, found in figures.items()}
    print(write_files(args.output, "color_by_class", text, rows,
                      {"judge": judge.sha256, "label maps": len(items), **machine()}))
    return 0


if __name__ == "__main__":
    run_tool(main)
