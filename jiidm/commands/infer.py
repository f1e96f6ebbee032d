"""Makes the contest's pictures: one STEM.jpg for every label map of a test folder, in the style that its JSON names."""
import argparse
from pathlib import Path

from jiidm.system.errors import InputError


def main():
    """Reads the arguments and makes the pictures; returns 1 when some could not be made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_path", required=True, type=Path,
                        help="folder with label_to_img.json and one folder of label PNGs")
    parser.add_argument("--img_path", required=True, type=Path, help="folder of style photos, or one that has imgs/")
    parser.add_argument("--output_path", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--checkpoint", metavar="FOLDER",
                        help="folder of checkpoints (default: the package's own; with --model gaugan or clade "
                             "runs/MODEL/weights, where the README's training puts them)")
    parser.add_argument("--model", choices=("iidm", "gaugan", "clade"),
                        help="what the checkpoint must be (default: iidm without --checkpoint, else whatever it is)")
    parser.add_argument("--rounds", type=int, help="how many rounds of the recipe (default: all)")
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml",
                        help="keys of the inference section to put in place of the checkpoint's own")
    parser.add_argument("--sampler", choices=("ddim", "dpmpp"),
                        help="ddim, the paper's, or dpmpp, DPM-Solver++ (default: what the checkpoint's recipe says)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of each round with dpmpp")
    parser.add_argument("--color-transfer", default="on", help="on, off, or a method's name (default on)")
    parser.add_argument("--final-color-transfer", metavar="METHOD",
                        help="for the picture after the last round: reinhard, histogram, transport (nearest to the "
                             "reference's colours) or none (default: what the checkpoint's recipe says, mostly none)")
    parser.add_argument("--no-ensemble", action="store_true", help="use the last checkpoint alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=_batch, default=None, metavar="N",
                        help="pictures at a time (default auto: 4 on the CPU, by its free memory on a GPU)")
    parser.add_argument("--width", type=int, default=512, help="of the pictures written (default 512)")
    parser.add_argument("--height", type=int, default=384, help="of the pictures written (default 384)")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs, 1 to 100 (default 95)")
    parser.add_argument("--resume", action="store_true", help="skip pictures that are there already")
    parser.add_argument("--save-steps", action="store_true", help="keep each round's picture, in steps/")
    parser.add_argument("--overview", type=Path, help="write one sheet of styles, coloured masks and results")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                        help="of the networks' numbers (default auto: bf16 on a GPU, fp32 on the CPU)")
    parser.add_argument("--condition-cache-mb", type=int, metavar="N",
                        help="memory for the maps made from the masks, in MB (default: all on a GPU, 2048 on the CPU); "
                             "what does not fit is recomputed at every step, the result is the same")
    args = parser.parse_args()

    from jiidm.system.stopping import stoppable

    with stoppable():
        from jiidm.contest.job import ContestJob, make_pictures

        checkpoint = args.checkpoint or "default"
        if args.checkpoint is None and args.model in ("gaugan", "clade"):
            checkpoint = Path("runs") / args.model / "weights"
            if not any(checkpoint.glob("*.safetensors")):  # a training makes the folder at its start
                raise InputError(f"{checkpoint}: no weights there; train the model to its end with "
                                 f"tools/train.py {args.model} --config {args.model} --run runs/{args.model} ..., "
                                 f"or give --checkpoint")
        job = ContestJob(
            args.input_path, args.img_path, args.output_path, args.width, args.height, args.quality, args.batch,
            args.resume, args.save_steps, args.overview,
        )
        problems = make_pictures(
            job, checkpoint, args.device, args.precision, args.condition_cache_mb, args.recipe, args.model,
            rounds=args.rounds, sampler=args.sampler, steps=args.steps, ensemble=not args.no_ensemble, seed=args.seed,
            color_transfer={"on": True, "off": False}.get(args.color_transfer, args.color_transfer),
            final_color_transfer={"none": False}.get(args.final_color_transfer, args.final_color_transfer),
        )
    for problem in problems:
        print(f"not made: {problem}")
    return 1 if problems else 0


def _batch(text):
    """The value of --batch: a number, or None for auto."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a number or auto") from None
