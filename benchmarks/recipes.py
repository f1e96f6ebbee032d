"""Compares recipes of the same weights by the judge, on one half of the label maps: choose on it, report on the other.

  python -m benchmarks.recipes --input_path data/test --img_path data/val --half first
  python -m benchmarks.recipes --input_path data/test --img_path data/val --half second --only own
"""
import argparse
from pathlib import Path

import numpy as np
import yaml

from benchmarks.judge import add_arguments, format_table, generate, keep_pictures, read_folders
from benchmarks.measuring import machine, write_files
from jiidm.commands.entry import run_tool
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.judged import judge_folders
from jiidm.evaluation.metrics import figure, resamples, style_correlation
from jiidm.evaluation.pairing import Task
from jiidm.system.errors import InputError

_SHOWN = ("judge_of_real", "KID", "sharpness_of_real")
_HALVES = {"first": 0, "second": 1}


def main():
    """Measures the recipes, prints the table and writes recipes-HALF.md and recipes-HALF.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "runs/recipes")
    parser.add_argument("--half", choices=tuple(_HALVES), required=True, help="which half: every other label map")
    parser.add_argument("--recipes", type=Path, default=Path(__file__).with_suffix(".yaml"),
                        help="YAML file: a name and the changed keys of the recipe for each (default: recipes.yaml)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these recipes")
    args, judge = parser.parse_args(), load_judge()
    recipes = yaml.safe_load(args.recipes.read_text("utf-8"))
    for name in args.only or ():
        if name not in recipes:
            raise InputError(f"--only {name}: no such recipe; expected one of: {'; '.join(recipes)}")
    folder, *found = read_folders(args, judge)
    items, stems, photos = (each[_HALVES[args.half]::2] for each in found)
    size, place = photos[0].shape[1::-1], args.pictures / args.half
    pictures = {"real": keep_pictures(place / "real", stems, lambda: photos)}
    for name in args.only or recipes:
        pictures[name] = keep_pictures(place / name, stems, lambda recipe=recipes[name]: generate(
            items, args.checkpoint, args.eight_classes, recipe=recipe))
    tasks = [Task(stem, folder.paths(stem)[1], item.reference) for stem, item in zip(stems, items, strict=True)]
    draws = resamples(len(tasks), args.resamples)
    styles = [fit_photo(read_photo(item.reference), *size) for item in items]
    figures = {}
    for row, judged in judge_folders(judge, tasks, pictures, draws).items():
        shown = [fit_photo(read_photo(pictures[row][stem]), *size) for stem in stems]
        style = np.array([style_correlation(*pair) for pair in zip(shown, styles, strict=True)])
        figures[row] = {name: judged.figures[name] for name in _SHOWN}
        figures[row]["style correlation"] = figure(style.mean(), style[draws].mean(1))
    text = (f"# Recipes\n\nThe {args.half} half of the label maps, {len(items)}; weights {args.checkpoint.name}; "
            f"brackets: 95 %\n\n{format_table(figures, list(figures['real']))}\n")
    rows = {row: {name: list(f) for name, f in found.items()} for row, found in figures.items()}
    print(write_files(args.output, f"recipes-{args.half}", text, rows, {
        "judge": judge.sha256, "recipes": {name: recipes[name] for name in args.only or recipes}, **machine()}))
    return 0


if __name__ == "__main__":
    run_tool(main)
