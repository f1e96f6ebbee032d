"""The paper's comparison: GauGAN, CLADE and IIDM on the pictures of one test folder, what they take, and a sheet.

  python -m benchmarks.tables --labels TEST --references TRAIN --real PHOTOS \
      --model GauGAN=runs/gaugan/weights --model CLADE=runs/clade/weights --model IIDM=runs/default/weights

A model with a recipe has two rows, one round and the full recipe; the full recipe of the first of them is what all
other rows are compared with. GauGAN and CLADE have one, and one with that recipe's last colour transfer after it.
Pictures are made in a process of each model's own, which tells time and memory; the times of training are those of its
steps, measured here, times their number. The table goes where benchmarks/ablation.py puts its own.
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
    about_weights,
    add_arguments,
    emptied,
    keep_section,
    kept_figures,
    row_of,
    style_of,
    write_sheet,
)
from benchmarks.measuring import peak_gb
from jiidm import Generator, load
from jiidm.baselines.cost import parameter_count
from jiidm.baselines.training import BaselineTrainer
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TrainingFolder
from jiidm.data.pictures import read_photo, resize_photo
from jiidm.evaluation.pairing import find_tasks
from jiidm.inference.color_transfer import transfer_color
from jiidm.system.errors import InputError
from jiidm.system.stopping import stoppable
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.plan import measured, samples_of
from jiidm.training.unet import UNetTrainer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
REAL = "real photos"


class Manner(NamedTuple):
    """A row: its name, the folder of a model's weights, arguments of `infer`, and the colour transfer after it."""

    name: str
    weights: str
    arguments: dict
    final: str = ""
    share: float = 1.0


def make(manner, tasks, folder, seed):
    """Makes the pictures of a manner in a folder, before its final transfer; returns seconds an image, and the most
    memory of the process in GB."""
    generator = load(manner.weights)
    size, began = generator.batch_size(), None
    for start in range(-size, len(tasks), size):  # the first ones once more before: kernels are compiled then
        if start == 0:
            began = time.perf_counter()
        some = tasks[max(0, start) : max(0, start) + size]
        pictures = generator.infer([task.labels for task in some], [task.reference for task in some], seed=seed,
                                   names=[task.stem for task in some], **manner.arguments)
        for task, picture in zip(some, pictures, strict=True):
            picture.save(folder / f"{task.stem}.png")
    return (time.perf_counter() - began) / len(tasks), peak_gb()


def training_of(weights, data):
    """How many parameters the networks in the folder `weights` have, and what their training took: a list of (steps,
    seconds a step), the latter measured now, on the photos of `data`, at a step in the middle."""
    generator, nowhere = load(weights), Path("/")  # nothing is written
    config, folder = generator.config, TrainingFolder(data)
    if not isinstance(generator, Generator):
        trainers = [(generator.checkpoint.step, BaselineTrainer(config, folder, nowhere))]
    else:
        network = generator.checkpoints[-1]
        parents = network.provenance if network.note.startswith("fine-tuned") else ()
        if len(parents) > 1:
            raise InputError(f"{network.path}: a mean of fine-tuned checkpoints does not say how long the training "
                             f"before them took; give the checkpoints, or what tools/train.py export --average wrote")
        trainers = [(config.train_autoencoder.steps, AutoencoderTrainer(config, folder, nowhere)),
                    (sum(parent.step for parent in parents) + network.step,
                     UNetTrainer(config, samples_of(config, folder), None, nowhere, []))]
    took = [(steps, measured(trainer, trainer.training.steps // 2)[0]) for steps, trainer in trainers]
    return sum(parameter_count(trainer.network) for _, trainer in trainers), took


def apart(function, *arguments):
    """What the function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise InputError(f"{function.__name__} of {arguments[0]}: its process ended without a result; the lines "
                             f"above, or the system's log where memory was short, say why") from error


def manners_of(models):
    """The rows of {name: folder}, the name of the one that the others are compared with, and the pictures' size."""
    loaded = {name: load(weights) for name, weights in models.items()}
    ours = next((name for name, generator in loaded.items() if isinstance(generator, Generator)), None)
    if ours is None:
        raise InputError(f"{', '.join(models)}: all of them are baselines; expected weights of IIDM among them")
    recipe, found = loaded[ours].config.inference, []
    for name, generator in loaded.items():
        if isinstance(generator, Generator):
            found += [Manner(f"{name}, one round", models[name], {**ONE_ROUND, "recipe": {"final_color_transfer": ""}}),
                      Manner(f"{name}, full", models[name], {})]
            continue
        found.append(Manner(name, models[name], {}))
        if recipe.final_color_transfer:
            found.append(Manner(f"{name}, colour transfer at the end", models[name], {}, recipe.final_color_transfer,
                                recipe.final_color_share))
    sizes = {(generator.width, generator.height) for generator in loaded.values()}
    if len(sizes) > 1:
        raise InputError(f"{', '.join(models)}: make pictures of {len(sizes)} sizes; expected one")
    return found, f"{ours}, full", sizes.pop()


def measure(gallery, manners, base_name, size, data):
    """Rows and costs of the manners, whose pictures have the `size`."""
    found, costs, made = {}, {}, None
    if gallery.real is not None:
        photos = gallery.transferred(gallery.tasks, gallery.real.files, size)
        found[REAL] = gallery.measured(photos, gallery.tasks), None
    for manner in manners:
        print(manner.name, flush=True)
        seconds = None
        if not manner.final:
            made = emptied(gallery.folder / "made")
            seconds, memory = apart(make, manner, gallery.tasks, made, gallery.given.seed)
            cost = {"name": manner.name, "seconds": seconds, "memory": memory}
            costs.setdefault(manner.weights, []).append(cost)
        files = {task.stem: made / f"{task.stem}.png" for task in gallery.tasks}
        folder = gallery.transferred(gallery.tasks, files, size, manner.final, manner.share)
        found[manner.name] = gallery.measured(folder, gallery.tasks), seconds
    for weights, several in costs.items():
        parameters, training = apart(training_of, weights, data)
        for cost in several:
            cost |= {"parameters": parameters, "training": training}
    base = found[base_name][0]
    rows = [row_of(name, one, None if name == base_name else base, seconds) for name, (one, seconds) in found.items()]
    return {"rows": rows, "terms": list(base.score_terms), "costs": [c for several in costs.values() for c in several]}


def pictures_to_look_at(tasks, manners, size, seed):
    """{title: pictures} of every manner."""
    made = {}
    with tempfile.TemporaryDirectory(prefix="jiidm-sheet-") as folder:
        for manner in manners:
            if not manner.final:
                apart(make, manner, tasks, Path(folder), seed)
            pictures = [resize_photo(read_photo(Path(folder) / f"{task.stem}.png"), *size) for task in tasks]
            if manner.final:
                pictures = [transfer_color(picture, style_of(task, size), manner.final, manner.share)
                            for picture, task in zip(pictures, tasks, strict=True)]
            made[manner.name] = pictures
    return made


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER",
                        help="a model's name in the table and the folder of its weights (default: the package's own); "
                             "several times")
    parser.add_argument("--sheet", default="comparison.jpg", metavar="FILE",
                        help="name of the sheet, beside the results (default comparison.jpg)")
    parser.add_argument("--sheet-labels", type=Path, default=EXAMPLES / "test", metavar="DIR",
                        help="test folder of the sheet (default: the examples)")
    parser.add_argument("--sheet-references", type=Path, default=EXAMPLES / "train", metavar="DIR")
    parser.add_argument("--sheet-count", type=int, default=6, metavar="N", help="label maps on it (default 6)")
    return parser.parse_args()


def checked_models(given):
    """{name: folder} of the arguments NAME=FOLDER."""
    pairs = [text.partition("=")[::2] for text in given]
    names = [name for name, _ in pairs]
    if not all(name and folder for name, folder in pairs) or len(set(names)) < len(names) or REAL in names:
        raise InputError(f"--model {' '.join(given)}: expected NAME=FOLDER of each, and names of their own")
    return dict(pairs)


def main():
    """Reads the arguments, measures, and writes figures, results and sheet."""
    arguments = parse_arguments()
    models, sheet = checked_models(arguments.model), arguments.docs / arguments.sheet
    # told now, not after the hours that the pictures take
    if sheet.suffix.lower() not in (".jpg", ".jpeg", ".png") or arguments.sheet_count < 1:
        raise InputError(f"--sheet {arguments.sheet} of {arguments.sheet_count} label maps: expected the name of a "
                         f"picture, such as comparison.jpg, and at least 1")
    photos = TrainingFolder(arguments.references)
    shown, _, problems = find_tasks(arguments.sheet_labels, arguments.sheet_references)
    if problems:
        raise InputError(problems[0])
    shown = shown[: arguments.sheet_count]
    kept_figures(arguments)
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in measurements.md
    with stoppable(), tempfile.TemporaryDirectory(prefix="jiidm-tables-") as folder:
        gallery = Gallery(arguments, Path(folder))
        manners, base_name, size = manners_of(models)
        found = measure(gallery, manners, base_name, size, arguments.references)
        found |= {"pictures": len(gallery.tasks), "photos": len(photos), "protocol": gallery.said,
                  "sheet": arguments.sheet, **about_weights(models)}
        written = keep_section(arguments, "comparison", found)
        write_sheet(sheet, shown, size, pictures_to_look_at(shown, manners, size, arguments.seed))
    print(f"written: {', '.join(map(str, [sheet, *written]))}")
    return 0


if __name__ == "__main__":
    run_tool(main)
