"""Compares autoencoders of other widths and losses on held-out photos, all trained for the same time.

  python -m benchmarks.autoencoder_options --run RUN --data TRAIN --labels TEST --references TRAIN --real VAL

Each option is trained in RUN/autoencoders/OPTION; after a stop, the same command goes on. VAL holds the photos of
TEST's label maps. The table becomes a section of docs/measurements.md (see benchmarks.ablation).
"""
import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gallery import (
    Gallery,
    add_arguments,
    keep_rows,
    make_empty,
    read_figures,
)
from benchmarks.measuring import reconstruct
from benchmarks.training_options import (
    Option,
    add_training_arguments,
    check_trained,
    replace_keys,
)
from jiidm.checkpoint import load_checkpoint, open_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import config_path, load_config
from jiidm.data.pictures import read_photo, resize_photo
from jiidm.evaluation import metrics
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder
from jiidm.system.stopping import stoppable
from jiidm.training.quality import psnr_ssim
from jiidm.training.stages import Stages

QUANTIZED, ADVERSARIAL = 6 / 7, 1 / 2  # shares of a training after which codebook and discriminator begin
# the others are compared with the first
OPTIONS = {
    "plain": Option("{ch} channels"),
    "no-anchors": Option("{ch} channels, no anchors", {"train_autoencoder": {"anchors": []}}),
    "light": Option("{ch} channels, anchors and coarse loss of a third and a quarter of the weight",
                    {"train_autoencoder": {"anchor_weight": 0.1, "coarse_weight": 0.5}}),
    "discriminator": Option("{ch} channels, discriminator in the second half", {}, 0.93),
    "narrow": Option("24 channels", {"autoencoder": {"ch": 24}}, 1.27),
    "wide": Option("48 channels", {"autoencoder": {"ch": 48}}, 0.57),
}
# the measures of pictures that mean something for reconstructions, which have no style of their own
MEASURES = ("mask_accuracy", "mean_iou", "FD-segmenter")


def option_config(config, name, steps):
    """The `Config` of an option with `steps` steps."""
    training = {"steps": steps, "quantize_from": round(QUANTIZED * steps), "sheet_every": 0, "save_every": 100,
                "discriminator_start": round(ADVERSARIAL * steps) if name == "discriminator" else 2 * steps,
                "keep_last": 1}
    return replace_keys(config, {"train_autoencoder": training}, OPTIONS[name].keys)


def train(arguments, config, name):
    """Trains an option, or what is left of it; returns the path of its weights."""
    run = output_folder(arguments.run / "autoencoders" / name)
    steps = round(OPTIONS[name].share * arguments.steps)
    config, path = option_config(config, name, steps), run / "autoencoder.safetensors"
    check_trained(path, config, ("image", "autoencoder", "train_autoencoder"))
    Stages(config, arguments.data, run, resume="auto").autoencoder()
    return path


def measure_checkpoint(gallery, checkpoint):
    """The `Measured` of a checkpoint's reconstructions of the real photos, with PSNR and SSIM."""
    size = checkpoint.config.image.width, checkpoint.config.image.height
    photos = [resize_photo(read_photo(gallery.real.files[task.stem]), *size) for task in gallery.tasks]
    pictures, folder, quality = reconstruct(photos, checkpoint), make_empty(gallery.folder / "made"), []
    for task, photo, picture in zip(gallery.tasks, photos, pictures, strict=True):
        Image.fromarray(picture).save(folder / f"{task.stem}.png")
        quality.append(psnr_ssim(photo[None], picture[None]))
    found, protocol = gallery.measure(folder, gallery.tasks), gallery.protocol
    indices = metrics.resamples(len(photos), protocol.resamples, protocol.seed)  # those of the other measures
    replicates = dict(zip(("psnr", "ssim"), np.array(quality)[indices].mean(1).T, strict=True))
    figures = {name: metrics.figure(value, replicates[name])
               for name, value in zip(replicates, np.mean(quality, 0), strict=True)}
    for name in MEASURES:
        figures[name], replicates[name] = found.figures[name], found.replicates[name]
    return dataclasses.replace(found, figures=figures, replicates=replicates)


def measure(arguments, files):
    """Measures {words: file of weights} and writes the section."""
    with tempfile.TemporaryDirectory(prefix="jiidm-autoencoders-") as folder:
        gallery = Gallery(arguments, Path(folder))

        def rows():
            for words, file in files.items():
                checkpoint = load_checkpoint(file, "autoencoder")
                numbers = sum(value.size for value in checkpoint.tensors.values())
                words = words.format(ch=checkpoint.config.autoencoder.ch)
                yield (f"{words}, {numbers / 1e6:.1f} M, {checkpoint.step} steps", file, gallery,
                       measure_checkpoint(gallery, checkpoint), None)

        keep_rows(arguments, "autoencoder", rows())


def main():
    """Trains the options that are not trained yet, and measures all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_training_arguments(parser, OPTIONS, 500)
    parser.add_argument("--also", nargs="+", type=Path, default=[], metavar="FILE",
                        help="measure these autoencoders too; rows are named after their folders")
    arguments = parser.parse_args()
    config = load_config(config_path(arguments.config))
    if arguments.steps < 7:
        raise InputError(f"--steps {arguments.steps}: expected at least 7")
    with stoppable():
        if not arguments.train_only:  # before the trainings, not after them
            read_figures(arguments)
            for file in arguments.also:
                open_checkpoint(file, "autoencoder")
            if Gallery(arguments, None).real is None:
                raise InputError("--real: missing; expected the folder of the photos to reconstruct")
        files = {OPTIONS[name].words: train(arguments, config, name) for name in OPTIONS if name in arguments.only}
        if not arguments.train_only:
            default, = DEFAULT_WEIGHTS.glob("autoencoder*.safetensors")
            files |= {f"{file.resolve().parent.name}, {{ch}} channels": file for file in arguments.also}
            measure(arguments, {**files, "of the default weights, {ch} channels": default})
    return 0


if __name__ == "__main__":
    run_tool(main)
