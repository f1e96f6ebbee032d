"""Draws one picture: the landscape of a label map in the style of a photo.

  jiidm draw mountain_lake.png evening_glow.jpg -o lake.jpg
"""
import argparse
from pathlib import Path

from jiidm.commands.options import add_device, add_label_options
from jiidm.system.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png")


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mask", type=Path, metavar="MASK.png",
                        help="label map: a PNG of class numbers, or of one colour a class (--classes)")
    parser.add_argument("style", type=Path, metavar="STYLE.jpg", help="photo whose colours and light the picture takes")
    add_label_options(parser, nearest=True)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.jpg",
                        help="the picture to write, a JPEG or a PNG")
    parser.add_argument("--size", type=_size, default="mask", metavar="SIZE",
                        help="size of the picture: mask (the label map's), model (the network's) or WxH (default: "
                             "mask)")
    parser.add_argument("--canvas", type=_pixels, metavar="WxH",
                        help="draw at another size than the network's, such as 1024x256 for a panorama")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another picture (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="how many rounds of the recipe (default: all)")
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml",
                        help="keys of the inference section that replace the checkpoint's own")
    parser.add_argument("--style-labels", type=Path, metavar="MAP.png",
                        help="label map of the style photo: colours go from class to class")
    parser.add_argument("--checkpoint", default="default", metavar="FOLDER",
                        help="folder of checkpoints (default: the package's own)")
    add_device(parser)
    return parser.parse_args()


def main():
    """Reads the arguments and draws the picture."""
    args = parse_arguments()
    if args.output.suffix.lower() not in _SUFFIXES or args.output.is_dir():
        raise InputError(f"{args.output}: expected the name of a picture to write, such as lake.jpg")

    from jiidm.system.stopping import interruptible, stoppable

    with stoppable(), interruptible():
        from tqdm import tqdm

        from jiidm import load
        from jiidm.config import load_recipe
        from jiidm.data.classes import load_table
        from jiidm.data.pictures import read_photo
        from jiidm.data.stored import read_stored
        from jiidm.system.files import output_folder, written_whole

        output_folder(args.output.parent)
        read_stored(args.mask), read_photo(args.style)  # told before the networks are loaded
        if args.style_labels is not None:
            read_stored(args.style_labels)
        if args.classes != "auto":
            load_table(args.classes)
        recipe = load_recipe(args.recipe) if args.recipe else {}
        if args.canvas:
            recipe["canvas"] = list(args.canvas)
        generator = load(args.checkpoint, args.device)
        with tqdm(unit="step", dynamic_ncols=True, leave=False) as bar:
            def show(step):
                if step.done == 1:
                    bar.reset(step.steps)
                    bar.set_description(f"round {step.round + 1}")
                bar.update()

            picture = generator.infer(args.mask, args.style, args.rounds, recipe=recipe, seed=args.seed,
                                      size=args.size, on_step=show, style_labels=args.style_labels,
                                      classes=args.classes, snap=args.snap, nearest_class=args.nearest_class)
        with written_whole(args.output) as path:
            picture.save(path, quality=95)
    print(f"{args.output}: {picture.width}x{picture.height}")


def _size(text):
    """The value of --size: mask, model, or a width and a height."""
    return text if text in ("mask", "model") else _pixels(text, "mask, model, or ")


def _pixels(text, others=""):
    """A width and a height; `others` is what else an error says was expected."""
    try:
        width, height = (int(side) for side in text.lower().split("x"))
        if min(width, height) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected {others}a size such as 512x384") from None
    return width, height
