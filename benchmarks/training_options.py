"""What the options of the UNet's training that the paper leaves out do to the pictures: equally long trainings from the
same random weights and batches, each measured in one round.

  python benchmarks/training_options.py --run RUN --data TRAIN --labels TEST --references TRAIN

RUN is a run of tools/train.py with an autoencoder and stored latents. Each option is trained in a folder of its own
below RUN/options; after a stop, the same command goes on. The table goes where benchmarks/ablation.py puts its own.
"""
import argparse
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ablation import Studio  # noqa: E402
from benchmarks.ablation_settings import ONE_ROUND, Setting  # noqa: E402
from benchmarks.gallery import Gallery, about_weights, add_arguments, keep_section, kept_figures, row_of  # noqa: E402
from jiidm import Generator  # noqa: E402
from jiidm.config import builtin_config, from_dict, load_config, to_dict  # noqa: E402
from jiidm.files import InputError, output_folder, run_tool  # noqa: E402
from jiidm.stages import Stages  # noqa: E402
from jiidm.stopping import stoppable  # noqa: E402

# what every option but for its own keys has in common, whatever the configuration says
PAPER = {"diffusion": {"prediction": "epsilon", "zero_terminal_snr": False, "loss_weight": "uniform"},
         "train_unet": {"mask_drop": 0.2}}
# folder, words, keys; the first is what the others are compared with
OPTIONS = (
    ("epsilon", "noise, the paper's", {}),
    ("v", "v", {"diffusion": {"prediction": "v"}}),
    ("v-zero-snr", "v, zero terminal SNR", {"diffusion": {"prediction": "v", "zero_terminal_snr": True}}),
    ("min-snr", "noise, Min-SNR weighting", {"diffusion": {"loss_weight": "min_snr"}}),
    ("mask-drop", "noise, mask dropped at 0.1", {"train_unet": {"mask_drop": 0.1}}),
)


def config_of(config, changes, steps):
    """The `Config` with other values and so many steps, of which the last is kept."""
    data = to_dict(config)
    for section, values in PAPER.items():
        data[section] |= {**values, **changes.get(section, {})}
    data["train_unet"] |= {"steps": steps, "keep_at": [steps], "sheet_every": 0, "save_every": 100, "keep_last": 1}
    return from_dict(type(config), data, "option")


def train(arguments, config, name, changes):
    """Trains one option, as far as it is not trained, and returns the folder of its weights."""
    run = output_folder(arguments.run / "options" / name)
    for needed in ("autoencoder.safetensors", "latents"):
        source = arguments.run / needed
        if not source.exists():
            raise InputError(f"{source}: is missing; expected a run of tools/train.py with autoencoder and latents")
        (run / needed).unlink(missing_ok=True)  # that of a run that has been moved since
        (run / needed).symlink_to(source.resolve())
    stages = Stages(config_of(config, changes, arguments.steps), arguments.data, run, resume="auto")
    with stages.claimed():
        stages.unet()
        stages.export()
    return run / "weights"


def measure(arguments, weights):
    """Measures {words: folder of weights} and writes the section."""
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in results.md
    rows, base = [], None
    with tempfile.TemporaryDirectory(prefix="jiidm-options-") as folder:
        for name, path in weights.items():
            studio = Studio(Generator.from_checkpoint(path), arguments, Path(folder))
            measured, seconds = studio.figures(Setting(name, ONE_ROUND), studio.tasks)
            rows.append(row_of(name, measured, base, seconds))
            base = base or measured
    found = {
        "identity": {"recipe": to_dict(studio.recipe), "steps": arguments.steps}, "rows": rows,
        "terms": list(measured.score_terms), "pictures": len(studio.tasks), "protocol": studio.said,
        **about_weights(weights),
    }
    print(f"written: {', '.join(map(str, keep_section(arguments, 'training', found)))}")


def main():
    """Trains what is not trained yet, and measures all options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run with an autoencoder and latents")
    parser.add_argument("--data", required=True, type=Path, help="the training folder of that run")
    parser.add_argument("--config", default="default", help="YAML file, or the name of one in configs/")
    parser.add_argument("--steps", type=int, default=800, help="of each training (default 800)")
    parser.add_argument("--train-only", nargs="+", choices=[name for name, *_ in OPTIONS], metavar="OPTION",
                        help=f"train some of {', '.join(name for name, *_ in OPTIONS)} and measure nothing")
    arguments = parser.parse_args()
    path = arguments.config if arguments.config.endswith((".yaml", ".yml")) else builtin_config(arguments.config)
    config = load_config(path)
    if arguments.steps < 1:
        raise InputError(f"--steps {arguments.steps}: expected at least 1")
    with stoppable():
        if not arguments.train_only:  # told now, not after the trainings
            kept_figures(arguments)
            Gallery(arguments, None)
        weights = {words: train(arguments, config, name, changes) for name, words, changes in OPTIONS
                   if name in (arguments.train_only or [name])}
        if not arguments.train_only:
            measure(arguments, weights)
    return 0


if __name__ == "__main__":
    run_tool(main)
