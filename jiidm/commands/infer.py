"""Makes the contest's pictures: one STEM.jpg for every label map of a test folder, in the style that its JSON names."""
import argparse
from pathlib import Path

from jiidm.commands.options import add_device, add_label_options
from jiidm.system.errors import InputError

BASELINES = ("gaugan", "clade")


def main():
    """Reads the arguments and makes the pictures; returns 1 when some could not be made."""
    args = parse_arguments()

    from jiidm.system.stopping import stoppable

    with stoppable():
        from jiidm.contest.job import ContestJob, make_pictures

        job = ContestJob(
            args.input_path, args.img_path, args.output_path, args.width, args.height, args.quality, args.batch,
            args.resume, args.save_steps, args.overview, args.style_labels, args.classes, args.snap, args.nearest_class,
        )
        problems = make_pictures(
            job, find_checkpoint(args), args.device, args.precision, args.condition_cache_mb, args.model,
            low_memory=args.low_memory, rounds=args.rounds, ensemble=not args.no_ensemble, recipe=choose_recipe(args),
            seed=args.seed, color_transfer={"on": True, "off": False}.get(args.color_transfer, args.color_transfer),
        )
    for problem in problems:
        print(f"not made: {problem}")
    return 1 if problems else 0


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_folders(parser)
    add_recipe(parser)
    add_output(parser)
    add_computing(parser)
    return parser.parse_args()


def add_folders(parser):
    """Adds what is read and where the pictures go."""
    parser.add_argument("--input_path", required=True, type=Path, metavar="FOLDER",
                        help="test folder: label_to_img.json and one folder of label PNGs")
    parser.add_argument("--img_path", required=True, type=Path, metavar="FOLDER",
                        help="folder of the style photos, or one that has imgs/")
    parser.add_argument("--output_path", required=True, type=Path, metavar="FOLDER", help="folder for the pictures")
    parser.add_argument("--checkpoint", metavar="FOLDER",
                        help="folder of checkpoints (default: the package's own; with --model gaugan or clade: "
                             "runs/MODEL/weights)")
    parser.add_argument("--model", choices=("iidm", *BASELINES),
                        help="model of the checkpoint, an error if it is another (default: iidm without --checkpoint, "
                             "else whatever it is)")
    add_label_options(parser, nearest=True)


def add_recipe(parser):
    """Adds what changes the checkpoint's recipe."""
    parser.add_argument("--rounds", type=int, help="how many rounds of the recipe (default: all)")
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml",
                        help="keys of the inference section that replace the checkpoint's own")
    parser.add_argument("--sampler", choices=("ddim", "dpmpp"),
                        help="ddim (the paper's) or dpmpp, DPM-Solver++ (default: the recipe's)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of each round with dpmpp")
    parser.add_argument("--color-transfer", default="on", help="on, off, or a method's name (default: on)")
    parser.add_argument("--final-color-transfer", metavar="METHOD",
                        help="colour transfer after the last round: reinhard, histogram, transport (nearest to the "
                             "reference's colours) or none (default: the recipe's)")
    parser.add_argument("--style-labels", type=Path, metavar="FOLDER",
                        help="folder of the style photos' label maps, STEM.png, such as the contest's labels/: colours "
                             "go from class to class (default: as the recipe says)")
    parser.add_argument("--no-ensemble", action="store_true", help="use the last checkpoint alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")


def add_output(parser):
    """Adds what is written, and how."""
    parser.add_argument("--batch", type=_batch, default=None, metavar="N",
                        help="pictures at a time, or auto: 4 on the CPU, as many as fit into the memory on a GPU "
                             "(default: auto)")
    parser.add_argument("--width", type=int, default=512,
                        help="of the written pictures, in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=384,
                        help="of the written pictures, in pixels (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100 (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="skip pictures that exist")
    parser.add_argument("--save-steps", action="store_true", help="keep each round's picture, in steps/")
    parser.add_argument("--overview", type=Path, metavar="FILE",
                        help="also write one sheet of styles, coloured masks and results")


def add_computing(parser):
    """Adds where and how the networks run."""
    add_device(parser)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                        help="precision of the UNet; auto: bf16 on a GPU that has it, else fp32 (default: auto)")
    parser.add_argument("--condition-cache-mb", type=int, metavar="N",
                        help="memory for the SPADE maps of the masks, in MB (default: 2048 on the CPU, 768 there with "
                             "--low-memory, no limit on a GPU). Maps that do not fit are computed at every step; the "
                             "result is the same")
    parser.add_argument("--low-memory", action=argparse.BooleanOptionalAction, default=None,
                        help="on the CPU keep no packed weights: half of the memory at full size, two thirds of the "
                             "speed (default: where less than four times the UNet's weights is free)")


def find_checkpoint(args):
    """The checkpoint that the arguments ask for; raises InputError where a baseline has no weights yet."""
    if args.checkpoint is not None or args.model not in BASELINES:
        return args.checkpoint or "default"
    folder = Path("runs") / args.model / "weights"
    if not any(folder.glob("*.safetensors")):  # a training makes the folder at its start
        raise InputError(f"{folder}: no weights there; train the model to its end with "
                         f"jiidm train {args.model} --config {args.model} --run runs/{args.model} ..., "
                         f"or give --checkpoint")
    return folder


def choose_recipe(args):
    """The keys of the recipe that the arguments change, as a dict; the file's path where it alone does; else None."""
    final = args.final_color_transfer
    options = {"sampler": args.sampler, "steps": args.steps, "final_color_transfer": "" if final == "none" else final}
    keys = {key: value for key, value in options.items() if value is not None}
    if args.recipe is None or not keys:
        return keys or args.recipe

    from jiidm.config import load_recipe

    return {**load_recipe(args.recipe), **keys}


def _batch(text):
    """The value of --batch: a number, or None for auto."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a number or auto") from None
