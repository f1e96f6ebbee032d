"""Compares options of the UNet's training and other widths by the pictures of one round, after trainings of the same
time on the same batches.

  python -m benchmarks.training_options --run RUN --data TRAIN --labels TEST --references TRAIN
  python -m benchmarks.training_options ... --longer 2700 --only epsilon v

RUN is a run of `jiidm train` with an autoencoder and stored latents. Each option is trained in RUN/options/OPTION (or
RUN/longer/OPTION); after a stop, the same command goes on. The tables become sections of docs/measurements.md (see
benchmarks.ablation).
"""
import argparse
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.ablation import Studio
from benchmarks.ablation_settings import ONE_ROUND, Setting
from benchmarks.gallery import Gallery, add_arguments, keep_rows, read_figures
from jiidm import Generator
from jiidm.checkpoint import open_checkpoint, source_of
from jiidm.commands.entry import run_tool
from jiidm.config import config_path, from_dict, load_config, to_dict
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.stopping import stoppable
from jiidm.training.stages import Stages

# what all options have in common, whatever the configuration says; an option's own keys come after it
COMMON = {"diffusion": {"prediction": "epsilon", "zero_terminal_snr": False, "loss_weight": "uniform"},
         "train_unet": {"mask_drop": 0.2}}

SAVING = ("keep_at", "keep_last", "save_every", "sheet_every")  # keys that do not change the result


class Option(NamedTuple):
    """A training.

    Attributes:
        words: the name of its row.
        keys: what it changes in the configuration, {section: {key: value}}.
        share: its number of steps, relative to the others'; a wider network has fewer, for the same time (measured on
            two cores).
    """

    words: str
    keys: dict = {}
    share: float = 1.0


# the others are compared with the first
OPTIONS = {
    "epsilon": Option("noise, the paper's"),
    "v": Option("v", {"diffusion": {"prediction": "v"}}),
    "v-zero-snr": Option("v, zero terminal SNR", {"diffusion": {"prediction": "v", "zero_terminal_snr": True}}),
    "min-snr": Option("noise, Min-SNR weighting", {"diffusion": {"loss_weight": "min_snr"}}),
    "mask-drop": Option("noise, mask dropped at 0.1", {"train_unet": {"mask_drop": 0.1}}),
    "no-ema": Option("noise, last weights, not their average", {"train_unet": {"ema": 0.0}}),
    "narrow": Option("noise, 32 channels", {"unet": {"model_channels": 32, "norm_groups": 8}}, 1.6),
    "wide": Option("noise, 56 channels", {"unet": {"model_channels": 56, "norm_groups": 14}}, 0.8),
}


def add_training_arguments(parser, options, steps):
    """Adds the arguments of a table of trainings to an `ArgumentParser`; `options` are the names to choose from."""
    parser.add_argument("--run", required=True, type=Path, help="folder of the run")
    parser.add_argument("--data", required=True, type=Path, help="training folder of the run")
    parser.add_argument("--config", default="default", help="YAML file, or the name of one in configs/")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of each training (default {steps})")
    parser.add_argument("--only", nargs="+", choices=options, default=list(options), metavar="OPTION",
                        help=f"some of {', '.join(options)} (default: all)")
    parser.add_argument("--train-only", action="store_true", help="measure nothing")


def replace_keys(config, *changes):
    """The `Config` with changes {section: {key: value}}, the later ones over the earlier ones."""
    data = to_dict(config)
    for values in changes:
        for section, keys in values.items():
            data[section] |= keys
    return from_dict(type(config), data, "option")


def check_trained(path, config, sections):
    """Raises InputError where the checkpoint `path` exists and one of its `sections` is another."""
    if path.exists():
        found, wanted = (
            {(section, key): value for section in sections for key, value in to_dict(getattr(each, section)).items()
             if key not in SAVING} for each in (open_checkpoint(path).config, config))
        other = [".".join(key) for key in wanted if found[key] != wanted[key]]
        if other:
            raise InputError(f"{path}: was trained with another configuration ({', '.join(other)}); remove "
                             f"{path.parent} to train it anew")


def train(arguments, config, name):
    """Trains an option, or what is left of it; returns the folder of its weights."""
    run = output_folder(arguments.run / ("longer" if arguments.longer else "options") / name)
    autoencoder, latents = (arguments.run / needed for needed in ("autoencoder.safetensors", "latents"))
    for needed in (autoencoder, latents):
        if not needed.exists():
            raise InputError(f"{needed}: missing; expected a run of jiidm train with autoencoder and latents")
    own = run / autoencoder.name
    if own.exists() and source_of(own).sha256 != source_of(autoencoder).sha256:
        raise InputError(f"{own}: not that of {arguments.run} any more; remove {run} to train it anew")
    with written_whole(own) as temporary:
        shutil.copyfile(autoencoder, temporary)
    (run / "latents").unlink(missing_ok=True)  # of a run that has moved
    (run / "latents").symlink_to(latents.resolve())
    option = OPTIONS[name]
    steps = round(option.share * (arguments.longer or arguments.steps))
    training = {"steps": steps, "keep_at": [steps], "sheet_every": 0, "save_every": 100, "keep_last": 1}
    config = replace_keys(config, COMMON, option.keys, {"train_unet": training})
    check_trained(run / f"unet-{steps:07d}.safetensors", config, ("image", "unet", "diffusion", "train_unet"))
    stages = Stages(config, arguments.data, run, resume="auto")
    stages.unet()
    stages.export()
    return run / "weights"


def measure(arguments, weights):
    """Measures {option: folder of weights} and writes the section."""
    with tempfile.TemporaryDirectory(prefix="jiidm-options-") as folder:
        def rows():
            for name, path in weights.items():
                generator = Generator.from_checkpoint(path)
                studio = Studio(generator, arguments, Path(folder))
                words = f"{OPTIONS[name].words}, {generator.checkpoints[0].step} steps"
                yield words, path, studio, *studio.measure_setting(Setting(words, ONE_ROUND), studio.tasks)

        keep_rows(arguments, "longer" if arguments.longer else "training", rows())


def main():
    """Trains the options that are not trained yet, and measures all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_training_arguments(parser, OPTIONS, 600)
    parser.add_argument("--longer", type=int, metavar="STEPS",
                        help="train for this many steps, into a table of its own")
    arguments = parser.parse_args()
    config = load_config(config_path(arguments.config))
    for name, value in (("steps", arguments.steps), ("longer", arguments.longer)):
        if value is not None and value < 2:
            raise InputError(f"--{name} {value}: expected at least 2")
    with stoppable():
        if not arguments.train_only:  # before the trainings, not after them
            read_figures(arguments)
            Gallery(arguments, None)
        weights = {name: train(arguments, config, name) for name in OPTIONS if name in arguments.only}
        if not arguments.train_only:
            measure(arguments, weights)
    return 0


if __name__ == "__main__":
    run_tool(main)
