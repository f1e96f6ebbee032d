"""How many samples a second the threads prepare for the two trainings, beside how many the trainings take.

    python benchmarks/loader.py --data TRAIN --latents RUN/latents

Without folders of one's own, drawn landscapes and random latents serve. Nothing is computed but the batches, so that
this is what the loader can do at most; half of the processors belong to the training in earnest.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import machine, row, write_report  # noqa: E402
from jiidm.commands.entry import run_tool  # noqa: E402
from jiidm.config import config_path, load_config  # noqa: E402
from jiidm.data.drawn.scenes import draw_landscape  # noqa: E402
from jiidm.data.folders import TrainingFolder, write_training_folder  # noqa: E402
from jiidm.data.latents import LatentStore  # noqa: E402
from jiidm.data.loader import WORKERS, Loader  # noqa: E402
from jiidm.data.pictures import from_pixels  # noqa: E402
from jiidm.data.views import draw_views, load_pairs, load_photos  # noqa: E402
from jiidm.system.errors import InputError  # noqa: E402
from jiidm.system.files import written_whole  # noqa: E402
from jiidm.training.state import batch_indices, step_generator  # noqa: E402

GOAL = 5  # times what a training takes
SCALE = 1.25


def made_up_store(path, config, count, seed=0):
    """Writes a store of random latents and labels for the size of `config`; returns the `LatentStore`."""
    random, factor = np.random.default_rng(seed), config.autoencoder.factor
    size = count, config.image.height // factor, config.image.width // factor
    arrays = {
        "latents": random.standard_normal((count, config.unet.in_channels, *size[1:]), np.float32),
        "labels": random.integers(0, config.unet.num_classes, size).astype(np.uint8),
    }
    for name, array in arrays.items():
        with written_whole(path / f"{name}.npy") as temporary:
            np.save(temporary, array)
    (path / "latents.json").write_text("{}", "utf-8")
    return LatentStore(path)


def photo_batches(config, folder):
    """batch_of(step) of the autoencoder's training."""
    training, image = config.train_autoencoder, config.image

    def batch_of(step):
        indices = batch_indices(config.seed, step, training.batch, len(folder))
        views = draw_views(step_generator(config.seed, step, 1), training.batch, image.width, image.height,
                           training.crop, training.crop)
        return from_pixels(load_photos(folder, [folder.names[i] for i in indices], views))

    return batch_of


def pair_batches(config, folder):
    """batch_of(step) of whole photos with their label maps, scaled, cut to the picture's size and mirrored."""
    batch, image = config.train_autoencoder.batch, config.image

    def batch_of(step):
        indices = batch_indices(config.seed, step, batch, len(folder))
        views = draw_views(step_generator(config.seed, step, 1), batch, image.width, image.height,
                           image.height, image.width, SCALE)
        photos, labels = load_pairs(folder, [folder.names[i] for i in indices], views, config.unet.num_classes)
        return from_pixels(photos), labels

    return batch_of


def latent_batches(config, store):
    """batch_of(step) of the UNet's training: latents, labels and noise."""
    batch = config.train_unet.batch

    def batch_of(step):
        indices = batch_indices(config.seed, step, batch, len(store))
        latents = store.latents[indices]
        return latents, store.labels[indices], step_generator(config.seed, step, 3).standard_normal(
            latents.shape, np.float32)

    return batch_of


def samples_per_second(batch_of, batch, seconds, workers):
    """What the loader gives in about `seconds`, after two batches to warm up."""
    with Loader(batch_of, 0, 10**9, workers) as batches:
        next(batches), next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += batch
        return count / (time.perf_counter() - start)


def main():
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="a name in configs/, or a YAML file")
    parser.add_argument("--data", type=Path, help="training folder (default: 32 drawn landscapes)")
    parser.add_argument("--latents", type=Path, help="store of latents (default: 1024 random ones)")
    parser.add_argument("--training", type=float, default=10.0, help="samples a second that the trainings take "
                        "(default %(default)s, the default configuration on two cores)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="threads (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    for name in ("training", "seconds", "workers"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name} {getattr(args, name)}: expected more than 0")
    config = load_config(config_path(args.config))
    with tempfile.TemporaryDirectory() as made_up:
        made_up = Path(made_up)
        if args.data is None:
            drawn = ((f"{i:03d}", *draw_landscape(i, config.image.width, config.image.height)) for i in range(32))
            write_training_folder(made_up / "train", drawn)
        folder = TrainingFolder(args.data or made_up / "train")
        store = LatentStore(args.latents) if args.latents else made_up_store(made_up, config, 1024)
        size, rows = f"{config.image.width}x{config.image.height}", []
        for what, batch_of, batch in (
            (f"photos, {size}, crops of {config.train_autoencoder.crop}", photo_batches(config, folder),
             config.train_autoencoder.batch),
            (f"photos with labels, {size}, random scale", pair_batches(config, folder), config.train_autoencoder.batch),
            ("latents, labels, noise", latent_batches(config, store), config.train_unet.batch),
        ):
            speed = samples_per_second(batch_of, batch, args.seconds, args.workers)
            note = f"the goal is {GOAL} times" + ("" if speed >= GOAL * args.training else ": missed")
            rows.append(row(what, speed, "samples/s", "training takes", args.training, speed / args.training, note))
    about = {**machine(), "threads": args.workers, "folder": f"{len(folder)} photos", "store": f"{len(store)} latents"}
    print(write_report(args.output, "loader", "Loader of the training data", rows, about))


if __name__ == "__main__":
    run_tool(main)
