"""Draws how a training run went: the columns of its tables, such as unet.csv, as curves in one PNG.

  jiidm plot runs/paper
  jiidm plot runs/paper --output paper.png

Losses are drawn as they were logged (pale) and smoothed. It may be used while the run goes on.
"""
import argparse
import csv
import re
from pathlib import Path

import numpy as np

from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole

TABLES = ("autoencoder", "autoencoder-quality", "decoder", "decoder-quality", "unet", "generator", "segmenter",
          "segmenter-validation", "judge", "judge-validation")  # .csv
# title of a panel, columns that belong there, whether its curves are smoothed, whether its axis may be logarithmic;
# what matches none of them is a loss
PANELS = (
    ("loss by quarter of the timesteps", r"quarter_?[1-4]$", True, True),
    ("gradient norm", r"gradient|grad_norm", True, True),
    ("adversarial losses", r"^(generator|discriminator)$", True, False),
    ("PSNR, dB", r"psnr", False, False),
    ("SSIM", r"ssim", False, False),
    ("mask accuracy, mean IoU", r"^(mask_accuracy|mean_iou)$", True, False),
    ("share of the codes in use", r"^codes|^codebook_use", False, False),
    ("learning rate", r"^learning_rate$", False, True),
    ("samples a second", r"^samples_per_second$", True, False),
)
LOSSES = "losses"
ACROSS, WIDTH, HEIGHT = 3, 5.0, 3.2  # panels in a row; inches of one


def read_table(path):
    """Returns {column: float array} of a run's table; raises InputError where it is not one or has no row yet.

    A last line that is cut off, as in a table that is being written, is left out.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({getattr(error, 'strerror', None) or error})") from error
    if not rows or "step" not in rows[0]:
        raise InputError(f"{path}: no table of a training run; its first line should name the column step")
    names, rows = rows[0], rows[1:]
    if rows and len(rows[-1]) < len(names):
        rows.pop()
    if not rows:
        raise InputError(f"{path}: no row yet; the first one comes after a few steps of training")
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise InputError(f"{path}: line {number} has {len(row)} values for {len(names)} columns; mend the table")
    return {name: _numbers([row[i] for row in rows], path, name) for i, name in enumerate(names)}


def _numbers(texts, path, name):
    """The texts as floats, an empty one as NaN."""
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError as error:
        raise InputError(f"{path}: column {name}: {error}; mend the table") from error


def panels_of(table):
    """Returns [(title, columns, smooth, logarithmic)] for the columns of a table with a number other than zero."""
    live = [name for name, values in table.items() if name != "step" and values[np.isfinite(values)].any()]
    panels, taken = [], set()
    for title, pattern, *how in PANELS:
        columns = [name for name in live if re.search(pattern, name) and name not in taken]
        taken |= set(columns)
        if columns:
            panels.append((title, columns, *how))
    losses = [name for name in live if name not in taken]
    return [(LOSSES, losses, True, True), *panels] if losses else panels


def smoothed(values, window):
    """Exponential moving average over about `window` rows, without the bias of its start; NaN rows count for none."""
    keep, total, weight, result = 1 - 1 / max(window, 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total, keep * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1
        result.append(total / weight if weight else np.nan)
    return np.array(result)


def draw_panel(axes, table, title, columns, smooth, logarithmic):
    """Draws the `columns` of a table over the steps."""
    steps = table["step"]
    for name in columns:
        values = table[name]
        if smooth and len(values) > 5:
            line, = axes.plot(steps, values, linewidth=0.8, alpha=0.3)
            axes.plot(steps, smoothed(values, len(values) / 25), color=line.get_color(), label=name)
        else:
            axes.plot(steps, values, label=name, marker="o" if len(values) == 1 else None)
    finite = np.concatenate([table[name][np.isfinite(table[name])] for name in columns])
    if logarithmic and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.grid(True, alpha=0.3)
    axes.tick_params(labelsize=8)
    if len(columns) > 1 or title == LOSSES:
        axes.legend(fontsize=8)


def draw(tables, title):
    """Returns the matplotlib figure of {name: table}; raises InputError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib; pip install matplotlib") from error
    panels = {name: panels_of(table) for name, table in tables.items()}
    rows = {name: max(1, -(-len(of_table) // ACROSS)) for name, of_table in panels.items()}
    figure = Figure((ACROSS * WIDTH, sum(rows.values()) * HEIGHT + 0.5), layout="constrained")
    figure.suptitle(title)
    parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=list(rows.values()))[:, 0]
    for part, (name, table) in zip(parts, tables.items(), strict=True):
        part.suptitle(f"{name}, step {table['step'][-1]:.0f}", x=0.01, ha="left", weight="bold", fontsize=11)
        places = part.subplots(rows[name], ACROSS, squeeze=False).ravel()
        for place, panel in zip(places, panels[name], strict=False):
            draw_panel(place, table, *panel)
        for place in places[len(panels[name]):]:
            place.axis("off")
    return figure


def main():
    """Reads the tables of the run and writes the PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="the PNG to write (default: RUN/curves.png)")
    arguments = parser.parse_args()
    output = arguments.output or arguments.run / "curves.png"
    if output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: a name that ends in .png was expected")
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run}: no such folder; the folder of a training run was expected")
    found = {name: arguments.run / f"{name}.csv" for name in TABLES}
    tables = {name: read_table(path) for name, path in found.items() if path.exists()}
    if not tables:
        raise InputError(f"{arguments.run}: holds none of {', '.join(path.name for path in found.values())}; the "
                         f"folder of a training run was expected")
    figure = draw(tables, arguments.run.resolve().name)
    output_folder(output.parent)
    with written_whole(output) as path:
        figure.savefig(path, dpi=110)
    print(f"{output}: the curves of {', '.join(tables)}")
