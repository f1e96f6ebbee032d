"""The paper's comparison: GauGAN, CLADE and IIDM on one test folder, with times, memory and a sheet of the examples.

  python -m benchmarks.tables --labels TEST --references TRAIN --real PHOTOS \
      --model GauGAN=runs/gaugan/weights --model CLADE=runs/clade/weights --model IIDM=default --minutes IIDM=315

A model with a recipe has two rows, one round and the full recipe; all rows are compared with the full recipe of the
first one. GauGAN and CLADE have a row, and another with that recipe's final colour transfer. Each model runs in its own
process, for time and memory. A training's time is its number of steps times the time of one step, measured here, or
what --minutes says. With --real and the extra "judge" there are also the judge's figures. The table becomes a section
of docs/measurements.md (see benchmarks.ablation).
"""
import argparse
import multiprocessing
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from benchmarks.ablation_settings import ONE_ROUND
from benchmarks.gallery import (
    Gallery,
    add_arguments,
    describe_origin,
    keep_section,
    make_empty,
    make_row,
    read_figures,
    read_style,
    write_sheet,
)
from benchmarks.measuring import peak_gb
from jiidm import Generator, load
from jiidm.baselines.cost import parameter_count
from jiidm.baselines.training import BaselineTrainer
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TrainingFolder
from jiidm.data.pictures import read_photo, resize_photo
from jiidm.evaluation.judged import judge_folders
from jiidm.evaluation.measure import describe_judge, find_judge
from jiidm.evaluation.metrics import resamples
from jiidm.evaluation.pairing import find_tasks
from jiidm.inference.color_transfer import transfer_color
from jiidm.system.errors import InputError
from jiidm.system.stopping import stoppable
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.plan import measured, samples_of
from jiidm.training.unet import UNetTrainer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHEET = "comparison.jpg"
REAL = "real photos"
_JUDGED_SHOWN = "judge_of_real", "KID", "sharpness_of_real"


class Entry(NamedTuple):
    """A row of the table: name, folder of weights, arguments of `infer`, and method and share of the final transfer."""

    name: str
    weights: str
    arguments: dict
    final: str = ""
    share: float = 1.0


def make(entry, tasks, folder, seed):
    """Generates an entry's pictures into a folder, without the final transfer; returns seconds an image and peak GB."""
    generator = load(entry.weights)
    size, began = generator.batch_size(), None
    for start in range(-size, len(tasks), size):  # a first batch compiles the kernels
        if start == 0:
            began = time.perf_counter()
        some = tasks[max(0, start) : max(0, start) + size]
        pictures = generator.infer([task.labels for task in some], [task.reference for task in some], seed=seed,
                                   names=[task.stem for task in some], **entry.arguments)
        for task, picture in zip(some, pictures, strict=True):
            picture.save(folder / f"{task.stem}.png")
    return (time.perf_counter() - began) / len(tasks), peak_gb()


def measure_training(weights, data, minutes=None):
    """Parameters of the networks in a folder of weights, and a list of (steps, seconds a step) of their trainings.

    The seconds are measured now, at a step in the middle, on the photos of `data`; with `minutes` nothing is, and the
    list is (None, seconds).
    """
    generator, nowhere = load(weights), Path("/")  # nothing is written
    config, folder = generator.config, TrainingFolder(data)
    if not isinstance(generator, Generator):
        trainers = [(generator.checkpoint.step, BaselineTrainer(config, folder, nowhere))]
    else:
        network = generator.checkpoints[-1]
        parents = network.provenance if network.note.startswith("fine-tuned") else ()
        if len(parents) > 1 and minutes is None:
            raise InputError(f"{network.path}: a mean of fine-tuned checkpoints does not say how long the training "
                             f"before them took; give the checkpoints, or what tools/train.py export --average wrote")
        trainers = [(config.train_autoencoder.steps, AutoencoderTrainer(config, folder, nowhere)),
                    (sum(parent.step for parent in parents) + network.step,
                     UNetTrainer(config, samples_of(config, folder), None, nowhere, []))]
    if minutes is None:
        took = [(steps, measured(trainer, trainer.training.steps // 2)[0]) for steps, trainer in trainers]
    else:
        took = [(None, 60 * minutes)]
        for _, trainer in trainers:
            trainer.build()
    return sum(parameter_count(trainer.network) for _, trainer in trainers), took


def run_apart(function, *arguments):
    """Calls a function in a process of its own; returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise InputError(f"{function.__name__} of {arguments[0]}: its process ended without a result; the lines "
                             f"above, or the system's log where memory was short, say why") from error


def list_entries(models):
    """The `Entry`s of {name: folder}, the name of the one to compare with, and the pictures' size."""
    loaded = {name: load(weights) for name, weights in models.items()}
    ours = next((name for name, generator in loaded.items() if isinstance(generator, Generator)), None)
    if ours is None:
        raise InputError(f"{', '.join(models)}: all of them are baselines; expected weights of IIDM among them")
    recipe, found = loaded[ours].config.inference, []
    for name, generator in loaded.items():
        if isinstance(generator, Generator):
            found += [Entry(f"{name}, one round", models[name], {**ONE_ROUND, "recipe": {"final_color_transfer": ""}}),
                      Entry(f"{name}, full", models[name], {})]
            continue
        found.append(Entry(name, models[name], {}))
        if recipe.final_color_transfer:
            found.append(Entry(f"{name}, colour transfer at the end", models[name], {}, recipe.final_color_transfer,
                                recipe.final_color_share))
    sizes = {(generator.width, generator.height) for generator in loaded.values()}
    if len(sizes) > 1:
        raise InputError(f"{', '.join(models)}: make pictures of {len(sizes)} sizes; expected one")
    return found, f"{ours}, full", sizes.pop()


def measure(gallery, entries, base_name, size, data, minutes):
    """Measures the entries, whose pictures have the `size`; returns rows and costs.

    Args:
        gallery: the `Gallery`.
        entries, base_name, size: as `list_entries` gives them.
        data: the folder of the training photos.
        minutes: {folder of weights: minutes of its training}, for those whose steps are not to be timed.
    """
    found, costs, made, pictures = {}, {}, None, {}

    def measure_row(name, files, seconds, final="", share=1.0):
        folder = gallery.transfer(gallery.tasks, files, size, final, share, f"row-{len(pictures)}")
        pictures[name] = {task.stem: folder / f"{task.stem}.png" for task in gallery.tasks}
        found[name] = gallery.measure(folder, gallery.tasks), seconds

    if gallery.real is not None:
        measure_row(REAL, gallery.real.files, None)
    for entry in entries:
        print(entry.name, flush=True)
        seconds = None
        if not entry.final:
            made = make_empty(gallery.folder / "made")
            seconds, memory = run_apart(make, entry, gallery.tasks, made, gallery.given.seed)
            cost = {"name": entry.name, "seconds": seconds, "memory": memory}
            costs.setdefault(entry.weights, []).append(cost)
        files = {task.stem: made / f"{task.stem}.png" for task in gallery.tasks}
        measure_row(entry.name, files, seconds, entry.final, entry.share)
    gallery.protocol_text |= add_judged(gallery, pictures, {name: one for name, (one, _) in found.items()})
    for weights, several in costs.items():
        parameters, training = run_apart(measure_training, weights, data, minutes.get(weights))
        for cost in several:
            cost |= {"parameters": parameters, "training": training}
    base = found[base_name][0]
    rows = [make_row(name, one, None if name == base_name else base, seconds) for name, (one, seconds) in found.items()]
    return {"rows": rows, "terms": list(base.score_terms), "costs": [c for several in costs.values() for c in several]}


def add_judged(gallery, pictures, found):
    """Adds the judge's figures to each `Measured` of {row: `Measured`}; returns what the protocol says of the judge.

    `pictures` is {row: {stem: path}}. Without real photos or the extra "judge" there are no figures.
    """
    if REAL not in pictures:
        return {"judge": "not measured: no photos were given (--real)"}
    judge, why_not = find_judge(True)
    if judge is None:
        return {"judge": why_not}
    parts = {"real" if name == REAL else name: files for name, files in pictures.items()}
    draws = resamples(len(gallery.tasks), gallery.protocol.resamples, gallery.protocol.seed)
    for name, judged in judge_folders(judge, gallery.tasks, parts, draws, gallery.protocol.resamples).items():
        measured = found[REAL if name == "real" else name]
        for key in (key for key in _JUDGED_SHOWN if key in judged.figures):
            measured.figures[key], measured.replicates[key] = judged.figures[key], judged.replicates[key]
    return describe_judge(judge)


def make_sheet_rows(tasks, entries, size, seed):
    """Makes the rows of the sheet: {title: pictures}, an entry each."""
    made = {}
    with tempfile.TemporaryDirectory(prefix="jiidm-sheet-") as folder:
        for entry in entries:
            if not entry.final:
                run_apart(make, entry, tasks, Path(folder), seed)
            pictures = [resize_photo(read_photo(Path(folder) / f"{task.stem}.png"), *size) for task in tasks]
            if entry.final:
                pictures = [transfer_color(picture, read_style(task, size), entry.final, entry.share)
                            for picture, task in zip(pictures, tasks, strict=True)]
            made[entry.name] = pictures
    return made


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER",
                        help="name of a model in the table and folder of its weights, or default; repeat it for each "
                             "model")
    parser.add_argument("--training", type=Path, metavar="DIR",
                        help="training folder of the models (default: that of --references)")
    parser.add_argument("--minutes", action="append", default=[], metavar="NAME=NUMBER",
                        help="minutes that the training of a model took, for weights of several trainings")
    return parser.parse_args()


def parse_minutes(given, models):
    """Reads arguments NAME=NUMBER as {folder of weights: minutes}."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if name not in models or not number.isdecimal():
            raise InputError(f"--minutes {text}: expected NAME=NUMBER, the name one of: {', '.join(models)}")
        found[models[name]] = int(number)
    return found


def parse_models(given):
    """Reads arguments NAME=FOLDER as {name: folder}."""
    pairs = [text.partition("=")[::2] for text in given]
    names = [name for name, _ in pairs]
    if not all(name and folder for name, folder in pairs) or len(set(names)) < len(names) or REAL in names:
        raise InputError(f"--model {' '.join(given)}: expected NAME=FOLDER, each with another name")
    return dict(pairs)


def main():
    """Reads the arguments, measures, and writes figures, results and sheet."""
    arguments = parse_arguments()
    models, sheet = parse_models(arguments.model), arguments.docs / SHEET
    # before the hours of work, not after them
    minutes, training = parse_minutes(arguments.minutes, models), arguments.training or arguments.references
    photos = TrainingFolder(training)
    read_figures(arguments)
    shown, _, _ = find_tasks(EXAMPLES / "test", EXAMPLES / "train")
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in measurements.md
    with stoppable(), tempfile.TemporaryDirectory(prefix="jiidm-tables-") as folder:
        gallery = Gallery(arguments, Path(folder))
        entries, base_name, size = list_entries(models)
        found = measure(gallery, entries, base_name, size, training, minutes)
        found |= {"pictures": len(gallery.tasks), "photos": len(photos), "protocol": gallery.protocol_text,
                  "sheet": SHEET, **describe_origin(models)}
        written = keep_section(arguments, "comparison", found)
        write_sheet(sheet, shown, size, make_sheet_rows(shown, entries, size, arguments.seed))
    print(f"written: {', '.join(map(str, [sheet, *written]))}")
    return 0


if __name__ == "__main__":
    run_tool(main)
