"""Recipes of the same weights, compared by the judge on one half of the label maps; report the chosen one on the other.

  python -m benchmarks.recipes --input_path data/test --img_path data/val --half first
  python -m benchmarks.recipes --input_path data/test --img_path data/val --half second --only own "guidance 3, 5"
"""
import argparse
import json
from pathlib import Path

import numpy as np
import yaml

from benchmarks.judge import generated, kept
from benchmarks.measuring import machine
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TestFolder, TrainingFolder
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.judge import load_judge
from jiidm.evaluation.judged import JUDGED, judge_folders
from jiidm.evaluation.metrics import figure, resamples, style_correlation
from jiidm.evaluation.pairing import Task
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole

_SHOWN = ("judge_of_real", "KID", "sharpness_of_real")
_FIRST = {"first": 0, "second": 1}


def main():
    """Measures the recipes, prints the table and writes recipes-HALF.md and recipes-HALF.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", type=Path, required=True, help="test folder of hand-made label maps")
    parser.add_argument("--img_path", type=Path, required=True,
                        help="training folder that has the style photos and the masks' own photos, with label maps")
    parser.add_argument("--half", choices=tuple(_FIRST), required=True, help="which label maps: every other one")
    parser.add_argument("--recipes", type=Path, default=Path(__file__).with_suffix(".yaml"),
                        help="YAML file: a name and the changed keys of the recipe for each (default: recipes.yaml)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these recipes alone")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_WEIGHTS, help="folder of weights")
    parser.add_argument("--limit", type=int, help="take this many label maps of the half alone")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, default=Path("runs/recipes"),
                        help="folder that keeps the recipes' pictures; those in it are used again")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    recipes = yaml.safe_load(args.recipes.read_text("utf-8"))
    for name in args.only or ():
        if name not in recipes:
            raise InputError(f"--only {name}: no such recipe; expected one of: {'; '.join(recipes)}")
    folder, judge = TrainingFolder(args.img_path), load_judge()
    size = judge.config.picture_width, judge.config.picture_height
    items = TestFolder(args.input_path, args.img_path).items[_FIRST[args.half]::2][:args.limit]
    stems = [Path(item.name).stem for item in items]
    tasks = [Task(stem, folder.paths(stem)[1], item.reference) for stem, item in zip(stems, items, strict=True)]
    styles = [fit_photo(read_photo(item.reference), *size) for item in items]
    place = args.pictures / args.half
    pictures = {"real": kept(place / "real", stems, lambda: [fit_photo(folder.photo(stem), *size) for stem in stems])}
    for name in args.only or recipes:
        pictures[name] = kept(place / name, stems, lambda recipe=recipes[name]: generated(
            items, args.checkpoint, reduce=False, recipe=recipe))
    draws = resamples(len(tasks), args.resamples)
    judged = judge_folders(judge, tasks, pictures, draws)
    rows = {}
    for name, files in pictures.items():
        shown = [fit_photo(read_photo(files[stem]), *size) for stem in stems]
        style = np.array([style_correlation(*pair) for pair in zip(shown, styles, strict=True)])
        rows[name] = {key: judged[name].figures[key] for key in _SHOWN}
        rows[name]["style"] = figure(style.mean(), style[draws].mean(1))
    titles = [*(JUDGED[key][0] for key in _SHOWN), "style correlation"]
    lines = [f"| | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for name, found in rows.items():
        cells = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = (f"# Recipes\n\nThe {args.half} half of the label maps, {len(items)}; weights {args.checkpoint.name}; "
            f"brackets: 95 %\n\n" + "\n".join(lines) + "\n")
    output_folder(args.output)
    about = {"judge": judge.sha256, "label maps": len(items), "recipes": {n: recipes[n] for n in rows if n in recipes},
             **machine()}
    content = {name: {key: list(f) for key, f in found.items()} for name, found in rows.items()}
    for suffix, written in (("md", text), ("json", json.dumps({"about": about, "rows": content}, indent=1) + "\n")):
        with written_whole(args.output / f"recipes-{args.half}.{suffix}") as path:
            path.write_text(written, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    run_tool(main)
